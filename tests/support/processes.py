"""Start `featherfed` commands as processes, and wait for their effects."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featherfed.datasets.partition import partition
from featherfed.datasets.sources import load_train_test
from featherfed.edge_client.errors import Unreachable
from featherfed.edge_client.grpc_connection import GrpcConnection
from featherfed.proto import federation_pb2 as pb

TESTS = Path(__file__).parent.parent


class Processes:
    """Commands in `directory`, their output in NAME.log; all are ended at the end of the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "featherfed.cli.main", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
            )
        return self.running[name]

    def join(self, name: str, address: str, data: str, *more: str) -> subprocess.Popen[bytes]:
        return self.start(
            name, "join", address, "--data", data, "--name", name,
            "--state-dir", f"state-{name}", "--threads", "1", *more,
        )  # fmt: skip

    def kill(self, name: str) -> None:
        self.running[name].send_signal(signal.SIGKILL)
        self.running[name].wait()

    def wait(self, name: str, seconds: float = 120) -> int:
        return self.running[name].wait(seconds)

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text("utf-8", "replace")

    def end(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
                process.wait()


def save_digits(folder: Path, clients: int) -> None:
    """Write the digits in equal shards, data-0.npz and so on."""
    train, _ = load_train_test("digits")
    for number, indices in enumerate(partition(train.labels, clients, "iid", 0)):
        train.take(indices).save(folder / f"data-{number}.npz")


def run(*arguments: str, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a `featherfed` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "featherfed.cli.main", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def program(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `main` of a module of this folder as a process."""
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); from support.{module} import main; main()"
    )
    return [sys.executable, "-c", code, *arguments]


def wait_until(what: Callable[[], Any], seconds: float = 90) -> Any:
    """Return what `what` returns once it is true."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)
    return found


def status(address: str) -> pb.StatusReply:
    """Return a server's status; an empty reply if there is no answer."""
    connection = GrpcConnection(address, give_up_after=0)
    try:
        return connection.status()
    except Unreachable:
        return pb.StatusReply()
    finally:
        connection.close()
