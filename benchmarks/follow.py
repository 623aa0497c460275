"""Measures the downloads of an inference-only device, and kills it: part of `make bench`.

Makes a run of the example (fewer epochs a round) over real gRPC, one process a client, and follows
it; then kills a real `featherfed follow` again and again while it swaps those same files.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from featherfed.api.machine import machine
from featherfed.compression.arrays import Array
from featherfed.compression.exchange.filedelta import encode_file
from featherfed.compression.exchange.manifest import Manifest, TensorSpec
from featherfed.compression.files import scratch_of
from featherfed.datasets.partition import partition
from featherfed.datasets.sources import load_train_test
from featherfed.edge_client.follower import Follower, ModelFile, Swap
from featherfed.edge_client.grpc_releases import GrpcReleaseSource
from featherfed.models.tflite import TfliteModel
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.coordinator.evaluation import Evaluation
from featherfed.server.rpc.server import create_server
from featherfed.server.rpc.service import FederationService
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.store import Store
from featherfed.server.transfers.releases import Releases
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.task import image_task

RESULT = Path(__file__).parent / "results" / "follow.json"
ROUNDS, EPOCHS, CLIENTS = 10, 1, 5
KILLS = 50


def featherfed(*arguments: str) -> subprocess.Popen[bytes]:
    """Start a command."""
    return subprocess.Popen([sys.executable, "-m", "featherfed.cli.main", *arguments])


def start_run(directory: Path) -> list[subprocess.Popen[bytes]]:
    """Start a server and its clients."""
    settings = {
        "output": str(directory / "out"),
        "rounds": ROUNDS,
        "server": {"port": 0},
        "training": {"epochs": EPOCHS},
        "clients": {"minimum": CLIENTS, "quorum": 1.0, "deadline": 3600.0},
        "evaluation": {"dataset": "fashion-mnist", "clients": 0},
    }
    (directory / "run.toml").write_text(tomli_w.dumps(settings), "utf-8")
    processes = [featherfed("serve", str(directory / "run.toml"))]
    address = directory / "out" / "server.address"
    while not address.exists():
        assert processes[0].poll() is None, "the server has ended"
        time.sleep(0.1)
    train, _ = load_train_test("fashion-mnist")
    for number, indices in enumerate(partition(train.labels, CLIENTS, "iid", 0)):
        data = directory / f"data-{number}.npz"
        train.take(indices).save(data)
        processes.append(
            featherfed(
                "join", address.read_text("utf-8"), "--data", str(data), "--threads", "1",
                "--name", f"client-{number}", "--state-dir", str(directory / f"state-{number}"),
            )
        )  # fmt: skip
    return processes


def follow(address: str, directory: Path) -> list[Swap]:
    """Follow a run until its last version; return the swaps."""
    swaps: list[Swap] = []
    source = GrpcReleaseSource(address, 600)
    file = ModelFile(directory, "int8")
    follower = Follower("camera", "int8", source, file, swaps.append)
    while not swaps or swaps[-1].version < ROUNDS:
        follower.refresh(20)
    source.close()
    file.close()
    return swaps


def deliver(directory: Path) -> dict[str, Any]:
    """Make a run and follow it; return the bytes of every version."""
    processes = start_run(directory)
    try:
        address = (directory / "out" / "server.address").read_text("utf-8")
        swaps = follow(address, directory / "models")
        assert [process.wait() for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
    metrics = json.loads((directory / "out" / "metrics.json").read_text("utf-8"))
    (releases,) = metrics["releases"]
    rows = []
    for swap in swaps:
        (path,) = released(directory, f"int8-{swap.version:05}-{swap.digest.hex()}")
        accuracy = metrics["rounds"][swap.version - 1]["scores"]["accuracy"]
        whole = len(encode_file(path.read_bytes()))
        rows.append({
            "version": swap.version, "accuracy": accuracy, "raw": swap.size, "whole": whole,
            "sent": swap.received,
        })  # fmt: skip
    sent = sum(row["sent"] for row in rows)
    assert sent == releases["downlink"]["payload_bytes"], "the ledger counted something else"
    return {"versions": rows, "ledger": releases}


def released(directory: Path, start: str) -> list[Path]:
    """Return the server's files whose names begin so, in order of versions."""
    return sorted(directory.glob(f"out/releases/*/{start}*.tflite"))


class NoEvaluator:
    """Evaluates nothing: no round of this run is ever aggregated."""

    def set_scaling(self, scaling: Scaling) -> None:
        """Do nothing: pictures are not standardised."""

    def evaluate(self, weights: Sequence[Array]) -> Evaluation:
        """Raise AssertionError."""
        raise AssertionError("no round is aggregated here")


@contextmanager
def tiny_run() -> Iterator[Coordinator]:
    """Yield the coordinator of a run that only serves releases."""
    manifest = Manifest((TensorSpec("kernel", (4, 4)),))
    task = image_task((1, 1, 1), ("a", "b"))
    with tempfile.TemporaryDirectory(prefix="featherfed-") as scratch:
        settings = Settings.model_validate({"output": scratch, "server": {"port": 0}})
        store = Store(Path(scratch) / "run.db")
        try:
            yield Coordinator(
                settings, store, make_plan(settings, task, "{}", manifest), manifest,
                task, NoEvaluator(), time.time,
            )  # fmt: skip
        finally:
            store.close()


@contextmanager
def carousel(files: Sequence[Path]) -> Iterator[str]:
    """Serve `files` over gRPC in turn, the next one at each request; yield the address."""
    versions = itertools.cycle(range(1, len(files) + 1))

    def make(kind: str) -> tuple[int, bytes]:
        raise AssertionError("all files are there")

    releases = Releases(files[0].parent, ("int8",), lambda: next(versions), make)
    ready: list[str] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        with tiny_run() as coordinator:
            service = FederationService(coordinator, releases)
            server, port = await create_server(service, coordinator.settings)
            ready.append(f"127.0.0.1:{port}")
            await stop.wait()
            await server.stop(0)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    while not ready:
        time.sleep(0.01)
    try:
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        releases.close()


def kill(directory: Path, files: Sequence[Path]) -> dict[str, int]:
    """Kill a follower during swaps, again and again; return how often each outcome was seen."""
    rng = random.Random(0)
    _, test = load_train_test("fashion-mnist")
    digests = {hashlib.sha256(path.read_bytes()).digest() for path in files}
    path = directory / "killed" / "model_int8.tflite"
    scratch = scratch_of(path)
    seen: Counter[str] = Counter()
    with carousel(files) as address:
        for _ in range(KILLS):
            before = path.stat().st_ino if path.exists() else 0
            process = featherfed("follow", address, "--model-dir", str(path.parent))
            while not path.exists() or path.stat().st_ino == before:
                assert process.poll() is None, "the follower has ended"
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.2))
            process.kill()
            process.wait()
            seen["kills"] += 1
            seen["scratch files left"] += scratch.exists()
            seen["files as released"] += hashlib.sha256(path.read_bytes()).digest() in digests
            probabilities = TfliteModel(path).predict([test.images[:100]])
            seen["models that load and infer"] += bool(np.isfinite(probabilities).all())
    return dict(seen)


def main() -> None:
    """Measure and write the result."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        measured: dict[str, Any] = {
            "rounds": ROUNDS, "epochs": EPOCHS, "clients": CLIENTS, "machine": machine(),
            **deliver(directory),
        }  # fmt: skip
        measured["kills"] = kill(directory, released(directory, "int8"))
    RESULT.write_text(json.dumps(measured, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
