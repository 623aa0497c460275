"""A gRPC server that answers as it is told to, and a client of it in a process of its own.

As a script it is that client: `python hostile_server.py ADDRESS FOLDER`, with KIND for a follower.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from support.clients import Pull, profile
from support.models import TASK

from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import Manifest, TensorSpec, Uniform, weights_digest
from featherfed.edge_client.errors import (
    BadRelease,
    ClientError,
    Rejected,
    SessionLost,
    Unreachable,
)
from featherfed.edge_client.follower import Follower, ModelFile
from featherfed.edge_client.grpc_releases import GrpcReleaseSource
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.partial_download import FILE_NAME
from featherfed.edge_client.session import Session
from featherfed.edge_client.state import ClientState
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.proto.protocol import PROTOCOL
from featherfed.tasks.message import task_message

MODEL = Manifest((TensorSpec("kernel", (100, 100), initial=Uniform(0.1)),))
"""A model of 40 kB."""
SEED = weights_digest(initial_weights(MODEL, 0))
SEED_LINK = pb.Link(kind=pb.Link.SEED, digest=SEED)
TRAIN = pb.Train(round=1, codec="float32 | zstd", digest=SEED, slots=1)

Answer = Callable[[Any, Any], Any]


def plan(**changes: Any) -> pb.Plan:
    """Return a plan for MODEL that a client takes, with these fields instead."""
    tensors = [pb.Tensor(name=s.name, shape=s.shape, role=s.role, uniform_limit=0.1) for s in MODEL]
    fields: dict[str, Any] = {
        "run": "run",
        "model_json": "{}",
        "manifest": tensors,
        "training": pb.Training(
            epochs=1, batch_size=8, learning_rate=0.1, optimizer="sgd", loss=TASK.loss
        ),
        "task": task_message(TASK),
        "optimization": pb.Optimization(method="none", num_clusters=16),
        "rounds": 9,
    }
    return pb.Plan(**{**fields, **changes})


class HostileServer(pb_grpc.FederationServicer):
    """Gives `answers`, by method: a reply, an iterable of them, or a function that makes one.

    What is not answered otherwise is right: a run of MODEL with one client and one round. Used in
    a `with` block; `calls` counts the calls by method, `sent` the bytes of streamed messages.
    """

    def __init__(self, **answers: Any) -> None:
        self._answers = answers
        self.calls: dict[str, int] = {}
        self.sent = 0
        self._server = grpc.server(
            futures.ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", -1)]
        )
        pb_grpc.add_FederationServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> HostileServer:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def _answer(self, method: str, request: Any, context: Any, default: Any) -> Any:
        self.calls[method] = self.calls.get(method, 0) + 1
        answer = self._answers.get(method, default)
        return answer(request, context) if callable(answer) else answer

    def _stream(self, method: str, request: Any, context: Any, default: Any) -> Iterator[Any]:
        for message in self._answer(method, request, context, default):
            self.sent += message.ByteSize()
            yield message

    def GetTask(self, request: Any, context: Any) -> Any:
        default = pb.GetTaskReply(task=task_message(TASK), loss=TASK.loss, protocol=PROTOCOL)
        return self._answer("GetTask", request, context, default)

    def Join(self, request: Any, context: Any) -> Any:
        return self._answer(
            "Join", request, context, pb.JoinReply(session=1, plan=plan(), protocol=PROTOCOL)
        )

    def NextTask(self, request: Any, context: Any) -> Any:
        return self._answer("NextTask", request, context, pb.NextTaskReply(train=TRAIN))

    def FetchModel(self, request: Any, context: Any) -> Iterator[Any]:
        default = [pb.ModelChunk(links=[SEED_LINK])]
        yield from self._stream("FetchModel", request, context, default)

    def FetchStep(self, request: Any, context: Any) -> Iterator[Any]:
        yield from self._stream("FetchStep", request, context, [])

    def FetchRelease(self, request: Any, context: Any) -> Iterator[Any]:
        yield from self._stream("FetchRelease", request, context, [])

    def SubmitUpdate(self, request: Any, context: Any) -> Any:
        for _ in request:
            pass
        return self._answer("SubmitUpdate", request, context, pb.SubmitReply(outcome=pb.ACCEPTED))

    def ReportEvaluation(self, request: Any, context: Any) -> Any:
        return self._answer("ReportEvaluation", request, context, pb.EvaluationReceipt())

    def FetchModelFile(self, request: Any, context: Any) -> Iterator[Any]:
        yield from self._stream("FetchModelFile", request, context, [])

    def ReportRanges(self, request: Any, context: Any) -> Any:
        return self._answer("ReportRanges", request, context, pb.RangesReceipt())

    def ResumeUpload(self, request: Any, context: Any) -> Any:
        return self._answer("ResumeUpload", request, context, pb.ResumeUploadReply())


def abort(code: grpc.StatusCode, text: str, *metadata: tuple[str, str]) -> Answer:
    """Return an answer that refuses a call."""

    def answer(request: Any, context: Any) -> Any:
        context.abort_with_status(_Status(code, text, metadata))

    return answer


class _Status(grpc.Status):  # type: ignore[misc]
    def __init__(self, code: grpc.StatusCode, details: str, metadata: Any) -> None:
        self.code, self.details, self.trailing_metadata = code, details, metadata


def stream(links: Iterable[pb.Link], num_bytes: int) -> Answer:
    """Return an answer to FetchModel: links, and zeros in chunks of 64 KiB."""

    def answer(request: Any, context: Any) -> Iterator[Any]:
        yield pb.ModelChunk(links=links)
        for at in range(0, num_bytes, 2**16):
            yield pb.ModelChunk(data=bytes(min(2**16, num_bytes - at)))

    return answer


@dataclass(frozen=True)
class Outcome:
    """How a client's process ended: "refused", "taken", "crashed" or "still going on"."""

    kind: str
    text: str
    seconds: float
    peak_mib: float
    """The most resident memory of its process, above what it held before the first call."""
    disk_mib: float
    """The most that its folder held at any moment."""


def run_client(address: str, folder: Path, *follow: str, limit: float = 10.0) -> Outcome:
    """Run this file's client against a server, at most `limit` seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, address, str(folder), *follow]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    largest = _Watch(folder)
    began = time.monotonic()
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        peak = _peak_of(process.pid)
        process.kill()
        out, _ = process.communicate()
        last = {"kind": "still going on", "peak_mib": peak, "seconds": time.monotonic() - began}
    else:
        last = {"kind": "crashed", "text": err.decode("utf-8", "replace").strip().split("\n")[-1]}
    disk = largest.end()
    first, *rest = [json.loads(line) for line in out.decode().splitlines()] or [{}]
    found = {"peak_mib": 0.0, "seconds": 0.0, **(rest[-1] if rest else last)}
    return Outcome(
        found["kind"],
        found.get("text", ""),
        round(found["seconds"], 1),
        round(found["peak_mib"] - first.get("peak_mib", 0.0), 1),
        round(disk, 1),
    )


def _peak_of(pid: int | str) -> float:
    """Return the most resident memory that a process had so far, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


class _Watch:
    """Notes the most bytes that a folder holds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._most = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self._look()

    def _look(self) -> None:
        total = 0
        for path in self._folder.rglob("*"):
            with contextlib.suppress(OSError):
                total += path.stat().st_size
        self._most = max(self._most, total)

    def end(self) -> float:
        self._stop.set()
        self._thread.join()
        self._look()
        return self._most / 2**20


def _take_part(address: str, folder: Path) -> None:
    transport = GrpcTransport(address, 3, partial=folder / FILE_NAME)
    Session(
        profile("client"),
        transport,
        lambda plan, manifest, step: Pull(1.0),
        lambda run: ClientState(folder, run),
    ).run()


def _follow(address: str, folder: Path, kind: str) -> None:
    Follower("device", kind, GrpcReleaseSource(address, 3), ModelFile(folder, kind)).run(once=True)


def _main(address: str, folder: str, *kind: str) -> None:
    # What a hostile server makes a client ask for must not take this machine down.
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
    print(json.dumps({"peak_mib": _peak_of("self")}), flush=True)
    found: dict[str, Any] = {"kind": "taken", "text": ""}
    began = time.monotonic()
    try:
        if kind:
            _follow(address, Path(folder), *kind)
        else:
            _take_part(address, Path(folder))
    except (BadRelease, ClientError, Rejected, SessionLost, Unreachable) as error:
        found = {"kind": "refused", "text": str(error)}
    finally:
        found["seconds"] = time.monotonic() - began
        found["peak_mib"] = _peak_of("self")
        if sys.exc_info()[0] is not None:
            found.update(kind="crashed", text=repr(sys.exc_info()[1])[:200])
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
