"""What a round costs besides training, in seconds and processor time: part of `make bench`.

A server and five client processes exchange a model of 225,034 parameters over gRPC and train
nothing: a bare gRPC server, which is the floor; the same with each model and update on disk before
it is acknowledged or used, as featherfed promises; Flower, in an environment of its own; and
featherfed with two codecs. All systems run several times, in turns. 20 rounds are measured, from
the close of the first round to the close of the last but one; processor time is the difference of
what all processes have used at these two moments. So starts and imports are in neither.

Writes benchmarks/results/round_cost.json; without Flower's row where it cannot be installed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from flower_worker import NullTraining, load_model, note_close

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the server and the model of small tests

from support import numpy_federation  # noqa: E402
from support.clients import WithoutData, profile  # noqa: E402
from support.kills import KillableProcesses, free_port, numpy_spec  # noqa: E402
from support.load import cpu_seconds  # noqa: E402
from support.models import EXAMPLES, MODELS  # noqa: E402

from featherfed.api.machine import machine  # noqa: E402
from featherfed.compression.arrays import Array  # noqa: E402
from featherfed.compression.exchange.initial_weights import initial_weights  # noqa: E402
from featherfed.edge_client.grpc_transport import GrpcTransport  # noqa: E402
from featherfed.edge_client.session import Session  # noqa: E402
from featherfed.edge_client.state import ClientState  # noqa: E402
from featherfed.edge_client.trainer import TrainingResult  # noqa: E402
from featherfed.proto import federation_pb2 as pb  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "round_cost.json"
FLOWER_VENV = ROOT / "runs" / "flower"
FLOWER = "flwr==1.42.0"
MODEL = MODELS["cnn"]
CLIENTS, ROUNDS, REPEATS = 5, 20, 3
FLOORS = ("floor", "durable")
TIMEOUT = 600.0
"""Seconds that a run may take."""
Commands = dict[str, list[str]]


def keep(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and return once it is on disk."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


class FloorServer:
    """Averages the clients' models in memory, and does nothing else.

    `durable`: every update, and every new model, is on disk first.
    """

    def __init__(self, directory: Path, durable: bool) -> None:
        self._directory = directory
        self._durable = durable
        self._model = np.concatenate([tensor.ravel() for tensor in load_model(directory)])
        self._sum = np.zeros_like(self._model)
        self._received = self._stored = 0
        self._round = 1
        self._closed = asyncio.Event()

    async def poll(self, request: bytes, context: Any) -> bytes:
        """Answer with the round once it is later than the client's last."""
        while self._round <= int.from_bytes(request, "little"):
            await self._closed.wait()
        return self._round.to_bytes(4, "little")

    async def download(self, request: bytes, context: Any) -> bytes:
        """Answer with the global model."""
        return self._model.tobytes()

    async def upload(self, request: bytes, context: Any) -> bytes:
        """Add a client's model; the last one closes the round."""
        if self._durable:
            self._stored += 1
            path = self._directory / f"update-{self._stored % CLIENTS}"
            await asyncio.to_thread(keep, path, request)
        self._sum += np.frombuffer(request, np.float32)
        self._received += 1
        if self._received == CLIENTS:
            self._model = self._sum / np.float32(CLIENTS)
            if self._durable:
                await asyncio.to_thread(keep, self._directory / "model", self._model.tobytes())
            self._sum, self._received = np.zeros_like(self._sum), 0
            self._round += 1
            note_close(self._directory)
            self._closed.set()
            self._closed = asyncio.Event()
        return b""


def serve_floor(address: str, directory: Path, durable: int) -> None:
    """Run the floor's server until it is killed."""
    asyncio.run(_serve_floor(address, directory, bool(durable)))


async def _serve_floor(address: str, directory: Path, durable: bool) -> None:
    floor = FloorServer(directory, durable)
    calls = {
        call.__name__: grpc.unary_unary_rpc_method_handler(call)
        for call in (floor.poll, floor.download, floor.upload)
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor", calls),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


def join_floor(address: str, directory: Path, number: int, durable: int) -> None:
    """Run a client of the floor until it is killed."""
    training, done = NullTraining(load_model(directory), number), bytes(4)
    with grpc.insecure_channel(address) as channel:
        poll, download, upload = (
            channel.unary_unary(f"/floor/{name}", None, None)
            for name in ("poll", "download", "upload")
        )
        while True:
            done = poll(done, wait_for_ready=True)
            model = download(b"")
            if durable:
                keep(directory / f"held-{number}", model)
            update = b"".join(tensor.tobytes() for tensor in training.moved(_tensors(model)))
            if durable:
                keep(directory / f"pending-{number}", update)
            upload(update)


def _tensors(data: bytes) -> list[Array]:
    """Return the tensors that follow each other in `data`."""
    ends = np.cumsum([spec.size for spec in MODEL])[:-1]
    parts = np.split(np.frombuffer(data, np.float32), ends)
    return [part.reshape(spec.shape) for part, spec in zip(parts, MODEL, strict=True)]


class NullTrainer(WithoutData):
    """A trainer of featherfed that trains nothing."""

    def __init__(self, directory: Path, number: int) -> None:
        self._training = NullTraining(load_model(directory), number)

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Return the weights, moved by a fixed update."""
        return TrainingResult(self._training.moved(weights), 0.5)


def serve_featherfed(address: str, directory: Path) -> None:
    """Run featherfed's server, with the run file's settings in DIR/spec.json."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    spec = numpy_federation.Spec(**json.loads((directory / "spec.json").read_text("utf-8")))
    numpy_federation.serve(directory, spec, lambda: note_close(directory))


def join_featherfed(address: str, directory: Path, number: int) -> None:
    """Run a client of featherfed, with its state on disk."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    trainer = NullTrainer(directory, number)
    Session(
        profile(f"c{number}", EXAMPLES),
        GrpcTransport(address, give_up_after=TIMEOUT),
        lambda plan, manifest, step: trainer,
        lambda run: ClientState(directory / f"state-{number}", run),
    ).run()


def flower_python() -> Path | None:
    """Return the interpreter of an environment with Flower; None if it cannot be installed."""
    python = FLOWER_VENV / "bin" / "python"
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        FLOWER,
    ]
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", FLOWER_VENV], check=True)
        subprocess.run(install, check=True)
    except subprocess.CalledProcessError as error:
        print(f"Flower is left out, as {FLOWER} cannot be installed: {error}", file=sys.stderr)
        return None
    return python


def commands(system: str, python: Path, directory: Path, rounds: int) -> Commands:
    """Prepare `directory` for a run of a system; return the commands of its processes."""
    np.savez(directory / "model.npz", *initial_weights(MODEL, 0))
    port, here = free_port(), Path(__file__).resolve()
    where, last = [f"127.0.0.1:{port}", str(directory)], list[str]()
    if system == "flower":
        program, kind = [str(python), str(here.with_name("flower_worker.py"))], ""
        where_server = [*where, str(rounds), str(CLIENTS)]
    elif system in FLOORS:
        program, kind = [str(python), str(here)], "floor-"
        durable = str(int(system == "durable"))
        where_server = [*where, durable]
        last = [durable]
    else:
        program, kind, where_server = [str(python), str(here)], "featherfed-", where
        spec = numpy_spec(system, rounds, CLIENTS, model="cnn")
        spec.settings["server"]["port"] = port
        spec.write(directory)
    clients = {f"c{n}": [*program, f"{kind}client", *where, str(n), *last] for n in range(CLIENTS)}
    return {"server": [*program, f"{kind}server", *where_server], **clients}


def measure(system: str, python: Path, rounds: int = ROUNDS) -> dict[str, float]:
    """Run a system once; return the seconds and processor seconds of a round."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        # The first and the last round are not measured: processes start, and end.
        with KillableProcesses(directory, commands(system, python, directory, rounds + 2)) as run:
            _wait_for_closes(run, 1)
            before = _cpu_seconds(run)
            _wait_for_closes(run, rounds + 1)
            after = _cpu_seconds(run)
        lines = (directory / "closes").read_text("utf-8").split()[: rounds + 1]
    seconds = [end - begin for begin, end in pairwise(map(float, lines))]
    used = {name: (after[name] - before[name]) / rounds for name in after}
    return {
        "seconds": round(statistics.median(seconds), 4),
        "longest_seconds": round(max(seconds), 4),
        "cpu_seconds": round(sum(used.values()), 4),
        "server_cpu_seconds": round(used["server"], 4),
    }


def _wait_for_closes(run: KillableProcesses, count: int) -> None:
    """Wait until `count` rounds have been closed; raise RuntimeError if a process ends before."""
    path, until = run.directory / "closes", time.monotonic() + TIMEOUT
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        ended = [name for name, process in run.running.items() if process.poll() is not None]
        if ended or time.monotonic() > until:
            name = (ended or ["server"])[0]
            raise RuntimeError(f"{name} has ended or takes too long:\n{run.log(name)}")
        time.sleep(0.005)


def _cpu_seconds(run: KillableProcesses) -> dict[str, float]:
    """Return the user and system time of each process."""
    return {name: cpu_seconds(process.pid) for name, process in run.running.items()}


def main() -> None:
    """Measure all systems in turns, and write the result."""
    here, flower = Path(sys.executable), flower_python()
    pythons = {"floor": here, "durable": here, "flower": flower, "balanced": here, "float32": here}
    load = round(os.getloadavg()[0], 1)
    rows: dict[str, list[dict[str, float]]] = {}
    for _ in range(REPEATS):
        for system, python in pythons.items():
            if python is not None:
                found = measure(system, python)
                rows.setdefault(system, []).append(found)
                print(system, found, flush=True)
    parameters = sum(spec.size for spec in MODEL)
    facts = {
        "machine": machine(), "load_before": load, "clients": CLIENTS, "rounds": ROUNDS,
        "parameters": parameters, "flower": FLOWER,
    }  # fmt: skip
    text = json.dumps({**facts, "systems": rows}, indent=1)
    RESULT.write_text(text + "\n", "utf-8")


ROLES: dict[str, Callable[..., None]] = {
    "floor-server": serve_floor,
    "floor-client": join_floor,
    "featherfed-server": serve_featherfed,
    "featherfed-client": join_featherfed,
}

if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        role, where, folder, *number = sys.argv[1:]
        ROLES[role](where, Path(folder), *map(int, number))
