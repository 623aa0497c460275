"""Tasks of several targets, on models of several outputs: data, training, scores, files, runs."""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_model_optimization")

from support.tasks import TASKS, random_data

import featherfed
from featherfed.cli.predict import predict
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.masks import magnitude_masks, mask_weights
from featherfed.datasets.dataset import Dataset, DatasetError
from featherfed.datasets.function import call_function
from featherfed.datasets.sources import load_client_data
from featherfed.datasets.stream import from_iterator
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.keras_trainer import KerasTrainer
from featherfed.edge_client.litert_trainer import LitertTrainer
from featherfed.edge_client.plan import task_of
from featherfed.exporter.training_step import TrainingStepOptions, export_training_step
from featherfed.models.errors import ModelError
from featherfed.models.export import KINDS, ModelFiles
from featherfed.models.importing import importing_tensorflow
from featherfed.models.measure import measure
from featherfed.models.method import Optimization
from featherfed.models.optimized import FederatedModel
from featherfed.models.tflite import Predictor, TfliteModel
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.plan_terms import Loss, Method
from featherfed.server.coordinator.data_check import check_data
from featherfed.server.coordinator.standardization import check_statistics
from featherfed.server.errors import Refused, ServerError
from featherfed.server.settings.settings import Settings, settings_of
from featherfed.tasks.errors import TaskError
from featherfed.tasks.message import read_task, task_message
from featherfed.tasks.metrics import is_better
from featherfed.tasks.records import records
from featherfed.tasks.scaling import Scaling, Statistics, merge
from featherfed.tasks.scoring import Scoring
from featherfed.tasks.task import MAX_TARGETS, Input, Target, TargetKind, Task, Window

with importing_tensorflow():
    import tf_keras

SENSORS = Input("sensors", "float32", (3,), standardize=True, columns=("x", "y", "z"))
ACTIVITY = Target("class", (), ("still", "moving"), columns=("state",), name="activity")  # type: ignore[arg-type]
PULSE = Target("values", (), standardize=True, columns=("bpm",), name="pulse", weight=0.5)  # type: ignore[arg-type]
TASK = Task((SENSORS,), Target.several(ACTIVITY, PULSE), metrics=("pulse_mae", "activity_accuracy"))
RUN = """
name = "wrist"
output = "out"
rounds = 3

[model]
name = "{model}"

[training]
epochs = 2
learning_rate = 0.1

[server]
port = 0

[clients]
minimum = 2
quorum = 1.0

[task]
metrics = ["pulse_mae", "activity_accuracy"]

[[task.inputs]]
name = "sensors"
dtype = "float32"
columns = ["x", "y", "z"]
standardize = true

[[task.targets]]
name = "activity"
kind = "class"
class_names = ["still", "moving"]
columns = ["state"]

[[task.targets]]
name = "pulse"
kind = "values"
columns = ["bpm"]
standardize = true
weight = 0.5

[evaluation]
dataset = {dataset}
"""


def two_outputs() -> Any:
    layers = tf_keras.layers
    x = tf_keras.Input((3,), name="sensors")
    body = layers.Dense(8, "tanh", name="body")(x)
    activity = layers.Dense(2, "softmax", name="z_activity")(body)
    return tf_keras.Model(x, [activity, layers.Dense(1, name="a_pulse")(body)])


def examples(seed: int, count: int = 120) -> tuple[Any, dict[str, Any]]:
    x = np.random.default_rng(seed).normal([1, 50, -3], [1, 9, 2], (count, 3)).astype(np.float32)
    moving = x[:, 0] - x[:, 2] / 2 > 2.5
    return x, {"activity": moving.astype(np.int64), "pulse": 40 + x[:, 1] + 20 * moving}


def write_table(path: Path, seed: int) -> None:
    x, y = examples(seed)
    names = np.array(["still", "moving"])[y["activity"]]
    rows = [
        f"{a:.6g},{b:.6g},{c:.6g},{name},{pulse:.6g}"
        for (a, b, c), name, pulse in zip(x, names, y["pulse"], strict=True)
    ]
    path.write_text("\n".join(["x,y,z,state,bpm", *rows]), "utf-8")


# ---- what a task can say ----


def test_each_target_has_its_loss_weight_and_metrics() -> None:
    task = TASKS["several outputs"][1]
    assert task.target.names == ("state", "signs", "pulse")
    assert task.loss is None
    losses = [target.loss for target in task.target.parts]
    assert losses == [
        Loss.SPARSE_CATEGORICAL_CROSSENTROPY, Loss.BINARY_CROSSENTROPY, Loss.HUBER,
    ]  # fmt: skip
    assert task.metrics == (
        "state_accuracy", "signs_f1", "signs_auc", "pulse_mae", "pulse_rmse",
    )  # fmt: skip
    assert task.loss_text == (
        "sparse_categorical_crossentropy (state) + 2 binary_crossentropy (signs) + "
        "0.3 huber (pulse)"
    )
    assert (TASK.leading, TASK.standardizes, TASK.is_images) == ("pulse_mae", True, False)
    assert is_better("pulse_mae", 1, 2)
    assert is_better("activity_accuracy", 2, 1)
    for one in (task, TASK):
        assert Task.from_dict(json.loads(json.dumps(one.as_dict()))) == one
        message = task_message(one)
        assert read_task(pb.Task.FromString(message.SerializeToString()), "") == one
        assert task_of(pb.GetTaskReply(task=message)) == one


def test_a_run_file_says_it() -> None:
    import tomllib

    settings = Settings.model_validate(
        tomllib.loads(RUN.format(model="m.keras", dataset='"t.npz"'))
    )
    assert settings.explicit_task == TASK
    again = Settings.model_validate_json(settings.model_dump_json(exclude={"evaluation"}))
    assert again.explicit_task == TASK


def values(name: str, **options: Any) -> Target:
    return Target(TargetKind.VALUES, name=name, **options)


REFUSED: dict[str, tuple[Any, str]] = {
    "one": (lambda: Target.several(PULSE), "2 to 16 of them, not 1; give a single one as"),
    "none": (lambda: Target.several(), "2 to 16 of them, not 0"),
    "too many": (
        lambda: Target.several(*(values(f"t{n}") for n in range(MAX_TARGETS + 1))),
        "2 to 16 of them, not 17",
    ),
    "one name": (lambda: Target.several(values("a"), values("a")), "two targets have one name"),
    "one name in other letters": (
        lambda: Target.several(values("a"), values("A")), "two targets have one name",
    ),
    "no name": (lambda: Target.several(values("a"), Target(TargetKind.VALUES)), "has no name"),
    "a strange name": (lambda: values("a b"), "'a b' cannot be the name of a target"),
    "an endless name": (lambda: values("a" * 41), "at most 39 letters"),
    "the input": (
        lambda: Target.several(values("a"), Target(TargetKind.INPUT, name="b")),
        "of kind input cannot be one of several; use class, labels or values",
    ),
    "several in several": (
        lambda: Target.several(values("a"), TASK.target), "of kind several cannot be one",
    ),
    "a shape for all": (
        lambda: Target(TargetKind.SEVERAL, (3,), parts=(values("a"), values("b"))), "by itself",
    ),
    "no weight": (lambda: values("a", weight=0.0), "0 cannot be the weight of a loss"),
    "a NaN for weight": (lambda: values("a", weight=math.nan), "nan cannot be the weight"),
    "a huge weight": (lambda: values("a", weight=1e9), "1e+09 cannot be the weight"),
    "a loss for all": (
        lambda: Task((SENSORS,), TASK.target, Loss.HUBER),
        "each has its own loss; give huber with the target",
    ),
    "a loss that does not fit": (
        lambda: Task((SENSORS,), Target.several(values("a", loss=Loss.BINARY_CROSSENTROPY), PULSE)),
        "target 'a': the loss binary_crossentropy does not fit",
    ),
    "a metric of nobody": (
        lambda: Task((SENSORS,), TASK.target, metrics=("accuracy",)),
        "'accuracy' is of no target; with several of them, a metric is named after its target, "
        "such as activity_accuracy (targets: activity, pulse)",
    ),
    "a metric of another kind": (
        lambda: Task((SENSORS,), TASK.target, metrics=("pulse_accuracy",)),
        "target 'pulse': the metric accuracy does not fit a target of kind values; use mae",
    ),
    "an unknown metric": (
        lambda: Task((SENSORS,), TASK.target, metrics=("pulse_best",)), "no metric 'best'",
    ),
    "a metric twice": (
        lambda: Task((SENSORS,), TASK.target, metrics=("pulse_mae", "pulse_mae")), "named twice",
    ),
    "a name alone": (lambda: Task((SENSORS,), values("a")), "a single target has no name"),
    "a forecast": (
        lambda: Task(
            (Input("x", "float32", (4, 1), columns=("x",)),),
            Target.several(values("a", shape=(2,)), values("b", shape=(2,))),
            window=Window(4, horizon=2),
        ),
        "a horizon is for a single target",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_a_task_that_cannot_be_says_why(make: Any, says: str) -> None:
    with pytest.raises(TaskError) as raised:
        make()
    assert says in str(raised.value)


def wild(change: Any) -> pb.Task:
    message = task_message(TASK)
    change(message.target.parts)
    return message


def endless(parts: Any) -> None:
    for number in range(100_000):
        parts.add(kind="values", name=f"t{number}", loss="huber", weight=1)


def nested(parts: Any) -> None:
    target = parts[0]
    for _ in range(40):
        target = target.parts.add(kind="several", name="a")


HOSTILE: dict[str, tuple[Any, str]] = {
    "endless targets": (endless, "at most 16"),
    "nested targets": (nested, "several itself"),
    "a name twice": (lambda parts: setattr(parts[0], "name", "pulse"), "two targets have one name"),
    "a name that forges a line": (lambda p: setattr(p[0], "name", "a\nb"), "cannot be the name"),
    "no name": (lambda parts: setattr(parts[0], "name", ""), "has no name"),
    "an unknown loss": (lambda parts: setattr(parts[0], "loss", "\x1b[2J"), "names the loss"),
    "no loss": (lambda parts: setattr(parts[0], "loss", ""), "names the loss ''"),
    "an unknown kind": (lambda parts: setattr(parts[0], "kind", "poem"), "kind of target 'poem'"),
    "a weight below 0": (lambda parts: setattr(parts[0], "weight", -1), "weight of a loss"),
    "an infinite weight": (lambda p: setattr(p[0], "weight", math.inf), "weight of a loss"),
    "no target": (lambda parts: parts.__delitem__(slice(None)), "2 to 16"),
    "endless classes": (
        lambda parts: parts[0].class_names.extend(["x"] * (2**16 + 1)), "too many classes",
    ),
    "a huge shape": (lambda parts: parts[1].shape.extend([2**31] * 3), "not possible"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "says"), HOSTILE.values(), ids=HOSTILE)
def test_a_client_refuses_a_plan_of_hostile_targets(change: Any, says: str) -> None:
    began = time.monotonic()
    with pytest.raises(ClientError, match="the server's task") as raised:
        task_of(pb.GetTaskReply(task=wild(change)))
    assert says in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600
    assert time.monotonic() - began < 3


def test_endless_metrics_are_refused() -> None:
    message = task_message(TASK)
    message.metrics.extend(["pulse_mae"] * 100_000)
    with pytest.raises(ClientError, match="at most 32 are"):
        task_of(pb.GetTaskReply(task=message))


def test_a_run_file_that_cannot_be_says_why() -> None:
    part = {"name": "a", "kind": "values"}
    inputs = [{"name": "x", "dtype": "float32", "shape": [3]}]
    base: dict[str, Any] = {"name": "r", "output": "o", "model": {"name": "m.keras"}}
    for task, says in {
        "both": ({"target": {"kind": "values"}, "targets": [part]}, "not both"),
        "neither": ({}, "the task needs task.target, or task.targets"),
        "one": ({"targets": [part]}, "give a single one as the target"),
        "many": ({"targets": [part] * 17}, "at most 16"),
        "a loss": ({"targets": [part, {**part, "name": "b"}]}, "each has its own loss"),
    }.values():
        loss = {"training": {"loss": "huber"}} if says.startswith("each") else {}
        with pytest.raises(ServerError, match=says):
            settings_of({**base, **loss, "task": {"inputs": inputs, **task}})


# ---- data ----


def module(x: Any, y: Any) -> Dataset:
    return Dataset((x,), y).fit(TASK)


def test_data_come_as_npz_table_function_and_iterator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = examples(0, 50)
    expected = Dataset((x,), y).fit(TASK)
    assert expected.targets is not None
    assert expected.targets.dtype.names == ("activity", "pulse")
    np.testing.assert_array_equal(expected.targets["activity"], y["activity"])
    write_table(tmp_path / "data.csv", 0)
    found = load_client_data(str(tmp_path / "data.csv"), TASK).take(np.arange(50))
    assert found.targets is not None
    np.testing.assert_array_equal(found.targets["activity"], y["activity"])
    np.testing.assert_allclose(found.targets["pulse"], y["pulse"], rtol=1e-5)

    np.savez(tmp_path / "own.npz", x=x, y_pulse=y["pulse"], y_activity=y["activity"])
    expected.save(tmp_path / "saved.npz")
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def whole():\n"
        "    with np.load('own.npz') as f:\n"
        "        return f['x'], {'activity': f['y_activity'], 'pulse': f['y_pulse']}\n"
        "def each():\n"
        "    x, y = whole()\n"
        "    for n in range(len(x)):\n"
        "        yield x[n], {name: values[n] for name, values in y.items()}\n",
        "utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for spec in ("own.npz", "saved.npz", "mine:whole", "mine:each"):
        data = load_client_data(spec, TASK)
        np.testing.assert_array_equal(data.targets, expected.targets)
        np.testing.assert_array_equal(data.inputs[0], x)
    taken = expected.take([3, 1])
    np.testing.assert_array_equal(taken.targets["pulse"], expected.targets["pulse"][[3, 1]])  # type: ignore[index]


def test_windows_end_with_the_targets_of_their_last_row(tmp_path: Path) -> None:
    task = Task(
        (Input("sensors", "float32", (5, 3), columns=("x", "y", "z")),), TASK.target,
        window=Window(5, 5),
    )  # fmt: skip
    write_table(tmp_path / "data.csv", 0)
    data = load_client_data(str(tmp_path / "data.csv"), task)
    _, y = examples(0)
    assert data.targets is not None
    np.testing.assert_array_equal(data.targets["activity"], y["activity"][4::5])


def changed(**changes: Any) -> tuple[Any, dict[str, Any]]:
    x, y = examples(0, 10)
    return x, {**y, **changes}


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (None, "have none"),
        (np.zeros(10), "targets of no name, and the task has activity, pulse; give a dict"),
        ({"activity": np.zeros(10, int)}, "have the targets activity, and the task has"),
        (changed(other=np.zeros(10))[1], "have the targets activity, pulse, other"),
        (changed(pulse=np.zeros(9))[1], "different numbers of examples: activity 10, pulse 9"),
        (changed(pulse=np.zeros((10, 2)))[1], "target 'pulse': targets must be float32 []"),
        (changed(pulse=np.full(10, np.nan))[1], "target 'pulse': the target is not finite"),
        (changed(activity=np.full(10, 2))[1], "target 'activity': targets go from 2 to 2"),
        (changed(activity=np.zeros(10))[1], "target 'activity': the classes: float64; give"),
        (changed(activity=["run"] * 10)[1], "target 'activity': 'run' is not one of the classes"),
        (changed(pulse=3.0)[1], "'pulse' is a single value"),
        (changed(pulse=[None] * 10)[1], "'pulse' holds Python objects"),
        ({}, "need names"),
    ],
)
def test_data_that_do_not_fit_say_where(y: Any, says: str) -> None:
    with pytest.raises(DatasetError) as raised:
        module(examples(0, 10)[0], y)
    assert says in str(raised.value)


def test_files_and_functions_that_do_not_fit_say_where(tmp_path: Path) -> None:
    x, y = examples(0, 10)
    np.savez(tmp_path / "half.npz", x=x, y_pulse=y["pulse"])
    np.savez(tmp_path / "one.npz", x=x, y=y["pulse"])
    for name, says in {"half": "y_activity is missing", "one": "y_activity, y_pulse are"}.items():
        with pytest.raises(DatasetError, match=f"{name}.npz: holds .*{says}"):
            load_client_data(str(tmp_path / f"{name}.npz"), TASK)
    single = Task((SENSORS,), Target(TargetKind.VALUES))
    with pytest.raises(DatasetError, match="the task has one without a name"):
        Dataset((x,), y).fit(single)
    with pytest.raises(DatasetError, match="example 1 of the iterator"):
        from_iterator(iter([(x[0], {"activity": 1, "pulse": 2.0}), (x[1], 3.0)]), TASK)
    with pytest.raises(DatasetError, match="has no function nothing"):
        call_function("support.tasks:nothing", TASK)


def test_a_server_refuses_data_that_do_not_fit() -> None:
    good = Examples.of(TASK, Dataset(*_fit(examples(0))), 0.1, "a").summary()
    check_data(good, TASK)
    check_statistics(good, TASK)
    for change, says in (
        (lambda d: d.targets.__delitem__(1), "1 targets by name, the task has activity, pulse"),
        (lambda d: d.target.CopyFrom(d.targets[0]), "targets by name"),
        (lambda d: setattr(d.targets[0], "dtype", "float32"), "target 'activity': the data are"),
        (lambda d: setattr(d.targets[0], "num_classes", 3), "'activity': classes up to 2"),
        (lambda d: setattr(d.targets[0], "num_classes", 0), "'activity': classes up to -1"),
        (lambda d: d.class_names.append("x"), "class names"),
    ):
        data = pb.DataSummary()
        data.CopyFrom(good)
        change(data)
        with pytest.raises(Refused) as raised:
            check_data(data, TASK)
        assert says in str(raised.value)
    for change in (
        lambda s: s.targets.__delitem__(0),
        lambda s: s.targets[0].CopyFrom(s.targets[1]),
        lambda s: s.target.CopyFrom(s.targets[1]),
        lambda s: s.targets.extend([s.targets[1]] * 100),
    ):
        data = pb.DataSummary()
        data.CopyFrom(good)
        change(data.statistics)
        with pytest.raises(Refused, match="statistics"):
            check_statistics(data, TASK)


def _fit(data: tuple[Any, Any]) -> tuple[Any, Any]:
    return (data[0],), data[1]


# ---- scores ----


def test_scores_are_those_of_each_target_and_the_loss_their_weighted_sum() -> None:
    data = Dataset(*_fit(examples(3))).fit(TASK)
    assert data.targets is not None
    scaling = merge([Statistics.of(TASK, data.inputs, data.targets)])
    assert scaling.targets[0] is None
    rng = np.random.default_rng(0)
    p = rng.random((120, 1))
    answers = {"activity": np.concatenate([p, 1 - p], 1), "pulse": rng.normal(0, 1, (120, 1))}
    outputs = records({name: a.astype(np.float32) for name, a in answers.items()})
    scoring = Scoring(TASK, scaling)
    sums = scoring.sums(outputs, data.inputs, data.targets)
    scoring.check(sums)
    found = scoring.scores(sums)
    assert list(found) == ["loss", "pulse_mae", "activity_accuracy"]
    total = 0.0
    for number, part in enumerate(TASK.parts):
        name = TASK.target.names[number]
        alone = Scoring(part, Scaling(scaling.inputs, scaling.targets[number]))
        scores = alone.scores(alone.sums(outputs[name], data.inputs, data.targets[name]))
        total += TASK.target.parts[number].weight * scores["loss"]
        for metric in part.metrics:
            assert found[f"{name}_{metric}"] == scores[metric]
    assert found["loss"] == pytest.approx(total)
    with pytest.raises(TaskError, match="the metric activity_accuracy that no examples give"):
        scoring.check(np.array([120, 1, 1, 120, -1, 120], float))


# ---- training ----


def trainers(model: FederatedModel, data: Dataset, scaling: Scaling) -> list[Any]:
    method = model.optimization.method
    options = TrainingStepOptions(16)
    plan = pb.Plan(
        model_json=model.model_json, seed=1,
        training=pb.Training(epochs=1, batch_size=16, learning_rate=0.05, optimizer="sgd"),
        optimization=pb.Optimization(method=method.value, num_clusters=16),
    )  # fmt: skip
    step = export_training_step(model, options)
    both = [
        KerasTrainer(plan, model.manifest, Examples(model.task, data, data), client="a"),
        LitertTrainer(
            plan, model.manifest, step, Examples(model.task, data, data), client="a", trusted=False
        ),
    ]
    for trainer in both:
        trainer.set_scaling(scaling)
    return both


@pytest.mark.parametrize(
    ("method", "sparsity", "most"),
    [
        ("none", 0.0, 1e-6),
        pytest.param("prune", 0.5, 1e-6, marks=pytest.mark.slow),
        pytest.param("qat", 0.0, 2e-2, marks=pytest.mark.slow),  # a level of its ranges
    ],
)
def test_litert_trains_two_outputs_as_keras_does(method: str, sparsity: float, most: float) -> None:
    data = Dataset(*_fit(examples(0))).fit(TASK)
    scaling = merge([Statistics.of(TASK, data.inputs, data.targets)])
    model = FederatedModel(two_outputs(), Optimization(Method(method)), TASK)
    start = model.first_weights() or initial_weights(model.manifest, 0)
    start = mask_weights(start, magnitude_masks(model.manifest, start, sparsity))
    train = pb.Train(round=1, version=0, slots=1, sparsity=sparsity)
    keras, litert = trainers(model, data, scaling)
    ends = [trainer.train(start, train) for trainer in (keras, litert)]
    assert (
        max(float(np.abs(w - s).max()) for w, s in zip(ends[0].weights, start, strict=True)) > 0.01
    )
    for one, other in zip(ends[0].weights, ends[1].weights, strict=True):
        np.testing.assert_allclose(one, other, atol=most)
    assert ends[0].loss == pytest.approx(ends[1].loss, rel=1e-2 if method == "qat" else 1e-5)
    scoring = Scoring(TASK, scaling)
    scores = [scoring.scores(trainer.evaluate(ends[0].weights)) for trainer in (keras, litert)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prune", "cluster", "qat"])
def test_methods_and_files_of_several_outputs(method: str, tmp_path: Path) -> None:
    build, task = TASKS["several outputs"]
    model = FederatedModel(build(), Optimization(Method(method)), task)
    data = random_data(task, 40)
    model.fit(
        data.inputs, data.targets, learning_rate=0.1, sparsity=0.5 if method == "prune" else 0.0
    )
    expected = model.evaluate(data.inputs, data.targets)
    files = ModelFiles(model, tmp_path, data.inputs)
    files.write_keras()
    for kind in KINDS:
        found = TfliteModel(files.write_tflite(kind)).evaluate(data.inputs, data.targets)
        far = 1e-3 if method == "cluster" else 0.2
        assert found["loss"] == pytest.approx(expected["loss"], rel=max(far, 0.1)), kind


def test_a_model_that_does_not_fit_says_how() -> None:
    x = tf_keras.Input((3,))
    one, two = (tf_keras.layers.Dense(n, name=f"d{n}")(x) for n in (1, 2))
    for outputs, says in (
        ([one], r"has 1 outputs \(\[1\]\), and the task the targets activity, pulse"),
        ([one, two], r"'activity' the model answers with \[1\], the task needs \[2\] \(class\)"),
        ({"a": two, "b": one}, "as a dictionary; give them as a list"),
    ):
        with pytest.raises(ModelError, match=says):
            FederatedModel(tf_keras.Model(x, outputs), task=TASK)
    with pytest.raises(ModelError, match="the model answers with"):
        FederatedModel(two_outputs(), task=Task((SENSORS,), Target(TargetKind.VALUES)))
    pictures = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4)
    flat = tf_keras.layers.Flatten()(image := tf_keras.Input((8, 8, 1)))
    ends = tf_keras.Model(image, [tf_keras.layers.Dense(4, name=name)(flat) for name in "ab"])
    with pytest.raises(DatasetError, match="the model has 2 outputs; say what is learned"):
        featherfed.simulate(ends, clients=[pictures], progress=False)


# ---- runs ----


@pytest.mark.parametrize("test", [None, 9])
def test_a_simulation(test: int | None, tmp_path: Path) -> None:
    held = None if test is None else examples(test)
    clients = {"a": examples(1), "b": examples(2)}
    history = featherfed.simulate(
        two_outputs(), TASK, clients=clients, test=held, rounds=4, epochs=4,
        learning_rate=0.1, uplink="exact", progress=False,
    )  # fmt: skip
    first, final = history.rounds[0].scores, history.final
    assert set(final) == {"loss", "pulse_mae", "activity_accuracy"}
    assert final["pulse_mae"] < 0.9 * first["pulse_mae"]  # type: ignore[operator]
    assert final["activity_accuracy"] > 0.9  # type: ignore[operator]
    assert history.metrics["metric"] == {"name": "pulse_mae", "larger_is_better": False}
    x, y = examples(9)
    answers = history.predict(x)
    assert np.abs(answers["pulse"][:, 0] - y["pulse"]).mean() < 12  # beats a minute
    if held is not None:
        by_hand = float(np.abs(answers["pulse"][:, 0] - y["pulse"]).mean())
        assert by_hand == pytest.approx(final["pulse_mae"], rel=1e-4)
        right = (answers["activity"].argmax(1) == y["activity"]).mean()
        assert right == pytest.approx(final["activity_accuracy"])


def test_files_answer_in_the_units_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Dataset(*_fit(examples(0))).fit(TASK)
    scaling = merge([Statistics.of(TASK, data.inputs, data.targets)])
    model = FederatedModel(two_outputs(), task=TASK)
    prepared = scaling.prepare(data.inputs)
    model.fit(prepared, scaling.prepare_target(data.targets), epochs=10, learning_rate=0.1)  # type: ignore[arg-type]
    expected = model.evaluate(prepared, data.targets, scaling)
    files = ModelFiles(model, tmp_path, prepared, scaling)
    data.save(tmp_path / "data.npz")
    for kind, far in {"float32": 1e-4, "float16": 0.01, "dynamic": 0.05, "int8": 0.2}.items():
        path = files.write_tflite(kind)
        model_of_file = TfliteModel(path)
        assert model_of_file.task == TASK
        assert model_of_file.evaluate(data.inputs, data.targets) == pytest.approx(expected, rel=far)
    path = tmp_path / "model_int8.tflite"
    figures = measure(path, tmp_path / "data.npz")
    assert figures.num_examples == 120
    assert figures.scores == pytest.approx(expected, rel=0.2)
    np.savez(tmp_path / "x.npz", x=data.inputs[0])
    predict(path, [tmp_path / "x.npz"])
    line = capsys.readouterr().out.splitlines()[1]
    assert re.search(r"activity: (still|moving) \(0\.\d{3}\); pulse: [\d.]+$", line)
    answers = Predictor(path).predict(data.inputs[0])
    assert 60 < answers["pulse"].mean() < 160
    assert TfliteModel(path).predict([v[:0] for v in prepared]).dtype == answers.dtype


def test_a_file_whose_outputs_its_task_does_not_name_is_refused(tmp_path: Path) -> None:
    from featherfed.models.tflite import FileTask, with_task

    plain = Input("sensors", "float32", (3,))
    task = Task((plain,), Target.several(ACTIVITY, Target(TargetKind.VALUES, name="pulse")))
    model = FederatedModel(two_outputs(), task=task)
    content = ModelFiles(model, tmp_path, None).tflite("float32")
    assert TfliteModel(content).task == task
    bare = content[: content.index(b"PK\x03\x04")]
    for names in ((), ("z_activity",), ("z_activity", "other"), ("z_activity",) * 2):
        described = FileTask(task, Scaling.none(task), (), names)
        with pytest.raises(ModelError, match="does not have the outputs that its task names"):
            TfliteModel(with_task(bare, described))
    swapped = FileTask(task, Scaling.none(task), (), ("a_pulse", "z_activity"))
    with pytest.raises(ModelError, match="for the target 'activity' the model answers with"):
        TfliteModel(with_task(bare, swapped))
    single = Task((plain,), Target(TargetKind.VALUES))
    with pytest.raises(ModelError, match="has 2 outputs; it needs one"):
        TfliteModel(with_task(bare, FileTask(single, Scaling.none(single))))


@pytest.mark.slow  # processes with TensorFlow
def test_a_run_over_grpc_without_data_on_the_server(tmp_path: Path) -> None:
    """Tables at a client with Keras and one with LiteRT; scores, files, report and card."""
    two_outputs().save(tmp_path / "m.keras")
    text = RUN.format(model=tmp_path / "m.keras", dataset='"none"')
    text = text.replace('[evaluation]\ndataset = "none"\n', "")
    (tmp_path / "run.toml").write_text(text.replace('"out"', f'"{tmp_path / "out"}"'), "utf-8")
    run = featherfed.Run.from_toml(tmp_path / "run.toml")
    errors: list[BaseException] = []

    async def address() -> str:
        while run.address is None:
            await asyncio.sleep(0.05)
        return run.address

    def take_part(name: str, runtime: str, seed: int) -> None:
        try:
            write_table(tmp_path / f"{name}.csv", seed)
            featherfed.Client(
                asyncio.run(address()), data=str(tmp_path / f"{name}.csv"), name=name,
                state_dir=tmp_path / name, runtime=runtime,
            ).run(progress=False)  # fmt: skip
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=take_part, args=(name, runtime, seed), daemon=True)
        for seed, (name, runtime) in enumerate({"a": "keras", "b": "litert"}.items())
    ]
    for thread in threads:
        thread.start()
    assert run.serve() is featherfed.Outcome.FINISHED
    for thread in threads:
        thread.join(60)
    assert errors == []
    told = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    assert {c["runtime"] for c in told["rounds"][0]["clients"]} == {"keras", "litert"}
    assert told["task"] == TASK.as_dict()
    assert "sparse_categorical_crossentropy (activity) + 0.5" in told["settings"]["loss"]
    assert told["final"]["scores"]["pulse_mae"] < told["rounds"][0]["scores"]["pulse_mae"]
    assert told["final"]["scores"]["activity_accuracy"] > 0.7
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "activity (one of 2 classes) and pulse (a number)" in page
    assert "pulse MAE" in page
    card = (tmp_path / "out" / "model_card.md").read_text("utf-8")
    assert "Output `activity`: One probability a class" in card
    assert "Output `pulse`: One number, standardised in the file" in card
    answers = Predictor(tmp_path / "out" / "model_float32.tflite").predict(examples(5)[0])
    assert answers.dtype.names == ("activity", "pulse")
