"""Clients that stay for the next run, whose data grow, and that evaluate on data of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.federation import Federation
from support.small_runs import SHAPE, SmallRun, windows

from featherfed.api import staying
from featherfed.api.staying import Found, Stay
from featherfed.datasets.order import held_out_by_content
from featherfed.edge_client.errors import ClientError, Rejected, Unreachable


class Server:
    """A server that serves one run after the other; each look is at the next moment."""

    def __init__(self, *moments: Found | Exception) -> None:
        self.moments = list(moments)
        self.joined: list[str] = []
        self.pauses: list[float] = []
        self.broken: dict[str, Exception] = {}
        self.now: Found | None = None

    def look(self) -> Found:
        if not self.moments:
            raise KeyboardInterrupt
        moment = self.moments.pop(0)
        if isinstance(moment, Exception):
            raise moment
        self.now = moment
        return moment

    def take_part(self, address: str) -> None:
        assert self.now is not None
        assert address == self.now.address
        if error := self.broken.get(self.now.run):
            raise error
        self.joined.append(self.now.run)

    def stay(self) -> list[str]:
        with pytest.raises(KeyboardInterrupt):
            Stay(self.look, self.take_part, self.pauses.append).forever()
        return self.joined


def at(run: str, phase: str = "training", address: str = "x:1") -> Found:
    return Found(address, run, phase)


def test_each_run_is_taken_part_in_once() -> None:
    server = Server(
        Unreachable("nobody there"), at("a"), at("a", "finished"), ClientError("not announced"),
        at("b", "gathering", "y:2"), at("b", "finished"), at("b", "gathering"), at("c", "finished"),
    )  # fmt: skip
    assert server.stay() == ["a", "b", "b", "c"]  # b went on to more rounds
    assert all(30 <= pause <= 90 for pause in server.pauses)
    assert len(set(server.pauses)) == len(server.pauses) == 8


def test_a_run_that_the_data_do_not_fit_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(at("a"), at("b"), at("b"), at("c"))
    server.broken["b"] = Rejected("DATA_MISMATCH: other shapes")
    assert server.stay() == ["a", "c"]
    assert caplog.text.count("cannot take part in run b: DATA_MISMATCH: other shapes") == 1
    first = Server(at("a"))
    first.broken["a"] = ClientError("no such file")
    with pytest.raises(ClientError, match="no such file"):
        Stay(first.look, first.take_part, first.pauses.append).forever()


def test_a_server_that_goes_in_mid_run_is_looked_for_again() -> None:
    server = Server(at("a"), at("a"))
    server.broken["a"] = Unreachable("silent for an hour")
    assert server.stay() == []
    assert len(server.pauses) == 2


def test_examples_keep_their_side_while_data_grow() -> None:
    x = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    before: set[int] = set()
    for count in (2, 5, 50, 500):
        kept, held_out = held_out_by_content([x[:count]], 0.1, "a")
        assert sorted([*kept, *held_out]) == list(range(count))
        assert len(kept)
        assert len(held_out)
        if count > 5:
            assert before <= set(held_out) or count == 50
            before = set(held_out)
    assert 25 < len(held_out) < 80
    kept, held_out = held_out_by_content([np.zeros((4, 3))], 0.1, "a")
    assert (len(kept), len(held_out)) == (3, 1)


def test_a_client_may_send_more_examples_than_it_joined_with(federation: Any) -> None:
    server: Federation = federation(rounds=2, clients={"minimum": 1, "quorum": 1.0})
    session = server.client("a", num_examples=10)
    counts = iter((15, 40))
    session._renew = lambda trainer: next(counts)
    server.run_clients(session)
    server.join()
    sent = [u.num_examples for r in (1, 2) for u in server.store.journal.updates(r)]
    assert sent == [15, 40]


GROWING = """
import numpy as np
from pathlib import Path
from featherfed.datasets.dataset import Dataset

def data():
    calls = Path("calls")
    count = 1 + len(calls.read_text()) if calls.exists() else 1
    calls.write_text("x" * count)
    if count == 3:
        raise ValueError("half written")
    arrays = np.load("all.npz")
    return arrays["motion"][:20 * count], arrays["y"][:20 * count]
"""


@pytest.mark.slow  # servers and clients, two runs in a row
def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    keras = tf_keras.Sequential(
        [tf_keras.layers.Input(SHAPE), tf_keras.layers.Flatten(), tf_keras.layers.Dense(2)]
    )
    keras.layers[-1].activation = tf_keras.activations.softmax
    run = SmallRun(tmp_path, keras, rounds=3, clients={"minimum": 2})
    (tmp_path / "growing.py").write_text(GROWING, "utf-8")
    np.savez(tmp_path / "all.npz", **windows(200, 1))
    wrong = windows(30, 3)
    np.savez(tmp_path / "wrong.npz", motion=wrong["motion"], y=1 - wrong["y"])
    quick = "import sys, featherfed.api.staying as s; s.LOOK_SECONDS = 0.5; " + (
        "from featherfed.cli.main import app; app()"
    )
    original = run.processes.start

    def start(name: str, *arguments: str) -> Any:
        if arguments[0] != "join":
            return original(name, *arguments)
        with (tmp_path / f"{name}.log").open("ab") as log:
            run.processes.running[name] = subprocess.Popen(
                [sys.executable, "-c", quick, *arguments],
                stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path,
            )  # fmt: skip
        return run.processes.running[name]

    monkeypatch.setattr(run.processes, "start", start)
    try:
        address = f"127.0.0.1:{run.port}"
        common = ("--runtime", "litert", "--stay")
        run.processes.join("early", address, "growing:data", "--reread", *common)  # no server yet
        run.serve()
        run.join("b", windows(40, 2), *common, "--evaluate", "wrong.npz")
        first = run.finish()
        run.write(name="second", output="next", rounds=1, clients={"minimum": 2})
        run.output = tmp_path / "next"
        run.serve(name="next")
        second = run.finish(server="next")
    finally:
        run.processes.end()
    counts = [
        next(c["num_examples"] for c in r["clients"] if c["client"] == "early")
        for r in first["rounds"]
    ]
    # The first reading is for joining, the third one fails; a tenth or so is held out.
    assert counts == sorted(counts)
    assert counts[0] > 25
    assert counts[2] > counts[1] == counts[0]
    assert "the data cannot be read now" in run.log("early")
    final = {c["client"]: c["scores"] for c in first["final"]["clients"]}
    assert final["b"]["accuracy"] < 0.5 < final["early"]["accuracy"]
    assert [c["client"] for c in second["rounds"][0]["clients"]] == ["b", "early"]
    assert staying.LOOK_SECONDS == 60
