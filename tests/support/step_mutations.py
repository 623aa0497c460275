"""Training steps with a few fields changed, and what becomes of a client that is given one.

`PYTHONPATH=tests python tests/support/step_mutations.py FIRST LAST` tries the seeds from FIRST to
LAST and prints what became of them; with `--unchecked` it prints those whose steps kill a client
that checks no graph and runs a step in its own process. `export_steps.py` made the steps in
tests/support/steps; their names say model, method and optimizer.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from backports import zstd
from support.models import SHAPE, TASK

from featherfed.compression.exchange.manifest import Manifest, TensorSpec
from featherfed.datasets.dataset import Dataset
from featherfed.edge_client import step_interpreter, step_process, step_worker
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.litert_trainer import LitertTrainer
from featherfed.edge_client.step_graph import check_graph
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.step_file import StepFile, join_step, split_step

FOLDER = Path(__file__).parent / "steps"
SUFFIX = ".step.zst"
NAMES = sorted(path.name.removesuffix(SUFFIX) for path in FOLDER.glob(f"*{SUFFIX}"))
_WEIGHTS = [1 / (FOLDER / f"{name}{SUFFIX}").stat().st_size for name in NAMES]  # as fast
BATCH = 4
EXAMPLES = 7
SECONDS = 20
TRAINS, REFUSED, TRACEBACK, HUNG = "trains", "refused", "traceback", "hung"
CRASHED, STOPPED = "refused as its process crashed", "refused as its process did not end"
FINE = (TRAINS, REFUSED, CRASHED, STOPPED)
_RESULTS = (*FINE, TRACEBACK)
_FLOATS = [0.0, -1.0, 1e30, float("nan"), float("inf")]


# ---- mutations ----


@dataclass(frozen=True)
class Field:
    """Some bytes of a step and what they say."""

    kind: str
    position: int
    width: int


@dataclass(frozen=True)
class Part:
    """One of a step's two .tflites as it should be: `name` is a field of StepFile."""

    name: str
    content: bytes
    fields: dict[str, list[Field]]
    num_tensors: int


@dataclass(frozen=True)
class Step:
    """An exported training step as it should be."""

    name: str
    content: bytes
    train: Part
    answer: Part
    shapes: list[tuple[int, ...]]
    masked: set[int]

    def with_part(self, part: Part, content: bytes) -> bytes:
        """Return the step's file with another content of one of its parts."""
        parts = StepFile(self.train.content, self.answer.content)
        return join_step(*parts._replace(**{part.name: content}))


@cache
def step(name: str) -> Step:
    """Return one of the steps in `NAMES`."""
    content = zstd.decompress((FOLDER / f"{name}{SUFFIX}").read_bytes())
    parts = split_step(content)
    interpreter = Interpreter(model_content=parts.train)
    inputs = interpreter.get_signature_runner("train").get_input_details()
    count = sum(key.startswith("weight_") for key in inputs)
    return Step(
        name,
        content,
        Part("train", parts.train, *fields_of(parts.train)),
        Part("answer", parts.answer, *fields_of(parts.answer)),
        [tuple(map(int, inputs[f"weight_{k}"]["shape"])) for k in range(count)],
        {k for k in range(count) if f"mask_{k}" in inputs},
    )


def _fields(content: bytes) -> Iterator[Field]:
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    yield from _scalars(model, {"version": (0, 4)})
    for n in range(model.OperatorCodesLength()):
        sizes = {"operator code": (0, 1), "operator version": (2, 4), "operator code 2": (3, 4)}
        yield from _scalars(model.OperatorCodes(n), sizes)
    for slot, kind in [(1, "graph input"), (2, "graph output")]:
        yield from _items(graph, slot, kind, 4)
    for n in range(graph.TensorsLength()):
        tensor = graph.Tensors(n)
        yield from _items(tensor, 0, "shape", 4)
        yield from _scalars(tensor, {"type": (1, 1), "buffer": (2, 4), "offset": (0, 4)})
    for n in range(graph.OperatorsLength()):
        operator = graph.Operators(n)
        yield from _scalars(
            operator, {"operator": (0, 4), "options type": (3, 1), "offset": (4, 4)}
        )
        yield from _items(operator, 1, "operator input", 4)
        yield from _items(operator, 2, "operator output", 4)
        if (options := operator.BuiltinOptions()) is not None:
            yield from _options(options)
    for n in range(model.BuffersLength()):
        if model.Buffers(n).DataLength() % 4 == 0:
            yield from _items(model.Buffers(n), 0, "constant", 4, divisor=4)
        yield from _scalars(model.Buffers(n), {"offset": (0, 4), "buffer offset": (1, 8)})
    signature = model.SignatureDefs(0)
    yield from _scalars(signature, {"signature's graph": (4, 4), "offset": (2, 4)})
    maps = [signature.Inputs(n) for n in range(signature.InputsLength())]
    maps += [signature.Outputs(n) for n in range(signature.OutputsLength())]
    for one in maps:
        yield from _items(one, 0, "name", 1)
        yield from _scalars(one, {"signature's tensor": (1, 4), "offset": (0, 4)})


def _scalars(table: Any, sizes: dict[str, tuple[int, int]]) -> Iterator[Field]:
    for kind, (slot, width) in sizes.items():
        if offset := table._tab.Offset(4 + 2 * slot):
            yield Field(kind, table._tab.Pos + offset, width)


def _items(table: Any, slot: int, kind: str, width: int, divisor: int = 1) -> Iterator[Field]:
    """Yield the items of a vector, and its length."""
    if offset := table._tab.Offset(4 + 2 * slot):
        start, count = table._tab.Vector(offset), table._tab.VectorLen(offset)
        yield Field("length", start - 4, 4)
        for n in range(min(count // divisor, 64)):
            yield Field(kind, start + n * width, width)


def _options(table: Any) -> Iterator[Field]:
    size = int.from_bytes(table.Bytes[(v := table.Pos - _soffset(table)) : v + 2], "little")
    for slot in range((size - 4) // 2):
        yield from (
            Field("option", table.Pos + offset, 1)
            for offset in [table.Offset(4 + 2 * slot)]
            if offset
        )


def _soffset(table: Any) -> int:
    return int.from_bytes(table.Bytes[table.Pos : table.Pos + 4], "little", signed=True)


def mutate(seed: int) -> tuple[Step, bytes, list[str]]:
    """Return a step, what a seed makes of it, and the kinds of what it changed."""
    dice = random.Random(seed)
    (name,) = dice.choices(NAMES, _WEIGHTS)
    whole = step(name)
    part = dice.choice([whole.train, whole.train, whole.train, whole.answer])
    content, kinds = changed(part.content, part.fields, part.num_tensors, dice)
    return whole, whole.with_part(part, content), [f"{part.name}: {kind}" for kind in kinds]


def changed(
    whole: bytes, fields: dict[str, list[Field]], num_tensors: int, dice: random.Random
) -> tuple[bytes, list[str]]:
    """Return a .tflite with a few of its fields changed, and their kinds."""
    content, kinds = bytearray(whole), []
    for _ in range(dice.choice([1, 1, 1, 1, 2, 4])):
        kind = dice.choice([*fields, "byte", "word"])
        if kind == "byte":
            field = Field(kind, dice.randrange(len(content)), 1)
        elif kind == "word":
            field = Field(kind, dice.randrange(len(content) // 4) * 4, 4)
        else:
            field = dice.choice(fields[kind])
        old = int.from_bytes(content[field.position :][: field.width], "little", signed=True)
        new = _value(field, old, num_tensors, dice) % (1 << 8 * field.width)
        content[field.position : field.position + field.width] = new.to_bytes(field.width, "little")
        kinds.append(kind)
    return bytes(content), kinds


def fields_of(content: bytes) -> tuple[dict[str, list[Field]], int]:
    """Return the fields of a .tflite by kind, and its number of tensors."""
    fields: dict[str, list[Field]] = {}
    for field in _fields(content):
        fields.setdefault(field.kind, []).append(field)
    return fields, schema.Model.GetRootAs(content, 0).Subgraphs(0).TensorsLength()


def _value(field: Field, old: int, num_tensors: int, dice: random.Random) -> int:
    near = [old - 1, old + 1, 0, 1, -1, 2 * old, old ^ (1 << dice.randrange(8 * field.width))]
    far = dice.randrange(1 << 8 * field.width)
    if field.kind in ("type", "options type", "operator code", "operator code 2", "option", "name"):
        return dice.choice([*near, dice.randrange(128), dice.randrange(210), far])
    if field.kind in ("operator", "buffer") or "put" in field.kind or "tensor" in field.kind:
        return dice.choice([*near, far, *[dice.randrange(num_tensors)] * 8])
    if field.kind == "constant":
        some = int(np.float32(dice.choice(_FLOATS)).view(np.int32))
        return dice.choice([*near, far, some, dice.randrange(-64, 64), dice.randrange(1 << 16)])
    return dice.choice([*near, far, dice.randrange(64), 1 << dice.randrange(8 * field.width)])


# ---- a client ----


def outcome(whole: Step, content: bytes) -> str:
    """Train and evaluate with a step; return what became of the client.

    That is TRAINS, TRACEBACK, or by a ClientError REFUSED, CRASHED or STOPPED.
    """
    try:
        for part in split_step(content):
            check_graph(part)  # the first that a step's process does; here it saves a fork
    except ClientError:
        return REFUSED
    return _client(whole, content)  # a step that crashes or hangs it would end this process


def unchecked_outcome(whole: Step, content: bytes) -> str:
    """Return what would become of a client that checks no graph and runs the step itself."""
    process = os.fork()
    if not process:
        faulthandler.disable()  # pytest's own, which would print
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        step_interpreter.check_graph = lambda content, memory=None: None
        os._exit(_RESULTS.index(_client(whole, content, trusted=True)))
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return HUNG if name == "SIGALRM" else name
    return _RESULTS[os.WEXITSTATUS(status)]


def _client(whole: Step, content: bytes, trusted: bool = False) -> str:
    try:
        train(whole, content, trusted)
    except ClientError as error:
        if "crashed LiteRT" in str(error) or "killed" in str(error):
            return CRASHED
        return STOPPED if "did not end" in str(error) else REFUSED
    except Exception:
        return TRACEBACK
    return TRAINS


def train(whole: Step, content: bytes, trusted: bool = False) -> None:
    """Train an epoch with `content` and evaluate, as a client would that got it for `whole`."""
    plan = pb.Plan(
        training=pb.Training(epochs=1, batch_size=BATCH, learning_rate=0.1),
        optimization=pb.Optimization(method="prune" if whole.masked else "none"),
    )
    manifest = Manifest(
        tuple(
            TensorSpec(f"w{k}", shape, prunable=k in whole.masked)
            for k, shape in enumerate(whole.shapes)
        )
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (EXAMPLES, *SHAPE), np.uint8)
    data = Dataset((images,), np.arange(EXAMPLES))
    examples = Examples(TASK, data, held_out=data)
    trainer = LitertTrainer(plan, manifest, content, examples, client="c", trusted=trusted)
    weights = [rng.normal(0, 0.1, shape).astype(np.float32) for shape in whole.shapes]
    trainer.evaluate(trainer.train(weights, pb.Train(round=1, slots=1)).weights)


class _Forked:
    """As much of a Popen as the client uses, of a forked process."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.pid = os.fork()
        if not self.pid:
            work()
            os._exit(0)
        self._status: int | None = None

    def kill(self) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status


def fork_workers() -> None:
    """From now on start the process of a step by forking this one, which takes milliseconds."""

    def start() -> Any:
        ours, theirs = socket.socketpair()

        def work() -> None:
            ours.close()
            faulthandler.disable()  # pytest's own, which would print
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            step_worker.serve(theirs)

        process = _Forked(work)
        theirs.close()
        files = [Path(os.devnull).open("r+b") for _ in range(2)]  # noqa: SIM115
        return step_process.Worker(process, ours, *files)  # type: ignore[arg-type]

    step_process.start_worker = start  # type: ignore[assignment]
    step_process.LOAD_SECONDS = step_process.STEP_SECONDS = 3  # type: ignore[misc]


def try_seeds(seeds: Iterable[int], bad: list[dict[str, Any]] | None = None) -> Counter[str]:
    """Count what becomes of clients that are given mutated steps.

    `bad` collects those that neither train nor are refused by an orderly answer.
    """
    fork_workers()
    found: Counter[str] = Counter()
    for seed in seeds:
        whole, content, kinds = mutate(seed)
        result = outcome(whole, content)
        found[result] += 1
        if bad is not None and result not in (TRAINS, REFUSED):
            bad.append({"seed": seed, "step": whole.name, "changed": kinds, "result": result})
    return found


def _main() -> None:
    first, last = map(int, sys.argv[-2:])
    if "--unchecked" in sys.argv:
        for seed in range(first, last):
            whole, content, kinds = mutate(seed)
            if (result := unchecked_outcome(whole, content)) not in (TRAINS, REFUSED, TRACEBACK):
                print(seed, result, whole.name, kinds, flush=True)
        return
    bad: list[dict[str, Any]] = []
    total: Counter[str] = Counter()
    start = time.monotonic()
    for begin in range(first, last, 1000):
        total += try_seeds(range(begin, min(begin + 1000, last)), bad)
        print(min(begin + 1000, last), round(time.monotonic() - start), dict(total), flush=True)
    print(json.dumps(bad))


if __name__ == "__main__":
    _main()
