"""Examples from an iterator: the same as from arrays, and on disk while a client trains."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherfed.datasets.dataset import Dataset, DatasetError
from featherfed.datasets.sources import load_client_data
from featherfed.datasets.stream import from_iterator
from featherfed.edge_client.examples import Examples
from featherfed.tasks import arrays
from featherfed.tasks.arrays import ArrayFile, in_parts, is_on_disk, mapped, read, taken
from featherfed.tasks.errors import TaskError
from featherfed.tasks.scaling import Statistics, merge
from featherfed.tasks.task import Input, Target, TargetKind, Task

VALUES = Task(
    (Input("x", "float32", (3,), standardize=True),),
    Target(TargetKind.VALUES, (2,), standardize=True),
)
CLASSES = Task((Input("x", "uint8", (2, 2)),), Target(TargetKind.CLASS, (), ("no", "yes")))
TWO = Task(
    (Input("x", "float32", (3,)), Input("tokens", "int32", (2,), vocabulary=5)),
    Target(TargetKind.LABELS, (2,), ("a", "b")),
)
ITSELF = Task((Input("x", "float32", (3,)),), Target(TargetKind.INPUT))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a part be a few examples, as it is with large ones."""
    monkeypatch.setattr(arrays, "PART_BYTES", 64)


def data_of(task: Task, count: int) -> Dataset:
    draw = np.random.default_rng(count)
    made = {
        "float32": lambda shape: draw.normal(50, 9, shape).astype(np.float32),
        "uint8": lambda shape: draw.integers(0, 256, shape, np.uint8),
        "int32": lambda shape: draw.integers(0, 5, shape).astype(np.int32),
    }
    inputs = tuple(made[i.dtype]((count, *i.shape)) for i in task.inputs)
    shape = (count, *task.target.shape)
    targets = {
        TargetKind.VALUES: lambda: draw.normal(0, 3, shape).astype(np.float32),
        TargetKind.CLASS: lambda: draw.integers(0, 2, shape),
        TargetKind.LABELS: lambda: draw.integers(0, 2, shape).astype(np.uint8),
        TargetKind.INPUT: lambda: None,
    }[task.target.kind]()
    return Dataset(inputs, targets, task.target.class_names)


def one_by_one(data: Dataset) -> Iterator[Any]:
    for number in range(len(data)):
        x: Any = tuple(values[number] for values in data.inputs)
        x = x if len(x) > 1 else x[0]
        yield x if data.targets is None else (x, data.targets[number])


def assert_equal(one: Dataset, other: Dataset) -> None:
    assert len(one.inputs) == len(other.inputs)
    for a, b in zip(one.inputs, other.inputs, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert (one.targets is None) == (other.targets is None)
    if one.targets is not None:
        np.testing.assert_array_equal(one.targets, other.targets)
        assert other.targets is not None
        assert one.targets.dtype == other.targets.dtype
    assert one.class_names == other.class_names


# ---- iterators ----


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("task", [VALUES, CLASSES, TWO, ITSELF], ids="vcti")
@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 40))
def test_an_iterator_gives_what_arrays_give(task: Task, count: int) -> None:
    data = data_of(task, count)
    found = from_iterator(one_by_one(data), task)
    assert_equal(found, data.fit(task))
    assert all(map(is_on_disk, found.inputs))


@pytest.mark.usefixtures("small_parts")
def test_examples_may_be_looser_than_the_tasks() -> None:
    def floats() -> Iterator[Any]:
        yield from [([[0, 0.5], [1, 0]], "yes"), (np.ones((2, 2), np.float32), "no")]

    found = from_iterator(floats(), CLASSES)
    assert found.inputs[0].tolist() == [[[0, 128], [255, 0]], [[255, 255], [255, 255]]]
    assert found.targets is not None
    assert found.targets.tolist() == [1, 0]


def good(number: int) -> Any:
    return np.full(3, number, np.float32), np.zeros(2, np.float32)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (7, r"example 5 of the iterator is not \(x, y\)"),
        ((np.zeros(3), [0, 0], 1), r"example 5 of the iterator is not \(x, y\)"),
        (((np.zeros(3), np.zeros(3)), [0, 0]), "example 5 of the iterator has 2 inputs"),
        ((np.zeros(4), [0, 0]), r"example 5 of the iterator: input 'x' must be float32 \[3\]"),
        ((np.zeros(3), [0, 0, 0]), "example 5 of the iterator: targets must be"),
        ((np.array([0, np.nan, 0]), [0, 0]), "example 5 of the iterator: input 'x' is not finite"),
        ((np.zeros(3), [0, np.inf]), "example 5 of the iterator: the target is not finite"),
        ((["a", "b", "c"], [0, 0]), "example 5 of the iterator: input 'x': <U1; give numbers"),
        ((np.zeros(3), None), "example 5 of the iterator: the target: object; give numbers"),
        (([1, [2], 3], [0, 0]), "example 5 of the iterator: .*inhomogeneous"),
    ],
)
def test_a_bad_example_is_named_by_its_number(bad: Any, message: str) -> None:
    def examples() -> Iterator[Any]:
        yield from map(good, range(5))
        yield bad
        yield from map(good, range(3))

    with pytest.raises(DatasetError, match=message):
        from_iterator(examples(), VALUES)


def test_examples_that_only_fit_alone_are_refused() -> None:
    mixed = [(np.zeros(3), np.zeros(2)), (np.zeros((3, 1)), np.zeros(2))]
    with pytest.raises(DatasetError, match=r"examples 0 to 1 of the iterator: .*same shape"):
        from_iterator(iter(mixed), VALUES)


def test_an_empty_iterator_is_refused() -> None:
    with pytest.raises(DatasetError, match="the iterator gave no example"):
        from_iterator(iter([]), VALUES)


def test_errors_of_the_users_own_code_pass() -> None:
    def broken() -> Iterator[Any]:
        yield good(0)
        raise KeyError("sensor")

    with pytest.raises(KeyError, match="sensor"):
        from_iterator(broken(), VALUES)


def test_functions_that_give_iterators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "streamed_data.py").write_text(
        "import numpy as np\n"
        "def pairs():\n"
        "    for k in range(9):\n"
        "        yield np.full(3, k), [k, -k]\n"
        "def odd():\n"
        "    yield np.zeros(3)\n"
        "def listed(): return [(np.zeros(3), [0, 0])]\n"
        "def alone(): return np.zeros((4, 3))\n"
        "def two(): return np.zeros((4, 3)), np.zeros((4, 2), int)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = load_client_data("streamed_data:pairs", VALUES)
    assert found.inputs[0][:, 0].tolist() == list(range(9))
    with pytest.raises(DatasetError, match=r"'streamed_data:odd': example 0 of the iterator"):
        load_client_data("streamed_data:odd", VALUES)
    with pytest.raises(DatasetError, match=r"returned list; return \(x, y\), an iterator"):
        load_client_data("streamed_data:listed", VALUES)
    assert load_client_data("streamed_data:alone", ITSELF).targets is None
    both = Task(TWO.inputs, Target(TargetKind.INPUT))
    found = load_client_data("streamed_data:two", both)
    assert [a.shape for a in found.inputs] == [(4, 3), (4, 2)]
    assert found.targets is None


def test_a_full_disk_is_one_plain_message(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(small_disk))

    def endless() -> Iterator[Any]:
        while True:
            yield good(1)

    with pytest.raises(DatasetError, match=r"cannot keep examples in .*disk \(No space left"):
        from_iterator(endless(), VALUES)
    monkeypatch.setenv("TMPDIR", str(small_disk / "nowhere"))
    with pytest.raises(TaskError, match=r"nowhere \(No such file or directory\); make room there"):
        ArrayFile((3,), np.float32)


# ---- arrays on disk ----


def on_disk(values: Any) -> Any:
    with ArrayFile(values.shape[1:], values.dtype) as file:
        file.add(values)
        return file.array()


@pytest.mark.usefixtures("small_parts")
def test_arrays_on_disk_behave_like_arrays() -> None:
    values = np.random.default_rng(0).normal(0, 1, (50, 3)).astype(np.float32)
    there = on_disk(values)
    assert is_on_disk(there)
    assert is_on_disk(there[3:9])
    assert not is_on_disk(values)
    assert not is_on_disk(there.astype(np.float64))
    chosen = np.array([4, 1, 1, 49])
    np.testing.assert_array_equal(read(there, chosen), values[chosen])
    assert type(read(there, chosen)) is np.ndarray
    np.testing.assert_array_equal(np.concatenate([*in_parts(there)]), values)
    assert len([*in_parts(there)]) == 10
    for which in (chosen, np.arange(7, 20), values[:, 0] > 0):
        part = taken(there, which)
        np.testing.assert_array_equal(part, values[which])
        assert is_on_disk(part)
    doubled = mapped(there, lambda part: part.astype(np.float64) * 2)
    np.testing.assert_array_equal(doubled, values.astype(np.float64) * 2)
    assert is_on_disk(doubled)
    with pytest.raises(IndexError):
        taken(there, np.array([50]))
    with pytest.raises(ValueError, match="read-only"):
        there[0] = 1


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("task", [VALUES, CLASSES, TWO, ITSELF], ids="vcti")
def test_a_clients_examples_stay_on_disk(task: Task) -> None:
    data = data_of(task, 60)
    there = Examples.of(task, from_iterator(one_by_one(data), task), 0.2, "kitchen")
    here = Examples.of(task, data, 0.2, "kitchen")
    assert there.held_out is not None
    assert here.held_out is not None
    assert_equal(there.training, here.training)
    assert_equal(there.held_out, here.held_out)
    assert there.summary() == here.summary()
    if task.standardizes:
        scaling = merge([Statistics.of(task, here.training.inputs, here.training.targets)])
        there, here = there.scaled(scaling), here.scaled(scaling)
    for found, wanted in zip(there.prepared[0], here.prepared[0], strict=True):
        assert is_on_disk(found)
        np.testing.assert_array_equal(found, wanted)
    found, targets = there.batch(np.array([3, 1, 30]))
    wanted, wanted_targets = here.batch(np.array([3, 1, 30]))
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(targets, wanted_targets)
    assert not is_on_disk(found[0])


@pytest.mark.usefixtures("small_parts")
def test_what_does_not_fit_is_found_on_disk_too() -> None:
    values = np.zeros((40, 3), np.float32)
    values[33, 1] = np.nan
    with pytest.raises(DatasetError, match=r"input 'x' is not finite \(example 33\)"):
        Dataset((on_disk(values),)).fit(ITSELF)
    tokens = np.zeros((40, 2), np.int32)
    tokens[39] = 5
    with pytest.raises(DatasetError, match="holds tokens from 0 to 5"):
        Dataset((np.zeros((40, 3), np.float32), on_disk(tokens)), np.zeros((40, 2), np.uint8)).fit(
            TWO
        )
    classes = on_disk(np.arange(40) // 20 * 2)
    with pytest.raises(DatasetError, match="targets go from 0 to 2"):
        Dataset((np.zeros((40, 2, 2), np.uint8),), classes).fit(CLASSES)


# ---- training ----


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("name", ["classes of windows", "labels", "the input", "several outputs"])
def test_keras_trains_from_disk_to_the_same_bits(name: str) -> None:
    pytest.importorskip("tensorflow_model_optimization")
    from support.tasks import TASKS, random_data

    from featherfed.models.optimized import FederatedModel

    build, task = TASKS[name]
    data = random_data(task, 45)
    there = from_iterator(one_by_one(data), task)
    model = FederatedModel(build(), None, task)
    start, ends = model.get_weights(), []
    for examples in (data, there, data, there):
        model.set_weights(start)
        loss = model.fit(
            examples.inputs, examples.targets, epochs=3, batch_size=7, learning_rate=0.1, seed=5
        )
        ends.append((loss, [weights.tobytes() for weights in model.get_weights()]))
    assert ends[0] == ends[1] == ends[2] == ends[3]
    assert ends[0][1] != [weights.tobytes() for weights in start]


CLIENT = """
import sys
import numpy as np
from featherfed.api.memory import peak_memory
from featherfed.api.runtime import choose_runtime
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.datasets.stream import from_iterator
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.plan import manifest_of, task_of
from featherfed.proto import federation_pb2 as pb
from featherfed.tasks.scaling import Statistics, merge

runtime = choose_runtime(sys.argv[1], 1)
plan = pb.Plan.FromString(open("plan", "rb").read())
step = open("step", "rb").read()
manifest, task = manifest_of(plan), task_of(plan)

def take_part(count):
    def all_():
        draw = np.random.default_rng(0)
        for _ in range(count):
            x = draw.random(1000, np.float32)
            yield x, x[:10].sum()
    examples = Examples.of(task, from_iterator(all_(), task), 0.1, "kitchen")
    examples.summary()
    trainer = runtime.make_trainer(plan, manifest, step, examples, "kitchen", lambda *_: None)
    data = examples.training
    trainer.set_scaling(merge([Statistics.of(task, data.inputs, data.targets)]))
    trained = trainer.train(initial_weights(manifest, 0), pb.Train(round=1))
    assert trainer.evaluate(trained.weights)[0] == round(count / 10)

take_part(500)
idle = peak_memory()
take_part(100_000)
print(peak_memory() - idle, "MB")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("runtime", ["keras", "litert"])
def test_400_mb_of_examples_need_no_400_mb_of_memory(tmp_path: Path, runtime: str) -> None:
    pytest.importorskip("tensorflow_model_optimization")
    import tf_keras

    from featherfed.exporter.training_step import TrainingStepOptions, export_training_step
    from featherfed.models.optimized import FederatedModel
    from featherfed.server.settings.plan import make_plan
    from featherfed.server.settings.settings import Settings

    run = Settings.model_validate({
        "training": {"epochs": 1, "batch_size": 200},
        "task": {
            "inputs": [{"name": "x", "dtype": "float32", "shape": [1000], "standardize": True}],
            "target": {"kind": "values"},
        },
    })  # fmt: skip
    task = run.explicit_task
    assert task is not None
    layers = [tf_keras.layers.InputLayer((1000,)), tf_keras.layers.Dense(1)]
    model = FederatedModel(tf_keras.Sequential(layers), None, task)
    plan = make_plan(run, task, model.model_json, model.manifest)
    (tmp_path / "plan").write_bytes(plan.SerializeToString())
    step = export_training_step(model, TrainingStepOptions(200, "sgd"))
    (tmp_path / "step").write_bytes(step)
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, runtime],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    needed = int(done.stdout.split()[0])
    assert needed < 100, f"{needed} MB"
