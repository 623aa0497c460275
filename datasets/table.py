"""Reads tables, .csv or .parquet, into the tensors of a task by the names of their columns."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featherfed.datasets.dataset import Dataset, DatasetError
from featherfed.datasets.windows import cut, ends_of_series
from featherfed.tasks.task import TargetKind, Task, Values

SUFFIXES = (".csv", ".csv.gz", ".parquet")
Table = dict[str, npt.NDArray[Any]]
"""Column name -> its values: texts or numbers, [rows]."""


def is_table(path: Path) -> bool:
    """Return whether a file is a table by its name."""
    return path.name.lower().endswith(SUFFIXES)


def load_table(path: Path, task: Task) -> Dataset:
    """Return the examples in a table: its rows, or windows of its rows, as the task says.

    Raises DatasetError for a file that cannot be read, a column that is not there, or a value that
    is missing or not what the task needs; the message names row and column.
    """
    needed = columns_of(task)
    table = _read(path, needed)
    try:
        return _examples(table, task)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def columns_of(task: Task) -> tuple[str, ...]:
    """Return the columns that a task needs; raise DatasetError if it names none."""
    inputs = [name for given in task.inputs for name in given.columns]
    if any(not given.columns for given in task.inputs):
        raise DatasetError(
            "the task names no columns, so tables cannot be read; give an .npz with x and y, or "
            "let the run file name the columns of each input"
        )
    if not task.target.columns and task.target.kind is not TargetKind.INPUT:
        raise DatasetError(
            "the task names no column of the target; give an .npz with x and y, or let the run "
            "file name it"
        )
    group = [task.window.group] if task.window and task.window.group else []
    return tuple(dict.fromkeys([*inputs, *task.target.columns, *group]))


def _examples(table: Table, task: Task) -> Dataset:
    inputs = [_numbers(table, given.columns, given.dtype) for given in task.inputs]
    targets = None if task.target.kind is TargetKind.INPUT else _targets(table, task)
    if task.window is None:
        return Dataset(tuple(inputs), targets)
    group = table[task.window.group] if task.window.group else None
    ends = ends_of_series(len(inputs[0]), group)
    windows, after = cut(inputs, targets, ends, task.window)
    return Dataset(tuple(windows), after, ordered=True)


def _targets(table: Table, task: Task) -> Values:
    target = task.target
    if target.kind is TargetKind.CLASS:
        return _classes(table[target.columns[0]], target.columns[0], target.class_names)
    if target.kind is TargetKind.LABELS:
        return _numbers(table, target.columns, "uint8")
    values = _numbers(table, target.columns, "float32")
    return values[:, 0] if len(target.columns) == 1 else values


def _classes(column: Values, name: str, class_names: Sequence[str]) -> Values:
    """Return the numbers of classes, which a table names or numbers."""
    numbers = {text: number for number, text in enumerate(class_names)}
    texts = [str(value) for value in column.tolist()]
    if all(text in numbers for text in texts):
        return np.array([numbers[text] for text in texts], np.int64)
    for row, text in enumerate(texts):
        if not (text.isdecimal() and int(text) < len(class_names)):
            raise DatasetError(
                f"row {row + 1}, column {name!r}: {text!r} is none of the classes "
                f"{', '.join(class_names)}"
            )
    return np.array([int(text) for text in texts], np.int64)


def _numbers(table: Table, columns: Sequence[str], dtype: str) -> Values:
    """Return columns side by side, [rows, columns]."""
    found = np.stack([_column(table[name], name) for name in columns], axis=1)
    if dtype == "float32":
        return found.astype(np.float32)
    limits = np.iinfo(dtype)
    wrong = (found != np.rint(found)) | (found < limits.min) | (found > limits.max)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DatasetError(
            f"row {row + 1}, column {columns[column]!r}: {found[row, column]:g} is no {dtype}"
        )
    return found.astype(dtype)


def _column(values: Values, name: str) -> npt.NDArray[np.float64]:
    try:
        numbers = values.astype(np.float64)
    except (ValueError, TypeError):
        row = next(k for k, value in enumerate(values.tolist()) if not _is_number(value))
        raise DatasetError(
            f"row {row + 1}, column {name!r}: {values[row]!r} is no number; fill or drop the row"
        ) from None
    if not np.isfinite(numbers).all():
        row = int(np.argmin(np.isfinite(numbers)))
        raise DatasetError(f"row {row + 1}, column {name!r}: no value; fill or drop the row")
    return numbers


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return False
    return True


def _read(path: Path, columns: Sequence[str]) -> Table:
    table = _read_parquet(path, columns) if path.suffix == ".parquet" else _read_csv(path, columns)
    if not len(next(iter(table.values()))):
        raise DatasetError(f"{path}: the table has no rows")
    return table


def _read_csv(path: Path, columns: Sequence[str]) -> Table:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            rows = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""))
            head = [name.strip() for name in next(rows, [])]
            _check_columns(path, head, columns)
            places = [head.index(name) for name in columns]
            most = max(places)
            lines: list[list[str]] = []
            for row in rows:
                if not row:  # an empty line
                    continue
                if len(row) <= most:
                    raise DatasetError(f"{path}: row {len(lines) + 1} has {len(row)} columns")
                lines.append([row[place].strip() for place in places])
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: not a readable .csv file ({error})") from error
    return {name: np.array([line[k] for line in lines]) for k, name in enumerate(columns)}


def _read_parquet(path: Path, columns: Sequence[str]) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DatasetError(
            "reading .parquet needs pyarrow: pip install 'featherfed[tables]'; .csv needs nothing"
        ) from error
    try:
        _check_columns(path, parquet.read_schema(path).names, columns)
        table = parquet.read_table(path, columns=list(columns))
        return {name: table.column(name).to_numpy(zero_copy_only=False) for name in columns}
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: not a readable .parquet file ({error})") from error


def _check_columns(path: Path, found: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DatasetError(
            f"{path}: lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; it "
            f"has {', '.join(found) or 'none'}"
        )
