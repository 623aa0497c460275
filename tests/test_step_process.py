"""A server's training step in a process of its own: it trains, or is refused in plain words."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from support import step_mutations
from support.federation import Federation
from support.models import TASK
from support.processes import Processes, wait_until
from support.step_mutations import BATCH, FINE, Field, Part, Step

from featherfed.api import memory
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import Manifest, TensorSpec, Uniform
from featherfed.datasets.dataset import Dataset
from featherfed.edge_client import step_process, step_worker
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.flatbuffer import BadOffset, Table, root
from featherfed.edge_client.plan import MAX_EPOCHS
from featherfed.edge_client.step_graph import OPERATORS, check_graph
from featherfed.edge_client.step_interpreter import TrainingStep
from featherfed.edge_client.step_process import StepProcess
from featherfed.edge_client.step_tensors import StepTensors
from featherfed.server.coordinator.exported_step import ExportedStep

Start = Callable[..., Federation]
EXAMPLE = (8, 8, 1)
TENSORS = StepTensors.of(TASK)
CRASHING = [167, 1464, 958]
UNUSABLE = 9  # reads a tensor before it is written
"""Seeds whose steps kill a client that checks no graph and runs them itself: two change what
trains, two what answers (`step_mutations.py --unchecked`)."""


def mlp() -> Step:
    return step_mutations.step("mlp-none-adam")


def started(content: bytes | None = None) -> StepProcess:
    return StepProcess(content or mlp().content, mlp().shapes, TENSORS, 1)


def begin(step: StepProcess | TrainingStep, whole: Step) -> None:
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.1, shape).astype(np.float32) for shape in whole.shapes]
    masks = [rng.random(s) < 0.5 if k in whole.masked else None for k, s in enumerate(whole.shapes)]
    step.begin(weights, masks, 0.1, [1, 2])


def batch() -> tuple[Any, Any]:
    images = np.random.default_rng(1).integers(0, 256, (BATCH, *EXAMPLE), np.uint8)
    return [images], [np.arange(BATCH, dtype=np.int32)]


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- a step as it should be ----


@pytest.mark.parametrize("name", ["mlp-none-adam", "cnn-prune-momentum"])
def test_it_trains_to_the_same_bits_as_in_this_process(name: str) -> None:
    whole = step_mutations.step(name)
    results = []
    for kind in (TrainingStep, StepProcess):
        step = kind(whole.content, whole.shapes, TENSORS, 2)
        assert (step.batch_size, step.masked) == (BATCH, whole.masked)
        assert step.output_shapes == {"output": (10,)}
        begin(step, whole)
        (images,), (labels,) = batch()
        losses = [step.run([images], [labels]), step.run([images[:3]], [labels[:3]])]
        trained = step.weights()
        step.set_answering(trained)
        answers = [*step.answer([images]), *step.answer([images[:3]])]
        assert [answer.shape for answer in answers] == [(BATCH, 10), (3, 10)]
        results.append((losses, [array.tobytes() for array in (*trained, *answers)]))
    assert results[0] == results[1]


def test_once_it_is_loaded_the_process_opens_and_writes_nothing() -> None:
    step = started()
    limits = Path(f"/proc/{step._worker.process.pid}/limits").read_text("utf-8")
    for name in ("Max open files", "Max file size", "Max core file size"):
        (line,) = [line for line in limits.splitlines() if line.startswith(name)]
        assert line.removeprefix(name).split()[:2] == ["0", "0"]
    begin(step, mlp())
    step.run(*batch())


def test_its_memory_is_in_what_the_client_says_and_limits() -> None:
    before = memory.peak_memory() or 0
    step = started()
    during = step_process.peak_memory()
    assert during > 5 * 2**20
    assert (memory.peak_memory() or 0) >= before
    del step
    assert step_process.peak_memory() >= during


# ---- steps that are made to do harm ----


def test_mutated_steps_train_or_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("start_worker", "LOAD_SECONDS", "STEP_SECONDS"):
        monkeypatch.setattr(step_process, name, getattr(step_process, name))
    found = step_mutations.try_seeds([*CRASHING, *range(1000, 1120)])
    assert set(found) <= set(FINE), found
    assert found[step_mutations.TRAINS] > 10


@pytest.mark.parametrize("seed", CRASHING)
def test_a_step_that_would_crash_a_client_kills_it_unchecked(seed: int) -> None:
    whole, content, _ = step_mutations.mutate(seed)
    assert step_mutations.unchecked_outcome(whole, content) == "SIGSEGV"


@pytest.mark.parametrize("seed", CRASHING)
def test_a_step_that_would_crash_a_client_is_refused(seed: int) -> None:
    whole, content, _ = step_mutations.mutate(seed)
    with pytest.raises(ClientError, match=r"training step.*refused"):
        step_mutations.train(whole, content)
    assert not step_process._running


def test_a_crash_of_litert_is_told_and_whose_fault_it_is() -> None:
    step = started()
    begin(step, mlp())
    os.kill(step._worker.process.pid, signal.SIGSEGV)
    told = (
        r"step [0-9a-f]{12} crashed LiteRT with SIGSEGV \(at 'run'\).*the server's, not this device"
    )
    with pytest.raises(ClientError, match=told):
        step.run(*batch())
    assert not alive(step._worker.process.pid)


def test_a_step_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    step = started()
    begin(step, mlp())
    monkeypatch.setattr(step_process, "STEP_SECONDS", 1)
    os.kill(step._worker.process.pid, signal.SIGSTOP)
    with pytest.raises(ClientError, match=r"did not end within 1 s.*'run'"):
        step.run(*batch())
    assert not alive(step._worker.process.pid)


def test_a_step_that_is_killed_is_told_with_the_likely_reason() -> None:
    step = started()
    os.kill(step._worker.process.pid, signal.SIGKILL)
    with pytest.raises(ClientError, match="killed, most likely as the device's memory ran out"):
        begin(step, mlp())


def test_a_process_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ClientError, match=r"ended its process with status 1"):
        started()


def test_a_machine_that_starts_no_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ClientError, match="no process can be started for the training step"):
        started()


@pytest.mark.parametrize(
    "answer",
    [b"", b"\xff\xff\xff\xff", b"\x02\0\0\0[]", b"\x01\0\0\0{", b"\x02\0\0\0{}",
     b"\x13\0\0\0" + b'{"batch_size": NaN}', b"\x14\0\0\0" + b'{"batch_size": "4", ',
 b"\x40\0\x01\0" + b"[" * 65600],
)  # fmt: skip
def test_a_process_that_answers_nonsense_is_ended(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    """The process has run a stranger's file, and may be the stranger's by now."""

    def start() -> step_process.Worker:
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(["sleep", "60"])
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        files = [Path(os.devnull).open("r+b") for _ in range(2)]  # noqa: SIM115
        monkeypatch.setattr(step_process, "_END_SECONDS", 0.1)
        kept.append(theirs)
        return step_process.Worker(process, ours, *files)

    kept: list[socket.socket] = []
    monkeypatch.setattr(step_process, "start_worker", start)
    with pytest.raises(ClientError, match="refused"):
        started()
    kept[0].close()


def test_what_a_step_makes_litert_say_is_one_printable_line() -> None:
    said = step_process._line("a\x1b[31m\n\tb" + "c" * 1000)
    assert said.startswith("a\\x1b[31m bccc")
    assert said.endswith("c... (508 characters more)")


# ---- the end of a client ----

CLIENT = """
import sys, time
from support import step_mutations
from support.models import TASK
from featherfed.edge_client.step_process import StepProcess
from featherfed.edge_client.step_tensors import StepTensors
whole = step_mutations.step("mlp-none-adam")
step = StepProcess(whole.content, whole.shapes, StepTensors.of(TASK), 1)
print(step._worker.process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_client_that_ends_leaves_no_process_behind(how: signal.Signals) -> None:
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    assert client.stdout is not None
    pid = int(client.stdout.readline())
    assert alive(pid)
    client.send_signal(how)
    client.wait(30)
    client.stdout.close()
    wait_until(lambda: not alive(pid), 30)


def test_a_process_in_the_midst_of_a_step_ends_with_its_client() -> None:
    worker = step_process.start_worker()
    worker.connection.sendall(b"\x10")  # it waits for the rest
    wait_until(lambda: bool(_async_flag(worker.process.pid)), 30)
    worker.lifeline.close()  # as the system does for a client that is killed
    assert worker.process.wait(30) == -signal.SIGIO
    worker.end()


def _async_flag(pid: int) -> int:
    info = Path(f"/proc/{pid}/fdinfo/{step_worker.LIFELINE}").read_text("utf-8")
    (flags,) = [line.split()[1] for line in info.splitlines() if line.startswith("flags")]
    return int(flags, 8) & getattr(fcntl, "FASYNC", os.O_ASYNC)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.end()


def joined(federation: Start, processes: Processes, content: bytes, epochs: int) -> int:
    """Start a client whose server offers `content`; return its process id."""
    manifest = Manifest(
        tuple(TensorSpec(f"w{k}", s, initial=Uniform(0.1)) for k, s in enumerate(mlp().shapes))
    )
    server = federation(
        step=ExportedStep(content), manifest=manifest, rounds=1,
        first_weights=initial_weights(manifest, 0),
        training={"batch_size": BATCH, "epochs": epochs},
        clients={"minimum": 1, "quorum": 1.0, "deadline": 60},
    )  # fmt: skip
    images, labels = np.zeros((20_000, *EXAMPLE), np.uint8), np.arange(20_000) % 10
    Dataset.from_images(images, labels).save(processes.directory / "data.npz")
    return processes.join("pi", server.address, "data.npz", "--runtime", "litert").pid


def test_join_ends_with_one_message(federation: Start, processes: Processes) -> None:
    _, content, _ = step_mutations.mutate(UNUSABLE)
    joined(federation, processes, content, 1)
    assert processes.wait("pi") == 1, processes.log("pi")
    assert "featherfed: the server's training step cannot be used" in processes.log("pi")
    assert "Traceback" not in processes.log("pi")


def test_join_outlives_a_crash_in_the_midst_of_training(
    federation: Start, processes: Processes
) -> None:
    os.kill(training(federation, processes), signal.SIGSEGV)
    assert processes.wait("pi") == 1, processes.log("pi")
    assert "crashed LiteRT with SIGSEGV" in processes.log("pi")
    assert "Traceback" not in processes.log("pi")


@pytest.mark.parametrize(
    ("how", "status"), [(signal.SIGTERM, -15), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_join_takes_the_process_with_it(
    federation: Start, processes: Processes, how: signal.Signals, status: int
) -> None:
    worker = training(federation, processes)
    processes.running["pi"].send_signal(how)
    assert processes.wait("pi") == status, processes.log("pi")
    wait_until(lambda: not alive(worker), 30)
    assert "Traceback" not in processes.log("pi")


def training(federation: Start, processes: Processes) -> int:
    """Start a client that trains for long; return the process id of its step."""
    pid = joined(federation, processes, mlp().content, MAX_EPOCHS)
    wait_until(lambda: "round 1: training" in processes.log("pi"))
    (worker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()
    return int(worker)


# ---- the checks of a graph ----


def changed(part: Part, kind: str, number: int, value: int) -> bytes:
    """Return a part of a step with a field of `kind` set to `value`."""
    field: Field = part.fields[kind][number]
    content = bytearray(part.content)
    new = (value % (1 << 8 * field.width)).to_bytes(field.width, "little")
    content[field.position : field.position + field.width] = new
    return bytes(content)


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        ("operator code", 119, "operator 119 of TFLite is not used"),  # WHILE
        ("operator code", 118, "operator 118 of TFLite is not used"),  # IF
        ("operator", 99, "kind that is not there"),
        ("operator input", 100_000, "reads tensor 100000 too early"),
        ("operator input", -7, "reads tensor -7 too early"),
        ("operator output", 0, "writes a tensor that is there already"),
        ("operator output", 100_000, "too early|uses tensor 100000"),
        ("graph input", 100_000, "too early|names an input"),
        ("graph output", -1, "its output, tensor -1, is never written"),
        ("signature's tensor", 142, "signature names an input"),
        ("shape", 2**31 - 1, "MB to spare|shape asks for"),
        ("shape", -1, "type or shape that training steps do not have"),
        ("type", 5, "type or shape that training steps do not have"),  # STRING
        ("buffer", 2**20, "a buffer that is not there"),
        ("length", 2**31, "longer than the file|outside of the file"),
    ],
)
@pytest.mark.parametrize("part", ["train", "answer"])
def test_a_graph_that_would_mislead_litert_is_not_loaded(
    part: str, kind: str, value: int, told: str
) -> None:
    with pytest.raises(ClientError, match=f"training step cannot be used: .*({told}).*; refused"):
        check_graph(changed(getattr(mlp(), part), kind, 0, value), 2**30)


@pytest.mark.parametrize("part", ["train", "answer"])
def test_each_part_of_a_step_is_checked(part: str) -> None:
    whole = getattr(mlp(), part)
    content = mlp().with_part(whole, changed(whole, "operator", 0, 99))
    with pytest.raises(ClientError, match="kind that is not there; refused"):
        started(content)


@pytest.mark.parametrize(
    "content",
    [b"\1\0\0", b"\0\0\0\0TFL3", b"\4\0\0\0TFL3", b"\xff\xff\xff\xffTFL3", b"\2\0\0\0TFL3"],
)
def test_a_file_that_is_not_two_parts_is_refused(content: bytes) -> None:
    with pytest.raises(ClientError, match="training step cannot be used: "):
        started(content)


def test_what_is_cut_off_at_any_byte_is_refused() -> None:
    content = mlp().train.content
    for size in [*range(0, 200), *range(200, len(content) // 2, 97)]:
        with pytest.raises(ClientError, match="refused"):
            check_graph(content[:size])


def test_operators_are_numbered_as_in_the_schema_and_read_as_by_it() -> None:
    assert {n: k for n, k in _builtin().items() if n in OPERATORS} == OPERATORS
    steps = [step_mutations.step(name) for name in step_mutations.NAMES]
    for content in (part.content for step in steps for part in (step.train, step.answer)):
        (graph,) = root(content, b"TFL3").tables(2)
        wanted = schema.Model.GetRootAs(content, 0).Subgraphs(0)
        for number, operator in enumerate(graph.tables(3)):
            theirs = wanted.Operators(number)
            assert operator.numbers(1) == tuple(theirs.InputsAsNumpy())
            assert operator.numbers(2) == tuple(theirs.OutputsAsNumpy())
            assert operator.number(0, "I") == theirs.OpcodeIndex()
        for number, tensor in enumerate(graph.tables(0)):
            theirs = wanted.Tensors(number)
            assert tensor.length(0) == theirs.ShapeLength()
            assert (tensor.number(1, "b"), tensor.number(2, "I")) == (
                theirs.Type(),
                theirs.Buffer(),
            )


def _builtin() -> dict[int, str]:
    return {n: k for k, n in vars(schema.BuiltinOperator).items() if isinstance(n, int)}


def test_an_offset_to_before_the_file_is_not_followed() -> None:
    with pytest.raises(BadOffset, match="before the file"):
        Table((1000).to_bytes(4, "little"), 0)
    with pytest.raises(BadOffset, match="outside"):
        Table(bytes(8), 6)
