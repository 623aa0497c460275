"""A federation's two sides without TensorFlow, as processes that a test may kill.

`python -m support.numpy_federation server DIR` and `... client DIR NAME` (tests/ in PYTHONPATH)
read DIR/spec.json, see Spec. Server, store, session and gRPC are the real ones. A client's update
follows from its name and the round alone, and the evaluation needs no data. A client writes every
acknowledgement to DIR/acks-NAME (fsync) before it goes on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from support.models import EXAMPLES, MODELS

from featherfed.compression.arrays import Array
from featherfed.proto import federation_pb2 as pb


@dataclass(frozen=True)
class Spec:
    """What a light run is like."""

    settings: dict[str, Any]
    model: str = "tiny"
    seconds: float = 0.0
    """How long a round's training takes."""
    gate: bool = False
    """Training in the last round waits until DIR/over exists."""
    fault: str = ""
    """Where a process kills itself, once; see Fault."""
    address: str = ""
    """Where clients find the server, if not where it says itself."""
    give_up_after: float = 600.0
    environment: dict[str, str] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Write it where the processes look."""
        (directory / "spec.json").write_text(json.dumps(asdict(self)), "utf-8")


class Fault:
    """Kills this process at a named place, the first time that it is reached by any process."""

    def __init__(self, directory: Path, place: str) -> None:
        self._place, self._marker = place, directory / "fault"

    def __call__(self, place: str) -> None:
        """Die here, if this is the place."""
        if place == self._place:
            try:
                self._marker.touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


def serve(directory: Path, spec: Spec) -> bool:
    """Run the server; return whether the run has finished."""
    from support import numpy_server

    fault = Fault(directory, spec.fault)
    coordinator, store = numpy_server.build(directory, spec, MODELS[spec.model], fault)

    def on_listening(address: str) -> None:
        scratch = directory / "server.address.tmp"
        scratch.write_text(address, "utf-8")
        scratch.replace(directory / "server.address")

    async def until_signal() -> bool:
        from featherfed.server.loop import serve

        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        return await serve(
            coordinator, on_listening=on_listening, on_round=lambda: None,
            on_finished=lambda: None, stop=stop,
        )  # fmt: skip

    try:
        return asyncio.run(until_signal())
    finally:
        store.close()


class Walk:
    """A trainer whose update follows from the client's name and the round alone."""

    def __init__(self, directory: Path, spec: Spec, name: str) -> None:
        self._spec, self._directory, self._name = spec, directory, name

    def train(self, weights: Sequence[Array], task: pb.Train) -> Any:
        from featherfed.edge_client.trainer import Trained

        time.sleep(self._spec.seconds)
        if self._spec.gate and task.round == self._spec.settings["rounds"]:
            while not (self._directory / "over").exists():
                time.sleep(0.05)
        rng = np.random.default_rng([zlib.crc32(self._name.encode()), task.round])
        moved = [w + rng.standard_normal(w.shape, np.float32) * np.float32(0.01) for w in weights]
        return Trained(moved, 0.5, 0.75)


def join(directory: Path, spec: Spec, name: str) -> None:
    """Run a client to the end of the run; writes the digest it ends with to DIR/held-NAME."""
    from support.clients import profile

    from featherfed.edge_client.grpc_transport import GrpcTransport
    from featherfed.edge_client.session import Session
    from featherfed.edge_client.state import ClientState

    fault = Fault(directory, spec.fault)

    class Transport(GrpcTransport):
        def fetch_model(self, request: pb.FetchModelRequest) -> tuple[list[pb.Link], bytes]:
            found = super().fetch_model(request)
            fault("client: downloaded")
            return found

        def submit_update(self, header: pb.UpdateHeader, payload: bytes) -> pb.SubmitReply:
            fault("client: before sending")
            reply = super().submit_update(header, payload)
            fault("client: acknowledged")
            line = f"{header.round} {pb.Outcome.Name(reply.outcome)} {len(payload)}\n"
            with (directory / f"acks-{name}").open("a") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            return reply

    class State(ClientState):
        def save_held(self, held: Any) -> None:
            fault("client: before the model is kept")
            super().save_held(held)
            fault("client: the model is kept")

        def save_residual(self, residual: Any) -> None:
            fault("client: before settling")
            super().save_residual(residual)
            fault("client: between settle's two files")

        def settle(self, residual: Any) -> None:
            super().settle(residual)
            fault("client: settled")

        def save_pending(self, pending: Any) -> None:
            if spec.fault == "client: torn write":
                (directory / f"state-{name}" / ".new-pending.npz").write_bytes(b"PK\3\4torn")
            fault("client: torn write")
            super().save_pending(pending)

    address = spec.address
    while not address:
        time.sleep(0.02)
        if (directory / "server.address").exists():
            address = (directory / "server.address").read_text("utf-8")
    transport = Transport(address, spec.give_up_after)
    held = Session(
        profile(name, EXAMPLES),
        transport,
        lambda plan, manifest, step: Walk(directory, spec, name),
        lambda run: State(directory / f"state-{name}", run),
    ).run()
    transport.close()
    (directory / f"held-{name}").write_text(held.digest.hex(), "utf-8")


def main() -> None:
    """Be one side."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    role, directory = sys.argv[1], Path(sys.argv[2])
    spec = Spec(**json.loads((directory / "spec.json").read_text("utf-8")))
    if role == "server":
        sys.exit(0 if serve(directory, spec) else 1)
    join(directory, spec, sys.argv[3])


if __name__ == "__main__":
    main()
