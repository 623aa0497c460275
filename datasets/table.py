"""Reads tables, .csv or .parquet, into the tensors of a task by the names of their columns."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featherfed.datasets.dataset import Dataset, DatasetError
from featherfed.datasets.windows import cut, ends_of_series
from featherfed.tasks.records import together
from featherfed.tasks.task import Target, TargetKind, Task, Values, Window

SUFFIXES = (".csv", ".csv.gz", ".parquet")
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Columns:
    """What of a table is read as numbers, and what as text: names of columns."""

    numbers: tuple[str, ...]
    texts: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Each column once."""
        return _once([*self.numbers, *self.texts])


@dataclass(frozen=True)
class Table:
    """Columns by name: numbers, float64 [rows], and texts of as many rows."""

    numbers: dict[str, npt.NDArray[np.float64]]
    texts: dict[str, list[str]]

    @property
    def num_rows(self) -> int:
        """How many rows there are, the head not counted."""
        return len(next(iter(self.numbers.values())))


def is_table(path: Path) -> bool:
    """Return whether a file is a table by its name."""
    return path.name.lower().endswith(SUFFIXES)


def load_table(path: Path, task: Task) -> Dataset:
    """Return the examples in a table: its rows, or windows of its rows, as the task says.

    Raises DatasetError for a file that cannot be read, a column that is not there, or a value that
    is missing or not what the task needs; the message names the row, counted from 1 below the head,
    and the column.
    """
    columns = columns_of(task)
    try:
        return _examples(_read(path, columns), task)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def load_table_inputs(path: Path, task: Task) -> list[Values]:
    """Return the inputs of the examples in a table, which needs no column of the target.

    Windows need no rows after them, so the last one ends with its series. Raises DatasetError as
    `load_table` does.
    """
    columns = _input_columns(task)
    try:
        table = _read(path, columns)
        inputs = _inputs(table, task)
        if task.window is None:
            return inputs
        window = replace(task.window, horizon=0)
        return cut(inputs, None, _ends(table, window), window)[0]
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def columns_of(task: Task) -> Columns:
    """Return the columns that a task needs; raise DatasetError if it names none."""
    found = _input_columns(task)
    for target in task.target.each:
        if target.kind is TargetKind.INPUT:
            continue
        if not target.columns:
            raise DatasetError(
                f"the task names no column of the target{target.name and f' {target.name!r}'}; "
                "give an .npz with x and y, or let the run file name it"
            )
        if target.kind is TargetKind.CLASS:
            found = replace(found, texts=_once([*found.texts, *target.columns]))
        else:
            found = replace(found, numbers=_once([*found.numbers, *target.columns]))
    return found


def _input_columns(task: Task) -> Columns:
    if any(not given.columns for given in task.inputs):
        raise DatasetError(
            "the task names no columns, so tables cannot be read; give an .npz with x and y, or "
            "let the run file name the columns of each input"
        )
    numbers = _once([name for given in task.inputs for name in given.columns])
    return Columns(numbers, (task.window.group,) if task.window and task.window.group else ())


def _once(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _examples(table: Table, task: Task) -> Dataset:
    inputs = _inputs(table, task)
    targets = None if task.target.kind is TargetKind.INPUT else _targets(table, task)
    if task.window is None:
        return Dataset(tuple(inputs), targets)
    windows, after = cut(inputs, targets, _ends(table, task.window), task.window)
    return Dataset(tuple(windows), after, ordered=True)


def _inputs(table: Table, task: Task) -> list[Values]:
    """Return each input's columns, [rows, columns]."""
    if not table.num_rows:
        raise DatasetError("the table has no rows")
    return [
        _tensor(table, given.columns, given.dtype, *_limits(given.dtype, given.vocabulary))
        for given in task.inputs
    ]


def _ends(table: Table, window: Window) -> npt.NDArray[np.int64]:
    """Return where each series of rows ends."""
    group = np.array(table.texts[window.group]) if window.group else None
    return ends_of_series(table.num_rows, group)


def _limits(dtype: str, vocabulary: int) -> tuple[float, float]:
    """Return the least and the largest value that an input may have."""
    if dtype == "float32":
        return -_FLOAT32_MAX, _FLOAT32_MAX
    return 0, 255 if dtype == "uint8" else vocabulary - 1


def _targets(table: Table, task: Task) -> Values:
    """Return the targets, of several ones records by name."""
    parts = [_target(table, target) for target in task.target.each]
    return together(parts, task.target.names)


def _target(table: Table, target: Target) -> Values:
    if target.kind is TargetKind.CLASS:
        name = target.columns[0]
        return _classes(table.texts[name], name, target.class_names)
    if target.kind is TargetKind.LABELS:
        return _tensor(table, target.columns, "uint8", 0, 1)
    values = _tensor(table, target.columns, "float32", -_FLOAT32_MAX, _FLOAT32_MAX)
    return values[:, 0] if len(target.columns) == 1 else values


def _classes(texts: Sequence[str], name: str, class_names: Sequence[str]) -> Values:
    """Return the numbers of classes, which a table names or, if it holds no name, numbers."""
    numbers = {text: number for number, text in enumerate(class_names)}
    if not any(text in numbers for text in texts):
        numbers = {str(number): number for number in range(len(class_names))}
    for row, text in enumerate(texts):
        if text not in numbers:
            raise _refusal(row, name, f"{text!r} is none of the classes {', '.join(class_names)}")
    return np.array([numbers[text] for text in texts], np.int64)


def _tensor(table: Table, columns: Sequence[str], dtype: str, low: float, high: float) -> Values:
    """Return columns side by side, [rows, columns]."""
    for name in columns:
        values = table.numbers[name]
        wrong = ~((values >= low) & (values <= high))  # of no number, too
        if dtype != "float32":
            wrong |= values != np.rint(values)
        if wrong.any():
            row = int(wrong.argmax())
            value = values[row]
            if np.isnan(value):
                raise _refusal(row, name, "no value; fill or drop the row")
            needed = f"{dtype} takes" if dtype == "float32" else "whole numbers are needed"
            raise _refusal(row, name, f"{value:g}, but {needed} from {low:g} to {high:g}")
    return np.stack([table.numbers[name].astype(dtype) for name in columns], axis=1)


def _refusal(row: int, name: str, why: str) -> DatasetError:
    """Return the error of a cell; `row` counts from 0."""
    return DatasetError(f"row {row + 1}, column {name!r}: {why}")


def _read(path: Path, columns: Columns) -> Table:
    return (_read_parquet if path.suffix.lower() == ".parquet" else _read_csv)(path, columns)


# ---- .csv ----


def _read_csv(path: Path, columns: Columns) -> Table:
    compressed = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path, "rb") if compressed else path.open("rb") as file:
            rows = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""))
            head = [name.strip() for name in next(rows, [])]
            _check_columns(head, columns.all)
            return _collect(_full_rows(rows, len(head)), head, columns)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"not a readable .csv file ({error})") from error


def _full_rows(rows: Iterable[list[str]], width: int) -> Iterator[list[str]]:
    """Yield the rows that are not empty lines; raise DatasetError for one of another width."""
    number = 0
    for row in rows:
        if not row:
            continue
        number += 1
        if len(row) != width:
            raise DatasetError(
                f"row {number} has {len(row)} cells, and the head has {width}; put text with "
                "commas into quotes, and fill missing cells"
            )
        yield row


def _collect(rows: Iterable[list[str]], head: Sequence[str], columns: Columns) -> Table:
    """Return the columns of a table; numbers take eight bytes each, also while they are read."""
    numbers = {name: array("d") for name in columns.numbers}
    texts: dict[str, list[str]] = {name: [] for name in columns.texts}
    known: dict[str, str] = {}  # equal texts are kept once
    number_cells = [(head.index(name), name, values) for name, values in numbers.items()]
    text_cells = [(head.index(name), values) for name, values in texts.items()]
    for row, cells in enumerate(rows):
        for place, name, values in number_cells:
            try:
                values.append(float(cells[place]))
            except ValueError:
                text = cells[place].strip()
                why = f"{text!r} is no number" if text else "no value"
                raise _refusal(row, name, f"{why}; fill or drop the row") from None
        for place, found in text_cells:
            text = cells[place].strip()
            found.append(known.setdefault(text, text))
    return Table({name: np.array(values) for name, values in numbers.items()}, texts)


# ---- .parquet ----


def _read_parquet(path: Path, columns: Columns) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DatasetError(
            "reading .parquet needs pyarrow: pip install 'featherfed[tables]'; .csv needs nothing"
        ) from error
    try:
        _check_columns(parquet.read_schema(path).names, columns.all)
        table = parquet.read_table(path, columns=list(columns.all))
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"not a readable .parquet file ({error})") from error
    return Table(
        {name: _numbers(table.column(name), name) for name in columns.numbers},
        {name: [_text(v) for v in table.column(name).to_pylist()] for name in columns.texts},
    )


def _numbers(column: Any, name: str) -> npt.NDArray[np.float64]:
    """Return a column of parquet as numbers; what is missing is not a number."""
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind in "fiub":
        return values.astype(np.float64)  # type: ignore[no-any-return]
    made = np.empty(len(values))
    for row, value in enumerate(values.tolist()):
        try:
            made[row] = np.nan if value is None else float(value)
        except (ValueError, TypeError):
            raise _refusal(row, name, f"{value!r} is no number; fill or drop the row") from None
    return made


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _check_columns(found: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DatasetError(
            f"lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; it "
            f"has {', '.join(found) or 'none'}"
            + ("; cells are separated by commas" if ";" in "".join(found) else "")
        )
    twice = [name for name in wanted if list(found).count(name) > 1]
    if twice:
        raise DatasetError(f"has the column {twice[0]} twice; rename one")
