"""Real processes, real Keras training, real SIGKILL: `featherfed serve` and `featherfed join`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import Processes, save_digits, status, wait_until

RUN = """
name = "kill"
output = "out"
rounds = {rounds}
server = {{ port = {port}, linger = 5 }}
model = {{ name = "mlp" }}
training = {{ epochs = {epochs}, learning_rate = 0.1 }}
compression.uplink = "{uplink}"
{more}
optimization = {{ method = "{method}" }}
evaluation.dataset = "digits"
clients = {{ minimum = {minimum}, quorum = 0.5, deadline = {deadline}, patience = 2 }}
"""

DEFAULTS = {"epochs": 40, "uplink": "balanced", "method": "none", "more": ""}


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    save_digits(tmp_path, 3)
    yield made
    made.end()


def serve(processes: Processes, **values: object) -> str:
    """Start (or start again) a server; return its address."""
    run_file = processes.directory / "run.toml"
    if not run_file.exists():
        run_file.write_text(RUN.format(**{**DEFAULTS, **values}), "utf-8")
    address = processes.directory / "out" / "server.address"
    address.unlink(missing_ok=True)
    processes.start("server", "serve", "run.toml")
    wait_until(lambda: address.is_file() or processes.running["server"].poll() is not None)
    assert processes.running["server"].poll() is None, processes.log("server")
    return address.read_text("utf-8")


def metrics(processes: Processes) -> Any:
    return json.loads((processes.directory / "out" / "metrics.json").read_text("utf-8"))


def client(processes: Processes, number: int, address: str, runtime: str = "keras") -> None:
    processes.join(f"c{number}", address, f"data-{number}.npz", "--runtime", runtime)


@pytest.mark.slow  # waits out a deadline; tests/test_kills.py kills light processes
def test_a_run_survives_a_late_client_and_one_that_is_killed_for_good(
    processes: Processes,
) -> None:
    address = serve(processes, rounds=4, port=0, minimum=2, deadline=20)
    client(processes, 0, address, "litert")
    client(processes, 1, address)
    wait_until(lambda: status(address).version >= 1)
    wait_until(lambda: "round 2: training" in processes.log("c1"))
    processes.kill("c1")  # in mid-round, never to come back
    client(processes, 2, address, "litert")  # the late one
    assert processes.wait("server") == 0, processes.log("server")
    assert [processes.wait("c0"), processes.wait("c2")] == [0, 0]
    rounds = metrics(processes)["rounds"]
    assert len(rounds) == 4
    assert [c["client"] for c in rounds[0]["clients"]] == ["c0", "c1"]
    assert rounds[1]["missing"] == ["c1"], "the round closed by quorum at its deadline"
    assert [c["client"] for c in rounds[-1]["clients"]] == ["c0", "c2"]
    assert rounds[-1]["missing"] == [], "no later round waits for the dead"
    assert rounds[-1]["scores"]["accuracy"] > 0.8


# LiteRT makes an epoch of these few examples in a millisecond, and must be killed in mid-round.
@pytest.mark.slow  # a minute of starts of TensorFlow; tests/test_kills.py kills light processes
@pytest.mark.parametrize(("runtime", "epochs"), [("keras", 40), ("litert", 800)])
def test_killed_at_any_moment_the_run_ends_with_the_same_model(
    processes: Processes, runtime: str, epochs: int
) -> None:
    digests = []
    for disturbed in (False, True):
        values = {"rounds": 3, "port": 0, "minimum": 2, "deadline": 120, "epochs": epochs}
        address = serve(processes, **values)
        port = int(address.rpartition(":")[2])
        client(processes, 0, address, runtime)
        client(processes, 1, address, runtime)
        if disturbed:
            # Its clients look for it where it was.
            run_file = processes.directory / "run.toml"
            run_file.write_text(RUN.format(**{**DEFAULTS, **values, "port": port}), "utf-8")
            wait_until(lambda: "round 2: training" in processes.log("c0"))
            processes.kill("server")
            assert serve(processes) == address
            wait_until(lambda: "round 3: training" in processes.log("c1"))
            processes.kill("c1")
            assert "round 3: sent" not in processes.log("c1"), "it was to be killed in training"
            processes.kill("server")
            client(processes, 1, address, runtime)
            assert serve(processes) == address
        assert processes.wait("server") == 0, processes.log("server")
        assert [processes.wait("c0"), processes.wait("c1")] == [0, 0]
        assert processes.log("c1").count("round 3: training") == 1 + disturbed
        rounds = metrics(processes)["rounds"]
        assert [len(r["clients"]) for r in rounds] == [2, 2, 2]
        assert {c["runtime"] for r in rounds for c in r["clients"]} == {runtime}
        assert (processes.directory / "state-c1" / "residual.npz").exists(), "two clients keep one"
        digests.append([r["digest"] for r in rounds])
        for path in processes.directory.iterdir():
            if not path.name.startswith("data-"):
                path.rename(processes.directory.parent / f"{path.name}-{runtime}-{disturbed}")
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_a_plan_without_a_training_step_is_trained_by_keras_clients(processes: Processes) -> None:
    address = serve(processes, rounds=1, port=0, minimum=1, deadline=60, epochs=3, method="cluster")
    assert "no LiteRT clients in this run: the method cluster" in processes.log("server")
    client(processes, 0, address, "litert")
    assert processes.wait("c0") == 1
    assert "the method cluster trains centroids" in processes.log("c0")
    assert "(--runtime keras)" in processes.log("c0")
    assert "Traceback" not in processes.log("c0")
    client(processes, 1, address)
    assert processes.wait("server") == 0, processes.log("server")
    assert processes.wait("c1") == 0


@pytest.mark.parametrize(
    "uplink",
    [
        "balanced",
        *(pytest.param(u, marks=pytest.mark.slow) for u in ("exact", "transparent", "extreme")),
    ],
)
def test_keras_and_litert_clients_train_one_model(processes: Processes, uplink: str) -> None:
    address = serve(processes, rounds=4, port=0, minimum=3, deadline=60, epochs=5, uplink=uplink)
    for number, runtime in enumerate(("litert", "keras", "litert")):
        client(processes, number, address, runtime)
    assert processes.wait("server") == 0, processes.log("server")
    assert [processes.wait(f"c{n}") for n in range(3)] == [0, 0, 0]
    found = metrics(processes)
    for entry in found["rounds"]:
        assert [c["runtime"] for c in entry["clients"]] == ["litert", "keras", "litert"]
        losses = [c["train_loss"] for c in entry["clients"]]
        assert max(losses) < 2 * min(losses), "each learns as well as the others"
    digest = found["final"]["digest"]
    for number in range(3):
        assert f"version 4 ({digest[:16]})" in processes.log(f"c{number}")
    assert found["final"]["scores"]["accuracy"] > 0.85


PRIVATE = """
privacy.noise_multiplier = 0.1
compression.broadcast = "aggregate"
evaluation.clients = 0
"""


@pytest.mark.slow  # four processes with TensorFlow; tests/test_pinned_runs.py holds what rules give
@pytest.mark.parametrize(
    "more", ['aggregation.rule = "median"', pytest.param(PRIVATE, id="private")]
)
def test_other_ways_to_aggregate_learn(processes: Processes, more: str) -> None:
    address = serve(
        processes, rounds=4, port=0, minimum=3, deadline=60, epochs=5, uplink="quantize(8) | zstd",
        more=more,
    )  # fmt: skip
    for number in range(3):
        client(processes, number, address, "litert")
    assert processes.wait("server") == 0, processes.log("server")
    assert [processes.wait(f"c{n}") for n in range(3)] == [0, 0, 0]
    found = metrics(processes)
    assert found["final"]["scores"]["accuracy"] > 0.8
    assert ("epsilon" in found["rounds"][-1]) == ("privacy" in more)


@pytest.mark.slow  # three starts of TensorFlow; tests/test_federation.py has both within a process
def test_other_settings_or_a_taken_port_are_said_plainly(processes: Processes) -> None:
    address = serve(processes, rounds=1, port=0, minimum=1, deadline=60)
    port = address.rpartition(":")[2]
    (processes.directory / "other.toml").write_text(
        'output = "other"\nevaluation.dataset = "digits"', "utf-8"
    )
    processes.start("second", "serve", "other.toml", "--port", port)
    assert processes.wait("second") == 1
    assert f"featherfed: cannot listen on {address}: it is in use" in processes.log("second")
    processes.kill("server")
    changed = 'output = "out"\nrounds = 9\nevaluation.dataset = "digits"'
    (processes.directory / "changed.toml").write_text(changed, "utf-8")
    processes.start("third", "serve", "changed.toml", "--port", "0")
    assert processes.wait("third") == 1
    assert "holds run 'kill-" in processes.log("third")
