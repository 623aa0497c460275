"""`featherfed demo`: a server and its clients as processes of this machine, over real gRPC.

The processes are `featherfed serve` and `featherfed join`, as a user would start them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
import tomli_w
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from featherfed.api.live_page import check_page
from featherfed.cli.tables import show_tables
from featherfed.datasets.partition import partition
from featherfed.datasets.sources import load_train_test
from featherfed.edge_client.errors import ClientError, Unreachable
from featherfed.edge_client.grpc_connection import GrpcConnection
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.plan_terms import Method
from featherfed.server.settings.settings import load_settings

DIGITS_LEARNING_RATE = 0.1  # 287 examples a client need larger steps than 12,000
LEARNING_RATE = 0.01
MARK = ".featherfed-demo"  # a directory without this file is never deleted
LOG_TAIL = 15
START_SECONDS = 120.0
LOOK_SECONDS = 0.25
_TIME_AND_LEVEL = re.compile(r"[\d:]{8} [A-Z]+ ")


@dataclass(frozen=True)
class DemoOptions:
    """The options of `featherfed demo`."""

    dataset: str
    clients: int
    rounds: int
    epochs: int
    batch_size: int
    learning_rate: float | None
    uplink: str
    downlink: str
    optimize: str
    partition: str
    model: str
    runtime: str
    seed: int
    page: str
    output: Path

    @property
    def rate(self) -> float:
        """The learning rate; its default depends on the data set."""
        if self.learning_rate is not None:
            return self.learning_rate
        return DIGITS_LEARNING_RATE if self.dataset == "digits" else LEARNING_RATE


def run_demo(options: DemoOptions) -> None:
    """Run a whole federation, show its progress and print its results."""
    train, _ = load_train_test(options.dataset)
    shards = partition(train.labels, options.clients, options.partition, options.seed)
    run_file = _prepare(options)
    runtimes = client_runtimes(options)
    data = []
    for number, indices in enumerate(shards):
        path = options.output / "clients" / f"client-{number}" / "data.npz"
        path.parent.mkdir(parents=True)
        train.take(indices).save(path)
        data.append(path)
    with _Processes(options.output) as processes, DemoProgress(options.rounds) as progress:
        processes.start("server", "serve", str(run_file))
        address = processes.wait_for_address(
            lambda says: progress.show("starting the server", says)
        )
        if (page := options.output / "page.address").is_file():
            token = options.output / "page.token"
            progress.say(
                f"live page: {page.read_text('utf-8')} (its actions need the token in {token})"
            )
        progress.show(f"starting {options.clients} clients")
        threads = max(1, (os.cpu_count() or 1) // options.clients)
        for number, path in enumerate(data):
            name = path.parent.name
            processes.start(
                name, "join", address, "--data", str(path), "--name", name,
                "--state-dir", str(path.parent / "state"), "--threads", str(threads),
                "--runtime", runtimes[number],
            )  # fmt: skip
        _watch(processes, address, progress)
        progress.show("waiting for the processes to end")
        processes.wait_for_end()
    show_tables(options.output)
    click.echo(f"report: {options.output / 'report.html'}")
    click.echo(f"try:    featherfed predict {options.output / 'model_int8.tflite'}")


def client_runtimes(options: DemoOptions) -> list[str]:
    """Return what each client trains with; say what was chosen, and why it is not LiteRT."""
    if options.runtime == "mixed":
        return [("keras", "litert")[number % 2] for number in range(options.clients)]
    if options.runtime != "auto":
        return [options.runtime] * options.clients
    why = _why_not_litert(options)
    click.echo(f"clients train with Keras: {why}" if why else "clients train with LiteRT")
    return ["keras" if why else "litert"] * options.clients


def _why_not_litert(options: DemoOptions) -> str | None:
    """Return why the clients cannot, or may not be able to train with LiteRT; None if they can."""
    if not importlib.util.find_spec("ai_edge_litert"):
        return "LiteRT, which starts sooner, is not installed: pip install 'featherfed[edge]'"
    if Method(options.optimize).needs_keras:
        return f"LiteRT cannot {options.optimize}"
    if options.model.endswith(".json"):
        return f"{options.model} may have layers that LiteRT cannot train (or try --runtime litert)"
    return None


def _prepare(options: DemoOptions) -> Path:
    """Delete an earlier demo's output, write the run file and check it; return its path."""
    output = options.output
    if output.exists() and any(output.iterdir()):
        if not (output / MARK).is_file():
            raise ClientError(f"{output} is not empty and holds no demo; choose another --output")
        shutil.rmtree(output)
    settings: dict[str, Any] = {
        "name": "demo",
        "output": str(output),
        "rounds": options.rounds,
        "seed": options.seed,
        "notes": {"clients": options.clients, "partition": options.partition},
        "server": {"port": 0} | ({} if options.page == "off" else {"page": options.page}),
        "model": {"name": options.model},
        "training": {
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "learning_rate": options.rate,
        },
        "compression": {"uplink": options.uplink, "downlink": options.downlink},
        "optimization": {"method": options.optimize},
        "clients": {"minimum": options.clients, "quorum": 1.0, "deadline": 3600.0},
        "evaluation": {"dataset": options.dataset},
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / MARK).touch()
    run_file = output / "run.toml"
    run_file.write_text(tomli_w.dumps(settings), "utf-8")
    check_page(load_settings(run_file))
    return run_file


class _Processes:
    """The demo's child processes, all ended at the end of the `with` block."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> _Processes:
        signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, name: str, *arguments: str) -> None:
        """Start `featherfed ARGUMENTS`, with its output in NAME.log."""
        with self.log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", "featherfed.cli.main", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self, name: str) -> Path:
        """Return the log file of a process."""
        return self._output / f"{name}.log"

    def check(self) -> None:
        """Raise ClientError with the end of the log if a process has failed."""
        for name, process in self._running.items():
            if process.poll():
                tail = self.log(name).read_text("utf-8", "replace").splitlines()[-LOG_TAIL:]
                lines = "\n  ".join(tail)
                raise ClientError(f"{name} ended with code {process.returncode}:\n  {lines}")

    def server_ends_within(self, seconds: float) -> bool:
        """Wait for the server's end, `seconds` at most; return whether it has ended."""
        try:
            self._running["server"].wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def server_says(self) -> str:
        """Return the server's newest log message, without those that are half written."""
        lines = self.log("server").read_text("utf-8", "replace").split("\n")
        return _message(lines[-2]) if len(lines) > 1 else ""

    def wait_for_address(self, show: Callable[[str], None]) -> str:
        """Return the address that the server writes to a file once it listens.

        `show` gets the newest message of its log meanwhile.
        """
        path = self._output / "server.address"
        until = time.monotonic() + START_SECONDS
        while not path.is_file():
            self.check()
            show(self.server_says())
            if time.monotonic() > until:
                raise ClientError(f"the server does not start; see {self.log('server')}")
            time.sleep(0.1)
        return path.read_text("utf-8")

    def wait_for_end(self) -> None:
        """Wait until all processes have ended; raise ClientError if one has failed."""
        for process in self._running.values():
            process.wait()
        self.check()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _message(line: str) -> str:
    """Return the message of a log line, which is text or JSON."""
    if line.startswith("{"):
        with suppress(ValueError, KeyError):
            return str(json.loads(line)["message"])
    return _TIME_AND_LEVEL.sub("", line)


def _watch(processes: _Processes, address: str, progress: DemoProgress) -> None:
    """Show the progress until the server has ended; raise ClientError if a process fails."""
    with _status(address) as status:
        while not processes.server_ends_within(LOOK_SECONDS):
            processes.check()
            reply = status()
            if reply is not None:
                says = processes.server_says() if reply.phase == "finished" else ""
                progress.show(describe(reply), says, figures(reply), reply.version)
    processes.check()


class DemoProgress:
    """Shows what the demo does: a bar in a terminal, elsewhere a line for each thing."""

    def __init__(self, rounds: int, console: Console | None = None) -> None:
        self._console = console or Console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.completed}/{task.total} rounds"),
            TextColumn("{task.elapsed:.0f} s"),  # TimeElapsedColumn would stop with the last round
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=rounds, note="")
        self._told = ("", "")

    def __enter__(self) -> DemoProgress:
        """Begin to show."""
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Erase the bar."""
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line that stays, above the bar."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show(
        self, what: str, says: str = "", numbers: str = "", completed: int | None = None
    ) -> None:
        """Show what is done, what the server says of it, how good it is and how many rounds are."""
        self._bar.update(
            self._task, description=escape(what), note=escape(says or numbers), completed=completed
        )
        if not self._console.is_terminal and (what, says) != self._told:
            click.echo(": ".join(filter(None, (what, says or numbers))))
        self._told = what, says


@contextmanager
def _status(address: str) -> Iterator[Any]:
    connection = GrpcConnection(address, give_up_after=0)

    def ask() -> pb.StatusReply | None:
        try:
            return connection.status()
        except Unreachable:
            return None  # it has just ended, or is busy; the loop checks the process itself

    try:
        yield ask
    finally:
        connection.close()


def describe(reply: pb.StatusReply) -> str:
    """Return what the run is doing."""
    present, wanted = reply.client_counts.present, reply.wanted_clients
    if reply.phase == "gathering" and reply.round == 1:
        more = f", {present} have joined" if present else ""
        return f"starting {wanted} clients{more}"
    if reply.phase == "finished":
        return "finishing"
    return f"round {reply.round}: {reply.phase}"


def figures(reply: pb.StatusReply) -> str:
    """Return how good the newest model is, and the bytes so far."""
    score = f"{reply.metric} {reply.score:.3f}, " if reply.HasField("score") else ""
    up, down = reply.uplink_bytes / 1000, reply.downlink_bytes / 1000
    return f"{score}{up:,.0f} kB up, {down:,.0f} kB down"
