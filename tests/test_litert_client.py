"""The client without TensorFlow: its trainer, the step it is given, and how that reaches it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from support.clients import Pull, profile
from support.federation import Federation

from featherfed.api import training_step
from featherfed.api.build import build_model, run_task
from featherfed.api.training_step import offered_step
from featherfed.compression.arrays import Array
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.masks import magnitude_masks, mask_weights
from featherfed.compression.stages.zstd import Zstd
from featherfed.datasets.dataset import Dataset
from featherfed.datasets.sources import load_train_test
from featherfed.edge_client.errors import ClientError, Rejected
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.keras_trainer import KerasTrainer
from featherfed.edge_client.litert_trainer import LitertTrainer
from featherfed.edge_client.session import Session
from featherfed.edge_client.state import ClientState
from featherfed.edge_client.step_interpreter import TrainingStep
from featherfed.edge_client.step_tensors import StepTensors
from featherfed.edge_client.trainer import TrainingResult
from featherfed.edge_client.training_step import MAX_STEP_BYTES, check_step, unpack_step
from featherfed.models.optimized import FederatedModel
from featherfed.models.serialization import to_json
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.plan_terms import Loss
from featherfed.proto.step_file import join_step, split_step
from featherfed.server.coordinator.exported_step import ExportedStep
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.settings import Settings
from featherfed.tasks.scoring import Scoring
from featherfed.tasks.task import Input, Target, TargetKind, Task, image_task

Start = Callable[..., Federation]

EXAMPLES = 150  # the last batch of an epoch is a short one
BATCH = 32


@cache
def digits() -> tuple[Dataset, Dataset]:
    train, test = load_train_test("digits")
    return train.take(np.arange(EXAMPLES)), test


@dataclass(frozen=True)
class World:
    """A plan, and all that its two kinds of clients need."""

    plan: pb.Plan
    model: FederatedModel
    step: bytes

    @property
    def manifest(self) -> Manifest:
        return self.model.manifest

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [spec.shape for spec in self.manifest]

    def weights(self) -> list[Array]:
        return initial_weights(self.manifest, 0)

    def litert(self, client: str = "a", step: bytes | None = None, **options: Any) -> LitertTrainer:
        # In this process, which is faster; tests/test_step_process.py has those in their own.
        return LitertTrainer(
            self.plan, self.manifest, step or self.step, self.examples(),
            client=client, **{"trusted": True, **options},
        )  # fmt: skip

    def keras(self, client: str = "a") -> KerasTrainer:
        return KerasTrainer(self.plan, self.manifest, self.examples(), client=client)

    def examples(self) -> Examples:
        return Examples(self.model.task, *digits())


@cache
def world(model: str = "mlp", method: str = "none", optimizer: str = "sgd") -> World:
    settings = Settings.model_validate({
        "model": {"name": model},
        "training": {"epochs": 2, "learning_rate": 0.05, "optimizer": optimizer},
        "optimization": {"method": method},
    })  # fmt: skip
    built = digits_model(settings)
    step = offered_step(built, settings)
    assert step.content, step.missing
    plan = make_plan(settings, built.task, built.model_json, built.manifest)
    return World(plan, built, step.content)


def digits_model(settings: Settings) -> FederatedModel:
    return build_model(settings, run_task(settings, digits()[1]))


def task(round_: int = 1, sparsity: float = 0.0) -> pb.Train:
    return pb.Train(round=round_, version=round_ - 1, sparsity=sparsity, slots=1)


def distance(one: TrainingResult, other: TrainingResult) -> float:
    pairs = zip(one.weights, other.weights, strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


# ---- training ----


@pytest.mark.parametrize(
    ("model", "method", "optimizer", "sparsity"),
    [
        ("mlp", "none", "sgd", 0.0),
        ("mlp", "none", "momentum", 0.0),
        ("mlp", "none", "nesterov", 0.0),
        ("mlp", "none", "adam", 0.0),
        ("cnn", "prune", "sgd", 0.6),
        pytest.param("mlp", "qat", "sgd", 0.0, marks=pytest.mark.slow),  # as in test_exporter.py
    ],
)
def test_it_trains_as_keras_does(model: str, method: str, optimizer: str, sparsity: float) -> None:
    here = world(model, method, optimizer)
    start = here.weights()
    if sparsity:
        start = mask_weights(start, magnitude_masks(here.manifest, start, sparsity))
    keras = here.keras().train(start, task(sparsity=sparsity))
    litert = here.litert().train(start, task(sparsity=sparsity))
    # Another order of examples matters far more than float noise, so both have seen the same.
    other = here.litert("other").train(start, task(sparsity=sparsity))
    assert distance(keras, litert) < distance(litert, other) / 20
    assert litert.loss == pytest.approx(keras.loss, rel=2e-3)
    scoring = Scoring(here.model.task)
    keras_scores = scoring.scores(here.keras().evaluate(keras.weights))
    scores = scoring.scores(here.litert().evaluate(keras.weights))
    assert scores == pytest.approx(keras_scores, rel=1e-5)
    if sparsity:
        for before, after in zip(start, litert.weights, strict=True):
            if before.ndim > 1:
                np.testing.assert_array_equal(before == 0, after == 0)


def test_it_tells_every_step() -> None:
    told: list[tuple[int, int, int]] = []
    world().litert(on_step=lambda *numbers: told.append(numbers)).train(
        world().weights(), task(round_=3)
    )
    batches = 2 * -(-EXAMPLES // BATCH)
    assert told == [(3, done, batches) for done in range(1, batches + 1)]


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_round_begins_with_a_fresh_optimizer(optimizer: str) -> None:
    here = world(optimizer=optimizer)
    trainer = here.litert()
    first = trainer.train(here.weights(), task())
    assert distance(trainer.train(first.weights, task(2)), first) > 0
    assert distance(trainer.train(here.weights(), task()), first) == 0


def test_a_round_has_its_own_mask() -> None:
    here = world("cnn", "prune")
    trainer = here.litert()
    trainer.train(here.weights(), task(sparsity=0.9))
    dense = trainer.train(here.weights(), task(2))
    assert distance(dense, here.litert().train(here.weights(), task(2))) == 0
    assert all((w != 0).mean() > 0.9 for w in dense.weights if w.ndim > 1)


def test_dropout_is_drawn_from_the_seed_of_round_and_client(tmp_path: Path) -> None:
    layers = tf_keras.layers
    stack = [
        layers.InputLayer((8, 8, 1), name="image"),
        layers.Flatten(name="flat"),
        layers.Dropout(0.5, name="drop"),
        layers.Dense(10, activation="softmax", name="classes"),
    ]
    (tmp_path / "m.json").write_text(to_json(tf_keras.Sequential(stack, name="m")), "utf-8")
    here = world(str(tmp_path / "m.json"))
    one = here.litert().train(here.weights(), task())
    assert distance(here.litert().train(here.weights(), task()), one) == 0
    assert distance(here.litert("b").train(here.weights(), task()), one) > 0
    rates = [np.random.default_rng([7, n]).random(4).tolist() for n in range(3)]
    assert rates[0] == np.random.default_rng([7]).random(4).tolist(), (
        "a seed alone is the first epoch's: noise must not be drawn from it"
    )
    assert rates[2] not in rates[:2]


def test_threads_change_nothing_but_the_time() -> None:
    start = world("cnn").weights()
    one, two = (world("cnn").litert(threads=n).train(start, task()) for n in (1, 2))
    assert distance(one, two) < 1e-3


# ---- steps that are refused ----

SMALL: list[tuple[int, ...]] = [(4,), ()]
TASK = image_task((2, 2, 1), "abc")
TENSORS = StepTensors.of(TASK)
F32, U8, I32 = tf.float32, tf.uint8, tf.int32
Kinds = dict[str, tuple[list[int], Any] | None]
"""Tensors by name; None leaves one out."""
EXAMPLES_OF: Kinds = {"input_0": ([2, 2, 2, 1], U8), "importance": ([2], F32)}
WEIGHTS: Kinds = {"weight_0": ([4], F32), "weight_1": ([1], F32)}
INPUTS: Kinds = {
    **EXAMPLES_OF,
    "target": ([2], I32),
    "learning_rate": ([1], F32),
    "step": ([1], F32),
    **WEIGHTS,
    "mask_0": ([4], F32),
    "slot_0_0": ([4], F32),
    "noise_0": ([2, 3], F32),
}
OUTPUTS: Kinds = {
    "loss": ([1], F32),
    "new_weight_0": ([4], F32),
    "new_weight_1": ([1], F32),
    "new_slot_0_0": ([4], F32),
}


def made(inputs: Kinds | None = None, outputs: Kinds | None = None) -> bytes:
    """A step that does next to nothing, whose `train` has other inputs or outputs."""
    train = graph("train", {**INPUTS, **(inputs or {})}, {**OUTPUTS, **(outputs or {})})
    return join_step(train, usual_answer())


@cache
def usual_answer() -> bytes:
    return answering()


def answering(inputs: Kinds | None = None, outputs: Kinds | None = None) -> bytes:
    output: Kinds = {"output": ([2, 3], F32)}
    return graph(
        "answer", {**EXAMPLES_OF, **WEIGHTS, **(inputs or {})}, {**output, **(outputs or {})}
    )


def graph(signature: str, inputs: Kinds, outputs: Kinds) -> bytes:
    """A .tflite of such tensors, each output of which is the number of examples that count."""
    takes = {n: k for n, k in inputs.items() if k}
    gives = {n: k for n, k in outputs.items() if k}
    specs = [tf.TensorSpec(shape, dtype, name=name) for name, (shape, dtype) in takes.items()]

    @tf.function(input_signature=specs, autograph=False)
    def run(*tensors: Any) -> dict[str, Any]:
        one = tf.reduce_sum(tf.cast(tensors[list(takes).index("importance")], tf.float32))
        return {name: tf.cast(tf.fill(shape, one), dtype) for name, (shape, dtype) in gives.items()}

    module = tf.Module()
    module.run = run
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={signature: run})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[signature])
        return bytes(converter.convert())


def test_a_step_as_it_should_be_is_taken() -> None:
    step = TrainingStep(made(), SMALL, TENSORS, 1)
    assert (step.batch_size, step.masked, step.output_shapes) == (2, {0}, {"output": (3,)})
    step.begin([np.zeros(4, np.float32), np.zeros((), np.float32)], [None, None], 0.1, [0])
    images, labels = np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, np.int32)
    assert step.run([images], [labels]) == 1.0
    assert [w.shape for w in step.weights()] == [(4,), ()]
    step.set_answering(step.weights())
    (answers,) = step.answer([images])
    assert answers.tolist() == [[1.0] * 3]


@pytest.mark.parametrize(
    ("inputs", "outputs", "told"),
    [
        ({"input_0": ([2, 2, 2, 1], F32)}, {}, "float32 of shape .* as its input 'input_0'"),
        ({"input_0": ([2, 3, 2, 1], U8)}, {}, r"wants uint8 of shape \(2, 2, 2, 1\)"),
        ({"input_0": ([2, 4], U8)}, {}, r"uint8 of shape \(2, 4\) as its input 'input_0'"),
        ({"input_0": None}, {}, "nothing as its input 'input_0'"),
        ({"input_1": ([2, 3], F32)}, {}, "input 'input_1', and this client wants nothing"),
        ({"target": ([2], tf.int64)}, {}, "int64 of shape .* as its input 'target'"),
        ({"target": ([3], I32)}, {}, "input 'target'"),
        ({"target": None}, {}, "nothing as its input 'target'"),
        ({"importance": ([2, 1], F32)}, {}, "input 'importance'"),
        ({"importance": ([3], F32)}, {}, r"wants uint8 of shape \(3, 2, 2, 1\)"),
        ({"step": None}, {}, "nothing as its input 'step'"),
        ({"secret": ([9], F32)}, {}, "input 'secret', and this client wants nothing"),
        ({"weight_0": ([5], F32)}, {}, "input 'weight_0'"),
        ({"weight_1": None}, {}, "input 'weight_1'"),
        ({"weight_2": ([1], F32)}, {}, "input 'weight_2'"),
        ({"mask_0": ([3], F32)}, {}, "input 'mask_0'"),
        ({"mask_7": ([4], F32)}, {}, "input 'mask_7'"),
        ({"slot_0_0": ([1], F32)}, {}, "input 'slot_0_0'"),
        ({"slot_1_0": ([1], F32)}, {}, "nothing as its output 'new_slot_1_0'"),
        ({"noise_0": ([2], I32)}, {}, "input 'noise_0'"),
        ({}, {"new_weight_0": None}, "nothing as its output 'new_weight_0'"),
        ({}, {"new_weight_0": ([2], F32)}, "output 'new_weight_0'"),
        ({}, {"new_weight_0": ([4], I32)}, "output 'new_weight_0'"),
        ({}, {"new_slot_0_0": None}, "output 'new_slot_0_0'"),
        ({}, {"loss": ([], F32)}, "output 'loss'"),
        ({}, {"loss": None}, "output 'loss'"),
        ({}, {"correct": ([1], F32)}, "output 'correct', and this client wants nothing"),
        ({}, {"labels_of_the_client": ([2], F32)}, "output 'labels_of_the_client'"),
    ],
)
def test_a_step_with_other_tensors_is_refused(inputs: Any, outputs: Any, told: str) -> None:
    with pytest.raises(ClientError, match=told):
        TrainingStep(made(inputs, outputs), SMALL, TENSORS, 1)


@pytest.mark.parametrize(
    ("inputs", "outputs", "told"),
    [
        ({"input_0": ([2, 2, 2, 1], F32)}, {}, "float32 of shape .* as its input 'input_0'"),
        ({"weight_1": None}, {}, "nothing as its input 'weight_1'"),
        ({"weight_0": ([5], F32)}, {}, "input 'weight_0'"),
        ({"target": ([2], I32)}, {}, "input 'target', and this client wants nothing"),
        ({"noise_0": ([2, 3], F32)}, {}, "input 'noise_0', and this client wants nothing"),
        ({}, {"output": ([2, 4], F32)}, r"output 'output', and this client wants .* \(2, 3\)"),
        ({}, {"output": ([2], F32)}, "output 'output'"),
        ({}, {"output": ([2, 3], I32)}, "int32 of shape .* as its output 'output'"),
        ({}, {"output": None, "loss": ([1], F32)}, "output 'loss', and this client wants nothing"),
        (
            {"importance": ([3], F32), "input_0": ([3, 2, 2, 1], U8)},
            {"output": ([3, 3], F32)},
            "answers to batches of another size",
        ),
    ],
)
def test_a_step_that_answers_with_other_tensors_is_refused(
    inputs: Any, outputs: Any, told: str
) -> None:
    content = join_step(graph("train", INPUTS, OUTPUTS), answering(inputs, outputs))
    with pytest.raises(ClientError, match=told):
        TrainingStep(content, SMALL, TENSORS, 1)


X = Input("x", "float32", (3,))
OF_KINDS: dict[str, tuple[Task, Kinds, list[int]]] = {
    "classes of positions": (
        Task((Input("x", "float32", (3, 1)),), Target(TargetKind.CLASS, (3,), ("a", "b"))),
        {"input_0": ([2, 3, 1], F32), "target": ([2, 3], I32)},
        [2, 3, 2],
    ),
    "two classes, one output": (
        Task((X,), Target(TargetKind.CLASS, (), ("a", "b")), Loss.BINARY_CROSSENTROPY),
        {"input_0": ([2, 3], F32), "target": ([2], I32)},
        [2, 1],
    ),
    "labels": (
        Task((X,), Target(TargetKind.LABELS, (2,), ("a", "b"))),
        {"input_0": ([2, 3], F32), "target": ([2, 2], F32)},
        [2, 2],
    ),
    "tokens, one number": (
        Task((X, Input("t", "int32", (4,), vocabulary=9)), Target(TargetKind.VALUES)),
        {"input_0": ([2, 3], F32), "input_1": ([2, 4], I32), "target": ([2], F32)},
        [2, 1],
    ),
    "the input": (
        Task((X,), Target(TargetKind.INPUT)),
        {"input_0": ([2, 3], F32), "target": None},
        [2, 3],
    ),
}


@pytest.mark.parametrize("kind", OF_KINDS)
def test_a_step_takes_what_its_task_gives(kind: str) -> None:
    task, examples, output = OF_KINDS[kind]
    without_target = {n: k for n, k in examples.items() if n != "target"}
    content = join_step(
        graph("train", {**INPUTS, **examples}, OUTPUTS),
        answering(without_target, {"output": (output, F32)}),
    )
    step = TrainingStep(content, SMALL, StepTensors.of(task), 1)
    assert step.output_shapes == {"output": tuple(output[1:])}
    with pytest.raises(ClientError, match="input 'input_0'"):
        TrainingStep(made(), SMALL, StepTensors.of(task), 1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a model at all",
        b"\x1c\0\0\0TFL3" + b"\xff" * 2000,
        lambda: world().step[:1000],
        lambda: world().step[:-200],
        lambda: join_step(graph("serve", INPUTS, OUTPUTS), answering()),
        lambda: join_step(*[split_step(world().step).train] * 2),
        lambda: graph("train", INPUTS, OUTPUTS),
    ],
    ids=[
        "empty",
        "text",
        "noise",
        "truncated",
        "short",
        "no signature",
        "no answers",
        "one part",
    ],
)
def test_what_is_no_training_step_is_refused(content: Any) -> None:
    content = content() if callable(content) else content
    with pytest.raises(ClientError, match=r"training step cannot be used: .+"):
        TrainingStep(content, world().shapes, StepTensors.of(world().model.task), 1)


def test_another_plans_step_is_refused() -> None:
    with pytest.raises(ClientError, match="'weight_"):
        world().litert(step=world("cnn").step)
    with pytest.raises(ClientError, match=r"masks the tensors \[0, 2\].*plan \(none\)"):
        world().litert(step=world(method="prune").step)
    with pytest.raises(ClientError, match=r"masks the tensors \[\].*plan \(prune\)"):
        world(method="prune").litert(step=world().step)
    larger = StepTensors.of(image_task((28, 28, 1), "abcdefghij"))
    with pytest.raises(ClientError, match=r"\(32, 8, 8, 1\) as its input 'input_0'.*28, 28, 1\)"):
        TrainingStep(world().step, world().shapes, larger, 1)
    fewer = StepTensors.of(image_task((8, 8, 1), "abc"))
    with pytest.raises(ClientError, match=r"\(32, 10\) as its output 'output'.*\(32, 3\)"):
        TrainingStep(world().step, world().shapes, fewer, 1)
    plan = pb.Plan.FromString(world().plan.SerializeToString())
    plan.training.batch_size = 16
    with pytest.raises(ClientError, match="takes 32 examples at once, and its plan says 16"):
        World(plan, world().model, world().step).litert()
    plan = pb.Plan.FromString(world().plan.SerializeToString())
    plan.optimization.method = "cluster"
    with pytest.raises(ClientError, match="'cluster', which this client cannot do"):
        World(plan, world().model, world().step).litert()


# ---- the way to the client ----


def announced(content: bytes, **changes: Any) -> pb.Step:
    step = ExportedStep(content).describe()
    for name, value in changes.items():
        setattr(step, name, value)
    return step


def test_what_travels_is_what_was_announced_or_refused() -> None:
    content = b"a training step" * 100
    compressed = ExportedStep(content).compressed
    assert unpack_step(announced(content), compressed) == content
    bomb = Zstd(1).compress(bytes(2**27))
    assert len(bomb) < 2**16
    for step, data, told in (
        (announced(content, digest=hashlib.sha256(b"other").digest()), compressed, "another"),
        (announced(content, size=len(content) - 1), compressed, "damaged"),
        (announced(content), bomb, "damaged"),
        (announced(content), compressed[:-5], "damaged"),
        (announced(content), b"", "damaged"),
        (announced(content), bytes(len(compressed)), "damaged"),
    ):
        with pytest.raises(ClientError, match=told):
            unpack_step(step, data)
    for size in (0, MAX_STEP_BYTES + 1):
        for field in ("size", "compressed"):
            with pytest.raises(ClientError, match="refused"):
                check_step(announced(content, **{field: size}))


STEP = bytes(np.random.default_rng(0).bytes(5000))


class Device:
    """A client that says it trains with LiteRT, and keeps what step it was given."""

    def __init__(self, server: Federation, name: str) -> None:
        self.server, self.name = server, name
        self.given: list[bytes | None] = []
        self.state = server.directory / "clients" / name

    def session(self, runtime: str = "litert") -> Session:
        said = profile(self.name)
        return Session(
            type(said)(said.name, said.data, runtime, said.methods, said.version),
            self.server.transport(),
            self._make,
            lambda run: ClientState(self.state, run),
        )

    def _make(self, plan: pb.Plan, manifest: Manifest, step: bytes | None) -> Pull:
        self.given.append(step)
        return Pull(1.0)

    def control_bytes_down(self) -> int:
        return sum(
            e.message_bytes
            for e in self.server.store.ledger.entries()
            if (e.client, e.direction, e.kind) == (self.name, "downlink", "control")
        )


ALONE = {"minimum": 1, "quorum": 1.0, "deadline": 30, "patience": 1}


def test_a_step_is_downloaded_once_counted_and_kept(federation: Start) -> None:
    for folder, damage in (("first", False), ("second", True)):
        server = federation(folder, step=ExportedStep(STEP), clients=ALONE, rounds=1)
        device = Device(server, "pi")
        server.run_clients(device.session())
        server.join()
        assert device.given == [STEP]
        sent = len(ExportedStep(STEP).compressed)
        assert sent < device.control_bytes_down() < sent + 2000
        kept = device.state / "step.tflite"
        assert kept.read_bytes() == STEP
        if damage:
            kept.write_bytes(STEP[:-1] + bytes([STEP[-1] ^ 1]))
        again = federation(f"{folder}-again", step=ExportedStep(STEP), clients=ALONE, rounds=1)
        same = Device(again, "pi")
        same.state = device.state
        again.run_clients(same.session())
        assert same.given == [STEP]
        assert (same.control_bytes_down() > sent) == damage
        assert kept.read_bytes() == STEP


def test_a_keras_client_gets_no_step(federation: Start) -> None:
    server = federation(step=ExportedStep(STEP), clients=ALONE, rounds=1)
    device = Device(server, "laptop")
    server.run_clients(device.session("keras"))
    assert device.given == [None]
    assert device.control_bytes_down() < 2000


def test_a_server_without_a_step_says_why(federation: Start) -> None:
    why = "layer 'warp': Warp has no training step for LiteRT; use Keras clients (--runtime keras)"
    server = federation(step=ExportedStep(missing=why), clients=ALONE, rounds=1)
    with pytest.raises(Rejected, match=r"layer 'warp'.*--runtime keras"):
        Device(server, "pi").session().run()
    (refusal,) = server.store.refusals.all()
    assert refusal.client == "pi"
    server.run_clients(Device(server, "laptop").session("keras"))


def test_a_server_that_sends_more_than_it_announced_is_left(federation: Start) -> None:
    class Liar(ExportedStep):
        def describe(self) -> pb.Step:
            return announced(STEP, compressed=100)

    server = federation(step=Liar(STEP), clients=ALONE, rounds=1)
    with pytest.raises(Rejected, match="more than it announced"):
        Device(server, "pi").session().run()


def test_a_runtime_is_a_plain_word(federation: Start) -> None:
    server = federation(clients=ALONE, rounds=1)
    with pytest.raises(Rejected, match="plain name"):
        Device(server, "pi").session("<b>keras</b>").run()


# ---- the server's cache ----


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[FederatedModel]:
    """An empty cache; returns the models that were really exported."""
    exported: list[FederatedModel] = []
    real = training_step.export_training_step

    def export(model: FederatedModel, training: Any) -> bytes:
        exported.append(model)
        return real(model, training)

    monkeypatch.setattr(training_step, "export_training_step", export)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return exported


def offer(**training: Any) -> ExportedStep:
    settings = Settings.model_validate({"model": {"name": "mlp"}, "training": training})
    return offered_step(digits_model(settings), settings)


def test_a_plan_is_exported_once(cached: list[FederatedModel], tmp_path: Path) -> None:
    first = offer(epochs=3)
    assert offer(epochs=4, learning_rate=0.5).content == first.content, "neither is in the step"
    assert len(cached) == 1
    assert offer(batch_size=8).content != first.content
    assert offer(loss="mean_squared_error").content != first.content
    assert len(cached) == 3
    files = list((tmp_path / "cache" / "featherfed" / "steps").iterdir())
    assert len(files) == 3
    for path in files:
        path.write_bytes(path.read_bytes()[:-1])
    assert offer().content == first.content, "a damaged file is not handed out"
    assert len(cached) == 4
    offer()
    assert len(cached) == 4


def test_a_cache_that_cannot_be_written_costs_time_only(
    cached: list[FederatedModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file", "utf-8")
    assert offer().content
    assert "made anew at every start" in caplog.text


def test_a_plan_that_cannot_be_exported_is_for_keras_clients(
    cached: list[FederatedModel], caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings.model_validate({
        "model": {"name": "mlp"}, "optimization": {"method": "cluster"}
    })  # fmt: skip
    offered = offered_step(digits_model(settings), settings)
    assert offered.content == b""
    assert "the method cluster" in offered.missing
    assert "--runtime keras" in offered.missing
    assert f"no LiteRT clients in this run: {offered.missing}" in caplog.text
