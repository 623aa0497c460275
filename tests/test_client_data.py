"""Data as clients and servers have them, brought to what the task asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featherfed.api.build import load_evaluation_data
from featherfed.datasets.dataset import Dataset, DatasetError
from featherfed.datasets.sources import load_client_data, load_inputs, load_train_test
from featherfed.server.settings.settings import Settings
from featherfed.tasks.task import Input, Target, TargetKind, Task, Window, image_task

VECTOR = Input("x", "float32", (3,))
NUMBER = Task((VECTOR,), Target(TargetKind.VALUES))
CLASS = Task((VECTOR,), Target(TargetKind.CLASS, (), ("no", "yes")))
PHRASES = Task(
    (Input("word", "int32", (4,), vocabulary=9),),
    Target(TargetKind.CLASS, (4,), tuple("abcdefghi")),
)
TWO = Task((VECTOR, Input("word", "int32", (2,), vocabulary=9)), Target(TargetKind.VALUES, (2,)))
ITSELF = Task((VECTOR,), Target(TargetKind.INPUT))
PICTURES = image_task((6, 8, 1), ("cat", "dog"))
X = np.arange(15, dtype=np.float64).reshape(5, 3)


# ---- Dataset ----


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        ((), None, "arrays whose first axis counts"),
        ((np.array(1),), None, "arrays whose first axis counts"),
        ((X,), np.zeros(4), "hold 5 and 4 examples"),
        ((X, X[:2]), None, "hold 5 and 2 examples"),
        ((X[:0],), None, r"shape \(0, 3\): the data set is empty"),
        ((X[:, :0],), None, "the data set is empty"),
    ],
)
def test_arrays_that_are_no_data_set(inputs: Any, targets: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Dataset(inputs, targets)


def test_looser_arrays_fit() -> None:
    for x in (X, X.astype(np.int16), X.astype(np.float16)):
        fitted = Dataset((x,), np.arange(5)).fit(NUMBER)
        assert fitted.targets is not None
        assert (fitted.inputs[0].dtype, fitted.targets.dtype) == (np.float32, np.float32)
    fitted = Dataset((X,), np.arange(5.0)[:, None]).fit(NUMBER)
    assert fitted.targets is not None
    assert fitted.targets.shape == (5,)
    column = Task(NUMBER.inputs, Target(TargetKind.VALUES, (1,)))
    fitted = Dataset((X,), np.arange(5.0)).fit(column)
    assert fitted.targets is not None
    assert fitted.targets.shape == (5, 1)
    fitted = Dataset((X,), np.array([0, 1, 1, 0, 1], np.uint8)).fit(CLASS)
    assert fitted.targets is not None
    assert (fitted.targets.dtype, fitted.class_names) == (np.int64, ("no", "yes"))
    labels = Task((VECTOR,), Target(TargetKind.LABELS, (2,), ("a", "b")))
    fitted = Dataset((X,), np.array([[True, False]] * 5)).fit(labels)
    assert fitted.targets is not None
    assert fitted.targets.dtype == np.uint8
    fitted = Dataset((np.zeros((2, 6, 8)),), np.array([0, 1])).fit(PICTURES)
    assert (fitted.inputs[0].dtype, fitted.inputs[0].shape) == (np.uint8, (2, 6, 8, 1))


def test_classes_by_name() -> None:
    names = np.array(["yes", "no", "yes", "yes", "no"])
    for targets in (names, names.astype(object), names[:, None]):
        fitted = Dataset((X,), targets).fit(CLASS)
        assert fitted.targets is not None
        assert fitted.targets.ravel().tolist() == [1, 0, 1, 1, 0]
    letters = np.array([list("abca"), list("ihgf")])
    fitted = Dataset((np.zeros((2, 4), int),), letters).fit(PHRASES)
    assert fitted.targets is not None
    assert fitted.targets.tolist() == [[0, 1, 2, 0], [8, 7, 6, 5]]
    with pytest.raises(DatasetError, match="'maybe' is not one of the classes no, yes"):
        Dataset((X,), np.array(["no", "yes", "maybe", "no", "no"])).fit(CLASS)
    with pytest.raises(DatasetError, match="the classes are yes, no; the task has no, yes, in thi"):
        Dataset((X,), np.zeros(5, int), ("yes", "no")).fit(CLASS)


@pytest.mark.parametrize(
    ("task", "inputs", "targets", "message"),
    [
        (NUMBER, (X, X), np.zeros(5), "the data have 2 inputs; the task needs x"),
        (NUMBER, (X[:, :2],), np.zeros(5), r"input 'x' must be float32 \[3\], not float32 \[2\]"),
        (NUMBER, (X.astype(str),), np.zeros(5), r"input 'x': <U\d+; give numbers"),
        (NUMBER, (X * np.nan,), np.zeros(5), r"input 'x' is not finite \(example 0\)"),
        (NUMBER, (X,), None, "the data have no targets, and the task needs them"),
        (NUMBER, (X,), np.zeros((5, 2)), "targets must be float32"),
        (NUMBER, (X,), np.array([0, 1, 2, np.inf, 4]), r"the target is not finite \(example 3\)"),
        (CLASS, (X,), np.zeros(5), "the classes: float64; give integers"),
        (CLASS, (X,), np.full(5, 2), "targets go from 2 to 2; the task has 0 to 1"),
        (CLASS, (X,), np.full(5, -1), "targets go from -1 to -1"),
        (PICTURES, (np.full((5, 6, 8), 300),), np.zeros(5, int), "give uint8, or float within"),
        (PICTURES, (np.full((5, 6, 8), 1.5),), np.zeros(5, int), "floats span 1.5 to 1.5"),
        (PHRASES, (np.zeros((5, 4)),), np.zeros((5, 4), int), "input 'word': float64; give integ"),
        (PHRASES, (np.full((5, 4), 9),), np.zeros((5, 4), int), "tokens from 9 to 9"),
    ],
)
def test_what_does_not_fit_is_named(task: Task, inputs: Any, targets: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Dataset(inputs, targets).fit(task)


def test_integers_that_a_dtype_cannot_hold_do_not_wrap_around() -> None:
    with pytest.raises(DatasetError, match="4294967296 to 4294967296, more than int32 holds"):
        Dataset((np.full((5, 4), 2**32),), np.zeros((5, 4), int)).fit(PHRASES)
    labels = Task((VECTOR,), Target(TargetKind.LABELS, (2,), ("a", "b")))
    with pytest.raises(DatasetError, match="the labels: numbers from 256 to 257, more"):
        Dataset((X,), np.array([[256, 257]] * 5)).fit(labels)


def test_targets_that_are_not_needed_are_dropped() -> None:
    assert Dataset((X,), np.zeros(5)).fit(ITSELF).targets is None


# ---- files ----


def test_npz_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    tokens = np.arange(10).reshape(5, 2) % 9
    for names in (("x_0", "x_1"), ("x", "word")):
        np.savez(path, y=np.zeros((5, 2)), **dict(zip(names, (X, tokens), strict=True)))
        found = load_client_data(str(path), TWO)
        assert [a.dtype.name for a in found.inputs] == ["float32", "int32"]
        assert len(load_inputs(str(path), TWO)) == 2
    found.save(path)
    again = Dataset.load(path)
    np.testing.assert_array_equal(again.inputs[1], tokens)
    np.savez(path, x=X)
    assert load_client_data(str(path), ITSELF).targets is None
    assert load_inputs(str(path), NUMBER)[0].dtype == np.float32
    with pytest.raises(DatasetError, match="the data have no targets"):
        load_client_data(str(path), NUMBER)
    np.savez(path, x=X, y=[0, 1, 1, 0, 1], class_names=["no", "yes"])
    assert load_client_data(str(path), CLASS).class_names == ("no", "yes")
    np.savez(path, images=np.zeros((2, 6, 8), np.uint8), labels=[0, 1], class_names=["cat", "dog"])
    assert load_client_data(str(path), PICTURES).input_shape == (6, 8, 1)
    np.savez(path, x=np.zeros((2, 6, 8), np.uint8), y=["dog", "cat"])
    assert load_client_data(str(path), PICTURES).labels.tolist() == [1, 0]


def test_npz_that_lacks_something(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, y=np.zeros(5))
    with pytest.raises(DatasetError, match=r"data\.npz: holds y; it needs x and y"):
        load_client_data(str(path), NUMBER)
    np.savez(path, x=np.array([{}]), y=[0])
    with pytest.raises(DatasetError, match=r"not a readable \.npz"):
        load_client_data(str(path), NUMBER)
    np.savez(path, x=X, y=np.zeros(5), class_names=[["a"]])
    with pytest.raises(DatasetError, match="class_names must be a list"):
        load_client_data(str(path), NUMBER)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"not a readable \.npz"):
        load_client_data(str(path), NUMBER)
    with pytest.raises(DatasetError, match=r"no such file or folder; give an \.npz, \.csv or"):
        load_client_data(str(tmp_path / "nowhere.csv"), NUMBER)


def test_inputs_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    assert load_inputs(str(tmp_path / "x.npy"), NUMBER)[0].shape == (5, 3)
    with pytest.raises(DatasetError, match="the data have 1 inputs; the task needs x, word"):
        load_inputs(str(tmp_path / "x.npy"), TWO)
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(DatasetError, match=r"x\.npy: not a readable \.npy"):
        load_inputs(str(tmp_path / "x.npy"), NUMBER)


def test_folders_of_pictures_of_any_size(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name, size, colour in (("cat", (16, 12), 10), ("dog", (9, 30), 200)):
        (tmp_path / name).mkdir()
        image.new("RGB", size, (colour,) * 3).save(tmp_path / name / "0.png")
    data = load_client_data(str(tmp_path), PICTURES)
    assert data.images.shape == (2, 6, 8, 1)
    assert data.labels.tolist() == [0, 1]
    assert np.unique(data.images[0]).tolist() == [10]
    assert np.unique(data.images[1]).tolist() == [200]
    with pytest.raises(DatasetError, match="cat: not one of the classes dog, cow"):
        load_client_data(str(tmp_path), image_task((6, 8, 1), ("dog", "cow")))
    with pytest.raises(DatasetError, match="the task is not about pictures"):
        load_client_data(str(tmp_path), NUMBER)


# ---- the server's own ----


TASK = {
    "inputs": [{"name": "x", "dtype": "float32", "columns": ["a", "b"]}],
    "target": {"kind": "values", "columns": ["c"]},
}


def served(dataset: Path | str, **changes: Any) -> tuple[Dataset, Dataset]:
    run = Settings.model_validate(
        {"task": {**TASK, **changes}, "evaluation": {"dataset": str(dataset)}}
    )
    test, calibration = load_evaluation_data(run)
    assert test is not None
    assert calibration is not None
    return test, calibration


def test_a_server_evaluates_on_what_clients_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(33, dtype=np.float32).reshape(11, 3)
    table = tmp_path / "test.csv"
    np.savetxt(table, rows, "%g", ",", header="a,b,c", comments="")
    np.savez(tmp_path / "test.npz", x=rows[:, :2], y=rows[:, 2])
    (tmp_path / "server_data.py").write_text(
        f"import numpy as np\ndef load():\n    f = np.load({str(tmp_path / 'test.npz')!r})\n"
        "    return f['x'], f['y']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for source in (table, tmp_path / "test.npz", "server_data:load"):
        test, calibration = served(source)
        np.testing.assert_array_equal(calibration.inputs[0], rows[::5, :2])
        np.testing.assert_array_equal(test.inputs[0], np.delete(rows, slice(0, 11, 5), 0)[:, :2])
        assert len(test) + len(calibration) == 11
    window = {"length": 2}
    test, calibration = served(table, window=window)
    assert calibration.targets is not None
    assert test.targets is not None
    assert calibration.targets.tolist() == [5, 8]  # the first fifth of ten windows
    assert test.targets.tolist() == rows[3:, 2].tolist()
    np.savetxt(table, rows[:1], "%g", ",", header="a,b,c", comments="")
    with pytest.raises(DatasetError, match="1 example is too few to test on some"):
        served(table)


def test_a_servers_train_and_test_files_are_used_as_they_are(tmp_path: Path) -> None:
    for name, count in (("train", 9), ("test", 4)):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((count, 2)), y=np.zeros(count))
    test, calibration = served(tmp_path)
    assert (len(test), len(calibration)) == (4, 9)


def test_without_a_task_other_data_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", x=X, y=np.zeros(5))
    with pytest.raises(DatasetError, match=r"other data need a task in the run file, \[task\]"):
        load_train_test(tmp_path / "test.npz")
    assert load_evaluation_data(Settings()) == (None, None)


def test_windows_are_of_tables(tmp_path: Path) -> None:
    """Other data come as windows already."""
    task = Task(
        (Input("x", "float32", (2, 3), columns=("a", "b", "c")),),
        Target(TargetKind.VALUES, columns=("a",)),
        window=Window(2),
    )
    np.savez(tmp_path / "data.npz", x=np.zeros((7, 2, 3)), y=np.zeros(7))
    assert len(load_client_data(str(tmp_path / "data.npz"), task)) == 7
