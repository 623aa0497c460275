"""A server's file in a process of its own, as the server that made it is not trusted with code.

A .tflite that is made for it can crash LiteRT's C++. Then only that process ends, and the client
says so.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt

from featherfed.compression.arrays import Array
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.step_messages import array_bytes, receive, receive_arrays, send
from featherfed.edge_client.step_tensors import StepTensors
from featherfed.proto.peer_text import printable
from featherfed.tasks.task import Values

LOAD_SECONDS = 300
"""Most seconds for starting the process and loading the step; a slow SD card takes many."""
STEP_SECONDS = 600
"""Most seconds of one training step."""
_END_SECONDS = 10.0
_MAX_ERRORS = 1 << 16
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Worker:
    """A running process of step_worker.py, and what connects it with this one."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    lifeline: IO[bytes]
    """The end of a pipe that is closed when this process is gone: that ends the other one."""
    errors: IO[bytes]
    """What the process wrote to its standard error."""

    def end(self) -> None:
        """End the process at once."""
        _running.discard(self.process.pid)
        self.process.kill()
        self.process.wait()
        for file in (self.connection, self.lifeline, self.errors):
            file.close()

    def last_words(self) -> str:
        """Return why the process has ended, as far as it is known."""
        try:
            status = self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        self.errors.seek(0)
        lines = self.errors.read(_MAX_ERRORS).decode("utf-8", "replace").splitlines()
        said = _line(next((x for x in reversed(lines) if not x.startswith("INFO:")), ""))
        if status >= 0:
            return f"ended its process with status {status} ({said or 'it does not say why'})"
        if -status == signal.SIGKILL:
            return "had its process killed, most likely as the device's memory ran out"
        name = signal.Signals(-status).name
        return f"crashed LiteRT with {name}" + (f" ({said})" if said else "")


_running: set[int] = set()
_peaks = [0]


def peak_memory() -> int:
    """Return the most bytes that a step's process took when looked at, 0 without /proc.

    Looked at by this function, and at the end of each round. Pages that it shares with others, such
    as Python's own code, are divided among them.
    """
    _peaks[0] = max([_peaks[0], *map(_held, list(_running))])
    return _peaks[0]


def _held(pid: int) -> int:
    try:
        facts = Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8")
    except OSError:
        return 0
    found = re.search(r"^Pss:\s*(\d+) kB", facts, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def start_worker() -> Worker:
    """Start a process that loads and runs one training step; raise ClientError if none starts."""
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    errors = _memory_file()
    try:
        process = subprocess.Popen(
            # -P: a file in the current folder must not take a module's place.
            [sys.executable, "-P", "-m", "featherfed.edge_client.step_worker"],
            stdin=theirs.fileno(), stdout=read_end, stderr=errors,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
    except OSError as error:
        ours.close()
        errors.close()
        os.close(write_end)
        raise ClientError(
            f"no process can be started for the training step ({error}); end others, or restart "
            "this device"
        ) from error
    finally:
        theirs.close()
        os.close(read_end)
    _running.add(process.pid)
    return Worker(process, ours, os.fdopen(write_end, "wb"), errors)


def _memory_file() -> IO[bytes]:
    """Return an empty file without a name; in memory where there is such a thing."""
    if sys.platform == "linux":  # also while the disk is full
        return os.fdopen(os.memfd_create("errors"), "w+b")
    return tempfile.TemporaryFile()


class FileProcess:
    """A file of the server's in a process of its own, and the messages to it.

    Every method of a subclass raises ClientError if the file fails, crashes or does not end.
    """

    what = "file"
    remedy = "update featherfed there"

    def __init__(self, content: bytes, tensors: StepTensors) -> None:
        """Start the process, which has loaded nothing yet."""
        self._name = f"the server's {self.what} {hashlib.sha256(content).hexdigest()[:12]}"
        self._tensors = tensors
        self._worker = start_worker()
        self._connection = self._worker.connection
        self._connection.settimeout(STEP_SECONDS)
        self._end = weakref.finalize(self, self._worker.end)

    def _call(
        self,
        header: dict[str, Any],
        parts: Iterable[bytes | memoryview] = (),
        shapes: Sequence[tuple[int, ...]] = (),
    ) -> tuple[dict[str, Any], list[Array]]:
        """Send a message; return the answer and the float32 arrays that follow it."""
        seconds = LOAD_SECONDS if header["do"].startswith("load") else STEP_SECONDS
        try:
            send(self._connection, header, *parts)
            if not _wait(self._connection, seconds):
                raise self._refusal(f"did not end within {seconds} s and was stopped", header)
            answer = receive(self._connection)
            if "failed" in answer:
                raise self._refusal(f"failed: {_line(str(answer['failed']))}", header)
            if "error" not in answer:
                return answer, receive_arrays(self._connection, shapes, np.float32)
        except (EOFError, OSError) as error:
            raise self._refusal(self._worker.last_words(), header) from error
        except ValueError as error:
            if isinstance(error, ClientError):
                raise
            raise self._refusal(f"gave an answer that is none ({error})", header) from error
        self._end()
        raise ClientError(_line(str(answer["error"])))

    def _output_shapes(self, values: object) -> dict[str, tuple[int, ...]]:
        found = {
            name: shape
            for name, shapes in self._tensors.outputs.items()
            for shape in shapes
            if isinstance(values, dict) and values.get(name) == list(shape)
        }
        if len(found) < len(self._tensors.outputs):
            raise self._refusal("gave answers of another shape than the task's", {"do": "load"})
        return found

    def _number(self, value: object, kind: type[Number]) -> Number:
        if not isinstance(value, kind):
            raise self._refusal("gave an answer without its numbers", {"do": "load or run"})
        return value

    def _refusal(self, why: str, header: Mapping[str, Any]) -> ClientError:
        """End the process; return the error that says why and what to do."""
        self._end()
        return ClientError(
            f"{self._name} {why} (at {header['do']!r}); refused. It is the server's, not this "
            "device's fault, and nothing here is lost: whoever runs the server should "
            f"{self.remedy}"
        )


class StepProcess(FileProcess):
    """An exported training step and its current weights, in a process of its own."""

    what = "training step"
    remedy = "update featherfed there, or take Keras clients (--runtime keras)"

    def __init__(
        self,
        content: bytes,
        shapes: Sequence[tuple[int, ...]],
        tensors: StepTensors,
        threads: int,
    ) -> None:
        """Load a step's file; raise ClientError if it is not the step of these weights and data.

        `shapes` are the weights', in manifest order.
        """
        super().__init__(content, tensors)
        self._shapes = shapes
        header = {
            "do": "load",
            "size": len(content),
            "shapes": [list(shape) for shape in shapes],
            "tensors": tensors,
            "threads": threads,
        }
        answer, _ = self._call(header, [content])
        self.output_shapes = self._output_shapes(answer.get("output_shapes"))
        """Shapes of the answers to one example, by the names of the tensors."""
        masked = answer.get("masked")
        self.batch_size = self._number(answer.get("batch_size"), int)
        self.masked = {self._number(k, int) for k in (masked if isinstance(masked, list) else ())}
        """Indices in the manifest of the tensors that the step masks."""

    def begin(
        self,
        weights: Sequence[Array],
        masks: Sequence[npt.NDArray[np.bool_] | None],
        learning_rate: float,
        noise_seed: Sequence[int],
    ) -> None:
        """Start from these weights, in manifest order, with a fresh optimizer."""
        header = {
            "do": "begin",
            "learning_rate": learning_rate,
            "noise_seed": [int(number) for number in noise_seed],
        }
        chosen = ((masks[k], self._shapes[k]) for k in sorted(self.masked))
        full = (np.ones(shape, np.bool_) if mask is None else mask for mask, shape in chosen)
        parts = [np.asarray(w, np.float32) for w in weights]
        self._call(header, [array_bytes(part) for part in (*parts, *full)])

    def run(self, inputs: Sequence[Values], targets: Sequence[Values]) -> float:
        """Run one step on at most `batch_size` examples; return their mean loss.

        `targets`: see `StepTensors.target_values`.
        """
        parts = [*inputs, *targets]
        answer, _ = self._call({"do": "run", "count": len(inputs[0])}, map(array_bytes, parts))
        return self._number(answer.get("loss"), float)

    def set_answering(self, weights: Sequence[Array]) -> None:
        """Let `answer` use these weights, in manifest order."""
        parts = [np.asarray(w, np.float32) for w in weights]
        self._call({"do": "set_answering"}, map(array_bytes, parts))

    def answer(self, inputs: Sequence[Values]) -> list[Array]:
        """Return each of the model's answers to at most `batch_size` examples, float32 [N, ...]."""
        count = len(inputs[0])
        shapes = [(count, *shape) for shape in self.output_shapes.values()]
        header = {"do": "answer", "count": count}
        return self._call(header, map(array_bytes, inputs), shapes)[1]

    def weights(self) -> list[Array]:
        """Return copies of the weights after the last step."""
        _, arrays = self._call({"do": "weights"}, shapes=self._shapes)
        peak_memory()
        return arrays


def _wait(connection: socket.socket, seconds: int) -> bool:
    """Wait until there is an answer; return False after `seconds` without one.

    A second is counted for each second of waiting: a process that was frozen meanwhile, or slept,
    has not used up its time.
    """
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return any(poll.poll(1000) for _ in range(seconds))


def _line(text: str) -> str:
    """Return text from the process as one short line without control characters."""
    return printable(" ".join(text.split()))
