"""Training steps with a few fields changed, and what becomes of a client that is given one.

`PYTHONPATH=tests python tests/support/step_mutations.py FIRST LAST` tries the seeds from FIRST to
LAST and prints what became of them. The steps in tests/support/steps were exported by
`export_training_step` for 8x8 digits and batches of 4; their names say model, method and optimizer.
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

from featherfed.compression.exchange.manifest import Manifest, TensorSpec
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.litert_trainer import LitertTrainer
from featherfed.proto import federation_pb2 as pb

try:
    from featherfed.edge_client import step_process, step_worker
    from featherfed.edge_client.step_graph import check_graph
except ImportError:  # the code of before runs the step in the client's own process
    step_process = step_worker = None  # type: ignore[assignment]

FOLDER = Path(__file__).parent / "steps"
NAMES = sorted(path.name.removesuffix(".tflite.zst") for path in FOLDER.glob("*.zst"))
_WEIGHTS = [1 / (FOLDER / f"{name}.tflite.zst").stat().st_size for name in NAMES]  # as fast
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
class Step:
    """An exported training step as it should be."""

    name: str
    content: bytes
    fields: dict[str, list[Field]]
    num_tensors: int
    shapes: list[tuple[int, ...]]
    masked: set[int]


@cache
def step(name: str) -> Step:
    """Return one of the steps in `NAMES`."""
    content = zstd.decompress((FOLDER / f"{name}.tflite.zst").read_bytes())
    inputs = Interpreter(model_content=content).get_signature_runner("train").get_input_details()
    count = sum(key.startswith("weight_") for key in inputs)
    return Step(
        name,
        content,
        *fields_of(content),
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
    content, kinds = changed(whole.content, whole.fields, whole.num_tensors, dice)
    return whole, content, kinds


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
    """Train with a step; return what became of the client.

    That is TRAINS, REFUSED, CRASHED or STOPPED by a ClientError, TRACEBACK, HUNG or the name of a
    signal.
    """
    if step_process is not None:
        try:
            check_graph(content)  # the first that a step's process does; here it saves a fork
        except ClientError:
            return REFUSED
        return _client(whole, content)  # a step that crashes or hangs it would end this process
    process = os.fork()
    if not process:
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(_RESULTS.index(_client(whole, content)))
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return HUNG if name == "SIGALRM" else name
    return _RESULTS[os.WEXITSTATUS(status)]


def _client(whole: Step, content: bytes) -> str:
    try:
        train(whole, content)
    except ClientError as error:
        if "crashed LiteRT" in str(error) or "killed" in str(error):
            return CRASHED
        return STOPPED if "did not end" in str(error) else REFUSED
    except Exception:
        return TRACEBACK
    return TRAINS


def train(whole: Step, content: bytes) -> None:
    """Train one epoch with `content`, as a client would that was given it for `whole`."""
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
    images = rng.integers(0, 256, (EXAMPLES, 8, 8, 1), np.uint8)
    labels = np.arange(EXAMPLES)
    trainer = LitertTrainer(plan, manifest, content, images, labels, client="c")
    weights = [rng.normal(0, 0.1, shape).astype(np.float32) for shape in whole.shapes]
    trainer.train(weights, pb.Train(round=1, slots=1))


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
    if step_process is not None:
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
    first, last = map(int, sys.argv[1:3])
    bad: list[dict[str, Any]] = []
    total: Counter[str] = Counter()
    start = time.monotonic()
    for begin in range(first, last, 1000):
        total += try_seeds(range(begin, min(begin + 1000, last)), bad)
        print(min(begin + 1000, last), round(time.monotonic() - start), dict(total), flush=True)
    print(json.dumps(bad))


if __name__ == "__main__":
    _main()
