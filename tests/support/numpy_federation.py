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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from support.models import EXAMPLES, MODELS

from featherfed.compression.arrays import Array
from featherfed.proto import federation_pb2 as pb


@dataclass(frozen=True)
class Spec:
    """The settings of a run: its plan, its clients' training, and where a process kills itself."""

    settings: dict[str, Any]
    model: str = "tiny"
    seconds: float = 0.0
    """Seconds that a round's training takes."""
    hold_last_round: bool = False
    """Training in the last round waits until DIR/over exists."""
    kill_at: str = ""
    """Place at which one process kills itself, once; see KillPoint."""
    address: str = ""
    """Address that clients use; empty: the one that the server writes to DIR/server.address."""
    give_up_after: float = 600.0
    postgres: str = ""
    """The PostgreSQL database that holds the run; empty: SQLite."""

    def write(self, directory: Path) -> None:
        """Write DIR/spec.json, which the processes read."""
        (directory / "spec.json").write_text(json.dumps(asdict(self)), "utf-8")


class KillPoint:
    """Kills the first process that reaches the chosen place in the code."""

    def __init__(self, directory: Path, place: str) -> None:
        self._place, self._marker = place, directory / "killed"

    def __call__(self, place: str) -> None:
        """Kill this process if `place` is the chosen one and no process has died there."""
        if place == self._place:
            try:
                self._marker.touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


def serve(directory: Path, spec: Spec, on_round: Callable[[], None] = lambda: None) -> bool:
    """Run the server; return whether the run has finished. `on_round`: see server/loop.py."""
    from featherfed.server.errors import CannotListen, Deposed

    kill_point = KillPoint(directory, spec.kill_at)
    while True:
        try:
            return _serve_once(directory, spec, on_round, kill_point)
        except (Deposed, CannotListen) as error:
            if not spec.postgres:
                raise
            logging.info("%s", error)
            time.sleep(1)


def _serve_once(
    directory: Path, spec: Spec, on_round: Callable[[], None], kill_point: KillPoint
) -> bool:
    import uvloop  # as `featherfed serve` does; servers inside a test's process run on asyncio
    from support import numpy_server

    coordinator, store = numpy_server.build(directory, spec, MODELS[spec.model], kill_point)

    def on_listening(address: str) -> None:
        store.advertise(address)
        scratch = directory / "server.address.tmp"
        scratch.write_text(address, "utf-8")
        scratch.replace(directory / "server.address")

    async def until_signal() -> bool:
        from featherfed.server.loop import serve

        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        return await serve(
            coordinator, on_listening=on_listening, on_round=on_round,
            on_finished=lambda: None, stop=stop,
        )  # fmt: skip

    try:
        return bool(uvloop.run(until_signal()))
    finally:
        store.close()


class RandomWalk:
    """A trainer whose update depends on the client's name and the round alone."""

    def __init__(self, directory: Path, spec: Spec, name: str) -> None:
        self._spec, self._directory, self._name = spec, directory, name

    def train(self, weights: Sequence[Array], task: pb.Train) -> Any:
        from featherfed.edge_client.trainer import TrainingResult

        time.sleep(self._spec.seconds)
        if self._spec.hold_last_round and task.round == self._spec.settings["rounds"]:
            while not (self._directory / "over").exists():
                time.sleep(0.05)
        rng = np.random.default_rng([zlib.crc32(self._name.encode()), task.round])
        moved = [w + rng.standard_normal(w.shape, np.float32) * np.float32(0.01) for w in weights]
        return TrainingResult(moved, 0.5)

    def set_scaling(self, scaling: Any) -> None:
        """Do nothing: the task standardises nothing."""

    def evaluate(self, weights: Sequence[Array]) -> None:
        """Return None: there are no examples."""


def join(directory: Path, spec: Spec, name: str) -> None:
    """Run a client to the end of the run; write its final model's digest to DIR/held-NAME."""
    from support.clients import profile

    from featherfed.edge_client.grpc_transport import GrpcTransport
    from featherfed.edge_client.session import Session
    from featherfed.edge_client.state import ClientState

    kill_point = KillPoint(directory, spec.kill_at)

    class Transport(GrpcTransport):
        def fetch_model(
            self, request: pb.FetchModelRequest, limit: int
        ) -> tuple[list[pb.Link], bytes]:
            found = super().fetch_model(request, limit)
            kill_point("client: downloaded")
            return found

        def submit_update(self, header: pb.UpdateHeader, payload: bytes) -> pb.SubmitReply:
            kill_point("client: before sending")
            reply = super().submit_update(header, payload)
            kill_point("client: acknowledged")
            line = f"{header.round} {pb.Outcome.Name(reply.outcome)} {len(payload)}\n"
            with (directory / f"acks-{name}").open("a") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            return reply

    class State(ClientState):
        def save_held(self, held: Any) -> None:
            kill_point("client: before the model is kept")
            super().save_held(held)
            kill_point("client: the model is kept")

        def save_residual(self, residual: Any) -> None:
            kill_point("client: before settling")
            super().save_residual(residual)
            kill_point("client: between settle's two files")

        def settle(self, residual: Any) -> None:
            super().settle(residual)
            kill_point("client: settled")

        def save_pending(self, pending: Any) -> None:
            if spec.kill_at == "client: torn write":
                (directory / f"state-{name}" / ".new-pending.npz").write_bytes(b"PK\3\4torn")
            kill_point("client: torn write")
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
        lambda plan, manifest, step: RandomWalk(directory, spec, name),
        lambda run: State(directory / f"state-{name}", run),
    ).run()
    transport.close()
    (directory / f"held-{name}").write_text(held.digest.hex(), "utf-8")


def main() -> None:
    """Run the server or a client, as the command line says."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    role, directory = sys.argv[1], Path(sys.argv[2])
    spec = Spec(**json.loads((directory / "spec.json").read_text("utf-8")))
    if role == "server":
        if len(sys.argv) > 3:
            spec.settings["server"]["port"] = int(sys.argv[3])
        sys.exit(0 if serve(directory, spec) else 1)
    join(directory, spec, sys.argv[3])


if __name__ == "__main__":
    main()
