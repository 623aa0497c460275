"""What server, client and demo say while they wait or work, so that none looks stuck."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from support.processes import Processes, wait_until
from tqdm import tqdm

from featherfed.api.server_status import ServerStatus, Waiting, join_line
from featherfed.cli import log
from featherfed.cli.demo import DemoProgress, describe
from featherfed.datasets.sources import load_train_test
from featherfed.proto import federation_pb2 as pb
from featherfed.server.rounds.transitions import Phase
from featherfed.server.settings.settings import Settings

JOIN = "featherfed join 127.0.0.1:8765 --data FILE"


class Run:
    """A coordinator's name of its run."""

    class plan:
        run = "digits"


@pytest.fixture
def status(caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    caplog.set_level(logging.INFO)
    now = [0.0]
    made = ServerStatus(Run, JOIN, clock=lambda: now[0])  # type: ignore[arg-type]

    def told(at: float, waiting: Waiting, repeated: bool = True) -> list[str]:
        now[0] = at
        caplog.clear()
        made.log(waiting, repeated)
        return [record.getMessage() for record in caplog.records]

    return told


def gathering(done: int, wanted: int = 3) -> Waiting:
    return Waiting(Phase.GATHERING, 1, done, wanted, None)


def training(done: int, deadline: float | None = 50.0) -> Waiting:
    return Waiting(Phase.TRAINING, 1, done, 3, deadline)


def test_who_waits_for_clients_says_how_many_and_how_one_joins(status: Any) -> None:
    assert status(0, gathering(0)) == [
        f"waiting for 3 more clients, 0 of 3 are here; join one: {JOIN}"
    ]
    assert status(1, gathering(0)) == []
    assert "2 more clients, 1 of 3" in status(2, gathering(1))[0]
    assert status(3, gathering(3)) == []


def test_what_takes_long_is_told_again_and_ever_less_often(status: Any) -> None:
    told = [second for second in range(0, 20_000, 10) if status(second, gathering(1))]
    assert told[:4] == [0, 60, 180, 420]
    assert told[-1] - told[-2] == 3600
    assert status(20_000, training(0)) == []
    assert status(20_060, training(0)) == [
        "round 1: 0 of 3 clients have reported; it closes in 50 s at the latest"
    ]
    assert status(20_061, training(1, None)) == []
    assert status(20_180, training(1, None)) == ["round 1: 1 of 3 clients have reported"]


def test_below_a_terminal_nothing_is_repeated(status: Any) -> None:
    assert len(status(0, gathering(0), repeated=False)) == 1
    assert status(4000, gathering(0), repeated=False) == []
    shown = ServerStatus(Run, JOIN)  # type: ignore[arg-type]
    assert shown.text(gathering(1)) == f"waiting for 2 more clients; join one: {JOIN}"
    assert shown.text(gathering(3)) == "round 1 opens soon; 3 clients are here"
    assert "1 of 3 clients have reported; closes in 50 s" in shown.text(training(1))


@pytest.mark.parametrize(
    ("host", "security", "line"),
    [
        ("127.0.0.1", {}, JOIN),
        ("127.0.0.1", {"credentials": "certs"}, JOIN + " --credentials FOLDER"),
        ("192.0.2.1", {"insecure": True}, "featherfed join 192.0.2.1:8765 --data FILE --insecure"),
    ],
)
def test_the_line_that_joins_fits_the_server(host: str, security: Any, line: str) -> None:
    settings = Settings(name="r", output="out", rounds=1, model={"name": "mlp"}, security=security)
    assert join_line(settings, f"{host}:8765") == line


def test_an_address_for_listening_alone_is_not_told_to_clients() -> None:
    settings = Settings(
        name="r", output="out", rounds=1, model={"name": "mlp"}, security={"insecure": True}
    )
    for host in ("0.0.0.0", "[::]"):
        assert re.fullmatch(
            r"featherfed join [^\s:\[\]]+:1 --data FILE --insecure",
            join_line(settings, f"{host}:1"),
        )


def test_log_lines_stand_above_a_bar() -> None:
    stream = io.StringIO()
    handler = log._AroundBars(stream)
    with tqdm(bar_format="{desc}", file=stream, desc="waiting") as bar:
        handler.emit(logging.makeLogRecord({"msg": "an event"}))
        assert re.search(r"\r *\ran event\n", stream.getvalue())
        assert stream.getvalue().endswith("waiting"), bar


# ---- the demo ----


def reply(phase: str, present: int = 0, round_: int = 1) -> pb.StatusReply:
    counts = pb.ClientCounts(present=present)
    return pb.StatusReply(phase=phase, round=round_, wanted_clients=5, client_counts=counts)


def test_the_demo_says_what_goes_on() -> None:
    assert describe(reply("gathering")) == "starting 5 clients"
    assert describe(reply("gathering", 2)) == "starting 5 clients, 2 have joined"
    assert describe(reply("training", 5, 2)) == "round 2: training"
    assert describe(reply("finished")) == "finishing"


def test_without_a_terminal_the_demo_prints_each_thing_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with DemoProgress(3, Console(file=io.StringIO())) as progress:
        progress.show("starting the server")
        progress.show("starting the server", "loading TensorFlow")
        progress.show("starting the server", "loading TensorFlow")
        progress.show("round 1: training", numbers="0 kB up")
        progress.show("round 1: training", numbers="1 kB up")
        progress.show("finishing", "making model_int8.tflite, 4 of 4", "9 kB up", 3)
    assert capsys.readouterr().out.splitlines() == [
        "starting the server",
        "starting the server: loading TensorFlow",
        "round 1: training: 0 kB up",
        "finishing: making model_int8.tflite, 4 of 4",
    ]


def test_in_a_terminal_the_demo_shows_what_the_server_says() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with DemoProgress(3, console) as progress:
        progress.show("finishing", "measuring [x].tflite, 2 of 4", "9 kB up", 3)
        progress._bar.refresh()
    assert "measuring [x].tflite, 2 of 4" in out.getvalue()
    assert "3/3 rounds" in out.getvalue()


# ---- real processes ----


@pytest.mark.slow  # starts TensorFlow
def test_a_server_and_a_client_that_wait_say_so(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    (tmp_path / "run.toml").write_text(
        'name = "wait"\noutput = "out"\nrounds = 1\nserver.port = 0\nmodel.name = "mlp"\n'
        'evaluation.dataset = "digits"\nclients = { minimum = 2 }\n'
    )
    try:
        processes.start("server", "serve", "run.toml")
        found = wait_until(
            lambda: re.search(r"join one: featherfed (.*) FILE", processes.log("server"))
        )
        assert "waiting for 2 more clients, 0 of 2 are here" in processes.log("server")
        assert "loading TensorFlow" in processes.log("server")
        load_train_test("digits")[0].take(np.arange(100)).save(tmp_path / "data.npz")
        arguments = [*found.group(1).split(), "data.npz", "--name", "one", "--state-dir", "state"]
        processes.start("one", *arguments, "--runtime", "litert")
        wait_until(lambda: "1 of 2 are here" in processes.log("server"))
        wait_until(lambda: "waiting until the server opens a round" in processes.log("one"))
    finally:
        processes.end()
