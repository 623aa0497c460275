"""Tables as a client's data: what is read, and what is refused by row and column."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherfed.datasets.dataset import DatasetError
from featherfed.datasets.sources import load_client_data, load_inputs
from featherfed.tasks.errors import TaskError
from featherfed.tasks.task import Input, Target, TargetKind, Task, Window

SENSORS = Input("sensors", "float32", (2,), columns=("heat", "wind"))
NUMBER = Task((SENSORS,), Target(TargetKind.VALUES, columns=("power",)))
CLASS = Task((SENSORS,), Target(TargetKind.CLASS, (), ("calm", "storm"), columns=("weather",)))
LABELS = Task((SENSORS,), Target(TargetKind.LABELS, (2,), ("wet", "cold"), columns=("w", "c")))
ITSELF = Task((SENSORS,), Target(TargetKind.INPUT))
BYTES = Task(
    (Input("grey", "uint8", (2,), columns=("heat", "wind")),),
    Target(TargetKind.VALUES, (2,), columns=("power", "heat")),
)
TOKENS = Task(
    (Input("word", "int32", (1,), vocabulary=7, columns=("word",)), SENSORS),
    Target(TargetKind.VALUES, columns=("power",)),
)
HEAD = "heat,wind,power,weather,w,c,word\n"
ROWS = "1,2.5,10,calm,0,1,3\n-4,5e2,20,storm,1,0,6\n7,8,.5,calm,1,1,0\n"


def table(folder: Path, text: str | bytes, name: str = "data.csv") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def as_parquet(folder: Path, columns: dict[str, list[Any]]) -> str:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path = folder / "data.parquet"
    parquet.write_table(pa.table(columns), path)
    return str(path)


COLUMNS: dict[str, list[Any]] = {
    "heat": [1, -4, 7],
    "wind": [2.5, 500.0, 8.0],
    "power": [10.0, 20.0, 0.5],
    "weather": ["calm", "storm", "calm"],
    "w": [False, True, True],
    "c": [1, 0, 1],
    "word": [3, 6, 0],
}


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet", "CSV"])
def test_columns_become_tensors(tmp_path: Path, form: str) -> None:
    if form == "parquet":
        path = as_parquet(tmp_path, COLUMNS)
    else:
        text = (HEAD + ROWS).encode()
        path = table(tmp_path, gzip.compress(text) if "gz" in form else text, f"data.{form}")
    data = load_client_data(path, NUMBER)
    np.testing.assert_array_equal(
        data.inputs[0], np.array([[1, 2.5], [-4, 500], [7, 8]], np.float32)
    )
    assert data.targets is not None
    assert (data.targets.dtype, data.targets.tolist()) == (np.float32, [10, 20, 0.5])
    assert not data.ordered
    data = load_client_data(path, CLASS)
    assert data.targets is not None
    assert (data.targets.dtype, data.targets.tolist()) == (np.int64, [0, 1, 0])
    assert data.class_names == ("calm", "storm")
    data = load_client_data(path, LABELS)
    assert data.targets is not None
    assert (data.targets.dtype, data.targets.tolist()) == (np.uint8, [[0, 1], [1, 0], [1, 1]])
    assert load_client_data(path, ITSELF).targets is None
    data = load_client_data(path, TOKENS)
    assert data.inputs[0].tolist() == [[3], [6], [0]]
    assert data.inputs[1].shape == (3, 2)


def test_several_values_and_bytes(tmp_path: Path) -> None:
    data = load_client_data(table(tmp_path, "power,wind,heat\n1,2,3\n4,5,255\n"), BYTES)
    assert data.inputs[0].dtype == np.uint8
    assert data.inputs[0].tolist() == [[3, 2], [255, 5]]
    assert data.targets is not None
    assert data.targets.tolist() == [[1, 3], [4, 255]]


def test_classes_may_be_numbers(tmp_path: Path) -> None:
    text = "heat,wind,weather\n1,2,1\n1,2,0\n"
    data = load_client_data(table(tmp_path, text), CLASS)
    assert data.targets is not None
    assert data.targets.tolist() == [1, 0]
    named = Task((SENSORS,), Target(TargetKind.CLASS, (), ("1", "0"), columns=("weather",)))
    data = load_client_data(table(tmp_path, text), named)
    assert data.targets is not None
    assert data.targets.tolist() == [0, 1]
    path = as_parquet(tmp_path, {"heat": [1, 1], "wind": [2, 2], "weather": [1, 0]})
    data = load_client_data(path, CLASS)
    assert data.targets is not None
    assert data.targets.tolist() == [1, 0]


def test_how_spreadsheets_write(tmp_path: Path) -> None:
    """A byte order mark, spaces, quotes, Windows' line ends, empty lines."""
    text = '\ufeff heat , "wind",weather\r\n 1 ,"2", "calm"\r\n\r\n3,4,storm\r\n\r\n'
    data = load_client_data(table(tmp_path, text.replace(', "', ',"')), CLASS)
    assert data.inputs[0].tolist() == [[1, 2], [3, 4]]
    quoted = 'heat,note,wind,weather\n1,"a, b\nc",2,calm\n'
    data = load_client_data(table(tmp_path, quoted), CLASS)
    assert data.inputs[0].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        (NUMBER, "", "lacks the columns heat, wind, power; it has none"),
        (NUMBER, "heat,wind\n1,2\n", r"data\.csv: lacks the column power; it has heat, wind"),
        (NUMBER, "heat;wind;power\n1;2;3\n", "it has heat;wind;power; cells are separated by comm"),
        (NUMBER, "heat,wind,power\n", r"data\.csv: the table has no rows"),
        (NUMBER, "heat,wind,power\n\n\n", "the table has no rows"),
        (NUMBER, "heat,wind,power,heat\n1,2,3,4\n", "has the column heat twice"),
        (NUMBER, "heat,wind,power\n1,2,3\n1,,3\n", "row 2, column 'wind': no value; fill or drop"),
        (NUMBER, "heat,wind,power\n1,2,3\n1, ,3\n", "row 2, column 'wind': no value"),
        (NUMBER, "heat,wind,power\n1,2,nan\n", "row 1, column 'power': no value"),
        (NUMBER, "heat,wind,power\nNaN,2,3\n", "row 1, column 'heat': no value"),
        (
            NUMBER,
            "heat,wind,power\n1,2,3\n\n1,2,low\n",
            "row 2, column 'power': 'low' is no number",
        ),
        (NUMBER, "heat,wind,power\n1,inf,3\n", "row 1, column 'wind': inf, but float32 takes from"),
        (NUMBER, "heat,wind,power\n1e39,0,3\n", r"row 1, column 'heat': 1e\+39, but float32 takes"),
        (NUMBER, "heat,wind,power\n1,2,3\n1,2\n", "row 2 has 2 cells, and the head has 3"),
        (NUMBER, "heat,wind,power\n1,2,3\n1,2,3,5\n", "row 2 has 4 cells, and the head has 3"),
        (CLASS, "heat,wind,weather\n1,2,calm\n1,2,rain\n", "row 2, column 'weather': 'rain' is no"),
        (CLASS, "heat,wind,weather\n1,2,calm\n1,2,\n", "row 2, column 'weather': '' is none of"),
        (CLASS, "heat,wind,weather\n1,2,1\n1,2,2\n", "'2' is none of the classes calm, storm"),
        (CLASS, "heat,wind,weather\n1,2,calm\n1,2,1\n", "row 2, column 'weather': '1' is none"),
        (LABELS, "heat,wind,w,c\n1,2,1,2\n", "row 1, column 'c': 2, but whole numbers .* 0 to 1"),
        (LABELS, "heat,wind,w,c\n1,2,.5,1\n", "row 1, column 'w': 0.5, but whole numbers are need"),
        (BYTES, "heat,wind,power\n1,2,3\n256,2,3\n", "row 2, column 'heat': 256, but whole .* 255"),
        (TOKENS, "word,heat,wind,power\n7,1,2,3\n", "row 1, column 'word': 7, but .* from 0 to 6"),
        (TOKENS, "word,heat,wind,power\n-1,1,2,3\n", "row 1, column 'word': -1, but"),
    ],
)
def test_broken_tables(tmp_path: Path, task: Task, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        load_client_data(table(tmp_path, text), task)
    assert str(caught.value).startswith(str(tmp_path / "data.csv"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.csv", b"heat,wind,power\n1,2,\xff\xfe\n"),
        ("data.csv", b"heat,wind,power\n1,2,\x003\n"),
        ("data.csv", b"heat,wind,power\n1,2," + b"3" * 200_000),
        ("data.csv.gz", b"heat,wind,power\n1,2,3\n"),
        ("data.csv.gz", gzip.compress(b"heat,wind,power\n" + b"1,2,3\n" * 999, mtime=0)[:-9]),
        ("data.csv.gz", gzip.compress(b"heat,wind,power\n1,2,3\n", mtime=0)[:-8] + b"\0" * 8),
        ("data.parquet", b"heat,wind,power\n1,2,3\n"),
        ("data.parquet", b""),
        ("data.parquet", b"PAR1" + b"\0" * 40 + b"PAR1"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    with pytest.raises(DatasetError, match=r"data\..*: (not a readable|row 1, column 'power')"):
        load_client_data(table(tmp_path, content, name), NUMBER)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(12, 100), bits=st.integers(1, 255))
def test_damaged_gzip_is_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, at: int, bits: int
) -> None:
    content = bytearray(gzip.compress((HEAD + ROWS * 3).encode(), mtime=0))
    content[at % len(content)] ^= bits
    folder = tmp_path_factory.getbasetemp() / "gzip"
    folder.mkdir(exist_ok=True)
    try:
        data = load_client_data(table(folder, bytes(content), "data.csv.gz"), NUMBER)
    except DatasetError:
        return
    assert len(data) == 9  # a bit that does not count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"power": [1.0, None, 3.0]}, "row 2, column 'power': no value"),
        ({"power": [None, None, None]}, "row 1, column 'power': no value"),
        ({"heat": ["1", "x", "3"]}, "row 2, column 'heat': 'x' is no number"),
        ({"heat": [[1], [2], [3]]}, r"row 1, column 'heat': .*\[1\].* is no number"),
        ({"wind": [1.0, float("nan"), 3.0]}, "row 2, column 'wind': no value"),
        ({"weather": ["calm", None, "calm"]}, "row 2, column 'weather': '' is none"),
    ],
)
def test_broken_parquet(tmp_path: Path, change: dict[str, list[Any]], message: str) -> None:
    path = as_parquet(tmp_path, {**COLUMNS, **change})
    task = CLASS if "weather" in change else NUMBER
    with pytest.raises(DatasetError, match=message):
        load_client_data(path, task)
    with pytest.raises(DatasetError, match="lacks the column heat; it has wind"):
        load_client_data(as_parquet(tmp_path, {"wind": [1], "power": [1]}), NUMBER)


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DatasetError, match=r"needs pyarrow: pip install 'featherfed\[tables\]'"):
        load_client_data(table(tmp_path, b"PAR1", "data.parquet"), NUMBER)


def test_tasks_without_columns(tmp_path: Path) -> None:
    path = table(tmp_path, HEAD + ROWS)
    plain = Input("sensors", "float32", (2,))
    with pytest.raises(DatasetError, match="the task names no columns"):
        load_client_data(path, Task((plain,), NUMBER.target))
    with pytest.raises(DatasetError, match="names no column of the target"):
        load_client_data(path, Task((SENSORS,), Target(TargetKind.VALUES)))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(TargetKind.CLASS, (3,), ("a", "b"), columns=("weather",)), r"one class, \[\]"),
        (
            Target(TargetKind.LABELS, (2,), ("a", "b"), columns=("w",)),
            "2 labels .* 2 columns, not 1",
        ),
    ],
)
def test_columns_that_cannot_give_the_target(target: Target, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Task((SENSORS,), target)


SERIES = "house,heat,wind,power,weather\n" + "".join(
    f"{house},{k},{-k},{100 * k},{'storm' if k % 2 else 'calm'}\n"
    for house, count in (("a", 5), ("b", 2), ("c", 4))
    for k in range(count)
)


def windows(target: Target, window: Window) -> Task:
    shape = (window.length, 2)
    return Task((Input("s", "float32", shape, columns=("heat", "wind")),), target, window=window)


def test_windows_of_groups(tmp_path: Path) -> None:
    ahead = windows(Target(TargetKind.VALUES, (1,), columns=("power",)), Window(2, 1, 1, "house"))
    data = load_client_data(table(tmp_path, SERIES), ahead)
    assert data.ordered
    assert data.inputs[0][:, :, 0].tolist() == [[0, 1], [1, 2], [2, 3], [0, 1], [1, 2]]
    assert data.targets is not None
    assert data.targets.tolist() == [[200], [300], [400], [200], [300]]
    classes = Target(TargetKind.CLASS, (), ("calm", "storm"), columns=("weather",))
    data = load_client_data(table(tmp_path, SERIES), windows(classes, Window(3, 2, 0, "house")))
    assert data.inputs[0][:, :, 0].tolist() == [[0, 1, 2], [2, 3, 4], [0, 1, 2]]
    assert data.targets is not None
    assert data.targets.tolist() == [0, 0, 0]
    both = windows(Target(TargetKind.VALUES, (2, 2), columns=("power", "heat")), Window(2, 9, 2))
    data = load_client_data(table(tmp_path, SERIES), both)  # all one series
    assert data.targets is not None
    assert data.targets.tolist() == [[[200, 2], [300, 3]]]
    itself = windows(Target(TargetKind.INPUT), Window(4, 1, 0, "house"))
    assert len(load_client_data(table(tmp_path, SERIES), itself)) == 3


def test_series_that_are_too_short(tmp_path: Path) -> None:
    target = Target(TargetKind.VALUES, (3,), columns=("power",))
    with pytest.raises(
        DatasetError,
        match=r"data\.csv: the longest series has 5 rows, too few for windows of 4 and a horizon "
        "of 3; .* of one house, so sort by it",
    ):
        load_client_data(table(tmp_path, SERIES), windows(target, Window(4, 1, 3, "house")))
    with pytest.raises(DatasetError, match="lacks the column room"):
        load_client_data(table(tmp_path, SERIES), windows(target, Window(4, 1, 3, "room")))


def test_inputs_alone(tmp_path: Path) -> None:
    """To predict, there is neither a target nor what comes after a window."""
    path = table(tmp_path, "wind,heat,word\n2,1,3\n4,3,0\n6,5,1\n")
    for task in (NUMBER, CLASS, ITSELF):
        assert [x.tolist() for x in load_inputs(path, task)] == [[[1, 2], [3, 4], [5, 6]]]
    word, sensors = load_inputs(path, TOKENS)
    assert (word.dtype, word.tolist()) == (np.int32, [[3], [0], [1]])
    assert sensors.dtype == np.float32
    ahead = windows(Target(TargetKind.VALUES, (4,), columns=("power",)), Window(2, 1, 4))
    (found,) = load_inputs(path, ahead)
    assert found[:, :, 0].tolist() == [[1, 3], [3, 5]]
    with pytest.raises(DatasetError, match=r"data\.csv: row 1, column 'heat': 'x' is no number"):
        load_inputs(table(tmp_path, "wind,heat\n1,x\n"), NUMBER)
    with pytest.raises(DatasetError, match="the table has no rows"):
        load_inputs(table(tmp_path, "wind,heat\n"), NUMBER)
    with pytest.raises(DatasetError, match="names no columns"):
        load_inputs(path, Task((Input("x", "float32", (2,)),), NUMBER.target))
