"""The process in which a server's training step or model file runs, started by step_process.py.

A file that crashes LiteRT ends this process alone. It holds no secrets and no data but the batch it
trains on, and once the step is loaded it can open neither files nor connections.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.model_interpreter import ModelInterpreter
from featherfed.edge_client.step_interpreter import TrainingStep
from featherfed.edge_client.step_messages import (
    array_bytes,
    receive,
    receive_arrays,
    receive_bytes,
    send,
)
from featherfed.edge_client.step_tensors import StepTensors, Tensor

CONNECTION, LIFELINE = 0, 1
"""File descriptors: the messages, and a pipe that ends with the client."""
_MAX_ERROR = 500
_STACK_BYTES = 8 << 20  # a thread's, which counts whole though little of it is used


def serve(connection: socket.socket) -> None:
    """Answer a client's messages until it ends the connection."""
    worker = _Worker(connection)
    while True:
        try:
            header = receive(connection)
        except (EOFError, ConnectionError):
            return
        try:
            worker.answer(header)
        except ClientError as error:
            send(connection, {"error": str(error)[:_MAX_ERROR]})
        except Exception as error:  # whatever LiteRT and numpy make of a stranger's file
            send(connection, {"failed": f"{type(error).__name__}: {error}"[:_MAX_ERROR]})


class _Worker:
    """Answers a client's messages with a training step, or with a model file."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._step: TrainingStep
        self._model: ModelInterpreter

    def answer(self, header: dict[str, Any]) -> None:
        """Answer the message `header`."""
        answers: dict[str, Callable[[dict[str, Any]], None]] = {
            "load": self._load,
            "begin": self._begin,
            "run": self._run,
            "weights": self._weights,
            "set_answering": self._set_answering,
            "answer": self._answer,
            "load_model": self._load_model,
            "answer_model": self._answer_model,
            "ranges": self._ranges,
        }
        answers[header["do"]](header)

    def _load(self, header: dict[str, Any]) -> None:
        content = bytes(receive_bytes(self._connection, header["size"]))
        self._shapes = [tuple(shape) for shape in header["shapes"]]
        self._tensors = StepTensors.from_json(header["tensors"])
        memory = _available_memory()
        if memory is not None:
            _limit_memory(memory + header["threads"] * _STACK_BYTES)
        self._step = TrainingStep(content, self._shapes, self._tensors, header["threads"], memory)
        self._masked = sorted(self._step.masked)
        _close_doors()
        step = self._step
        send(
            self._connection,
            {
                "batch_size": step.batch_size,
                "masked": self._masked,
                "output_shapes": step.output_shapes,
            },
        )

    def _load_model(self, header: dict[str, Any]) -> None:
        content = bytes(receive_bytes(self._connection, header["size"]))
        self._tensors = StepTensors.from_json(header["tensors"])
        memory = _available_memory()
        if memory is not None:
            _limit_memory(memory + header["threads"] * _STACK_BYTES)
        self._model = ModelInterpreter(
            content,
            self._tensors,
            header["inputs"],
            header["outputs"],
            header["threads"],
            memory,
            measured=header["measured"],
        )
        _close_doors()
        model = self._model
        answer = {"output_shapes": model.output_shapes, "measured": model.num_measured}
        send(self._connection, answer)

    def _answer_model(self, header: dict[str, Any]) -> None:
        answers = self._model.answer(self._inputs(header["count"]))
        send(self._connection, {}, *map(array_bytes, answers))

    def _ranges(self, header: dict[str, Any]) -> None:
        send(self._connection, {}, array_bytes(self._model.ranges()))

    def _begin(self, header: dict[str, Any]) -> None:
        weights = receive_arrays(self._connection, self._shapes, np.float32)
        shapes = [self._shapes[k] for k in self._masked]
        masks = dict(
            zip(self._masked, receive_arrays(self._connection, shapes, np.bool_), strict=True)
        )
        self._step.begin(
            weights,
            [masks.get(k) for k in range(len(weights))],
            header["learning_rate"],
            header["noise_seed"],
        )
        send(self._connection, {})

    def _run(self, header: dict[str, Any]) -> None:
        inputs = self._inputs(header["count"])
        wanted = [self._array(header["count"], t) for t in self._tensors.targets.values()]
        send(self._connection, {"loss": self._step.run(inputs, wanted)})

    def _set_answering(self, header: dict[str, Any]) -> None:
        self._step.set_answering(receive_arrays(self._connection, self._shapes, np.float32))
        send(self._connection, {})

    def _answer(self, header: dict[str, Any]) -> None:
        answers = self._step.answer(self._inputs(header["count"]))
        send(self._connection, {}, *map(array_bytes, answers))

    def _inputs(self, count: int) -> list[Any]:
        return [self._array(count, tensor) for tensor in self._tensors.inputs]

    def _array(self, count: int, tensor: Tensor) -> Any:
        (values,) = receive_arrays(
            self._connection, [(count, *tensor.shape)], np.dtype(tensor.dtype)
        )
        return values

    def _weights(self, header: dict[str, Any]) -> None:
        send(self._connection, {}, *map(array_bytes, self._step.weights()))


def _available_memory() -> int | None:
    """Return bytes that this process could still take; None where there is no /proc."""
    with suppress(OSError):
        facts = Path("/proc/meminfo").read_text("utf-8").splitlines()
        fields = dict(line.split(":", 1) for line in facts)
        return 1024 * sum(int(fields[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    return None


def _limit_memory(available: int) -> None:
    """Limit this process to the memory that the device has to spare, and let it be killed first."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with suppress(OSError, ValueError):  # where the limit is lower already
        resource.setrlimit(resource.RLIMIT_DATA, (held + available,) * 2)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "utf-8")


def _close_doors() -> None:
    """Open no file or connection from now on."""
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))


def _end_with_client() -> None:
    """Be ended by the system as soon as the client is gone, even in the midst of a step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    fcntl.fcntl(LIFELINE, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(LIFELINE, fcntl.F_GETFL)
    fcntl.fcntl(LIFELINE, fcntl.F_SETFL, flags | os.O_ASYNC)


if __name__ == "__main__":
    _end_with_client()
    with socket.socket(fileno=CONNECTION) as given:
        serve(given)
