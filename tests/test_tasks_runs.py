"""Runs of tasks without pictures, whose server has no data: clients standardise and evaluate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import join_request
from support.federation import Federation, settings
from support.kills import free_port
from support.models import TASK
from support.regression import (
    HELD_OUT,
    LINEAR,
    REGRESSION,
    SETTINGS,
    LinearClient,
    scores_by_hand,
)

from featherfed.edge_client.errors import Rejected
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.plan import task_of
from featherfed.edge_client.session import Session
from featherfed.edge_client.state import ClientState, HeldModel
from featherfed.proto.protocol import PROTOCOL
from featherfed.server.observability import metrics_json
from featherfed.server.rounds.transitions import Phase
from featherfed.sweep.grid import Sweep
from featherfed.sweep.results import case_row, round_rows
from featherfed.sweep.simulate import simulate

NO_DATA: dict[str, Any] = {
    "task": SETTINGS,
    "evaluation": {"dataset": None},
    "compression": {"uplink": "float32", "downlink": "float32"},
}


class Clients:
    """Clients in threads, which a test may start again with what is on their disks."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder, self._address = folder, address
        self.held: dict[str, HeldModel] = {}
        self.errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def start(self, *clients: LinearClient) -> None:
        for client in clients:
            thread = threading.Thread(target=self._run, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, client: LinearClient) -> None:
        try:
            transport = GrpcTransport(self._address, give_up_after=120)
            assert task_of(transport.get_task(client.name)) == REGRESSION
            self.held[client.name] = Session(
                client.profile(), transport, lambda *_: client,
                lambda run: ClientState(self._folder / client.name, run),
            ).run()  # fmt: skip
            transport.close()
        except BaseException as error:
            self.errors.append(error)

    def join(self) -> None:
        # Longer than a deadline or the patience, one of which a loaded machine may use up.
        until = time.monotonic() + 200
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        if self.errors:
            raise self.errors[0]
        assert not any(thread.is_alive() for thread in self._threads)


@pytest.fixture
def servers() -> Iterator[list[Federation]]:
    made: list[Federation] = []
    yield made
    for server in made:
        server.close()


def test_no_data_on_the_server(tmp_path: Path, servers: list[Federation]) -> None:
    """The server restarts in mid-run, a client comes late, and all scores are numpy's."""
    run = settings(
        tmp_path, rounds=4, server={"port": free_port(), "linger": 20},
        clients={"minimum": 2, "quorum": 1.0, "deadline": 60, "patience": 60}, **NO_DATA,
    )  # fmt: skip

    def serve() -> Federation:
        server = Federation(
            tmp_path, run, manifest=LINEAR, task=run.explicit_task or REGRESSION, evaluator=None
        )
        servers.append(server)
        return server.start()

    first = serve()
    clients = Clients(tmp_path / "clients", first.address)
    a, b, late = (LinearClient(name, seed) for seed, name in enumerate(("a", "b", "late")))
    second_round = threading.Event()
    restarted = threading.Event()
    train = a.train

    def pause(weights: Any, task: Any) -> Any:
        if task.round == 2:
            second_round.set()
            assert restarted.wait(60)
        return train(weights, task)

    a.train = pause  # type: ignore[method-assign]
    clients.start(a, b)
    assert second_round.wait(60)
    fixed = first.coordinator.scaling()
    first.close()
    second = serve()
    restarted.set()
    clients.start(late)
    clients.join()
    second.join()
    assert second.finished

    scaling = second.coordinator.scaling()
    assert scaling is not None
    assert fixed is not None
    inputs, targets = scaling.inputs[0], scaling.target
    assert inputs is not None
    assert targets is not None
    x = np.concatenate([one.inputs[:-HELD_OUT] for one in (a, b)])  # who were there at the start
    y = np.concatenate([one.targets[:-HELD_OUT] for one in (a, b)])
    np.testing.assert_allclose(inputs.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(inputs.deviation, x.std(axis=0, dtype=np.float64), rtol=1e-4)
    np.testing.assert_allclose(targets.mean, y.mean(axis=0, dtype=np.float64), rtol=1e-6)
    for one in (a, b, late):
        assert one.scaling is not None
        np.testing.assert_array_equal(one.scaling.inputs[0].mean, inputs.mean)  # type: ignore[union-attr]

    found = metrics_json.collect(second.store, run, REGRESSION, LINEAR, {})
    final = metrics_json.final(second.store, run, REGRESSION, 0.0, [])
    assert found["metric"] == {"name": "rmse", "larger_is_better": False}
    assert found["evaluated_by"] == "clients"
    assert found["task"] == REGRESSION.as_dict()
    versions = {v.version: v for v in second.store.versions.all()}
    assert {held.digest for held in clients.held.values()} == {versions[4].digest}
    everybody = {one.name: one for one in (a, b, late)}
    for number in range(5):
        if number < 4:
            cohort = [everybody[c["client"]] for c in found["rounds"][number]["clients"]]
        else:
            cohort = [a, b, late]
        expected = scores_by_hand(cohort, a.seen[versions[number].digest])
        assert versions[number].scores == pytest.approx(expected, rel=1e-4)
        if number:
            assert found["rounds"][number - 1]["scores"] == versions[number].scores
    assert final["scores"] == versions[4].scores
    assert final["scores"]["rmse"] < versions[0].scores["rmse"] / 3  # type: ignore[index]
    assert {c["client"]: c["scores"] for c in final["clients"]} == {
        one.name: pytest.approx(scores_by_hand([one], a.seen[versions[4].digest]), rel=1e-4)
        for one in (a, b, late)
    }
    status = second.coordinator.status()
    assert (status.metric, status.score) == ("rmse", final["scores"]["rmse"])
    for round_ in found["rounds"]:
        for client in round_["clients"]:
            assert client["after"]["loss"] < client["before"]["loss"] * 1.5
            assert client["scores"] is None


def simulated(folder: Path, **changes: Any) -> dict[str, Any]:
    clients = {name: LinearClient(name, seed) for seed, name in enumerate("abc")}
    run = settings(
        folder, rounds=8, clients={"minimum": 3, "quorum": 1.0}, **{**NO_DATA, **changes}
    )
    return simulate(
        run,
        model_json="{}",
        manifest=LINEAR,
        task=REGRESSION,
        clients={name: client.profile().data for name, client in clients.items()},
        make_trainer=lambda name, plan, manifest, step: clients[name],
    )


def test_a_simulation_needs_no_evaluator(tmp_path: Path) -> None:
    told = simulated(tmp_path)
    assert len(told["rounds"]) == 8
    assert told["final"]["scores"]["rmse"] < told["rounds"][0]["scores"]["rmse"]
    low, high = told["rounds"][3]["spread"]
    assert low <= told["rounds"][3]["scores"]["rmse"] <= high


def test_a_run_ends_once_its_target_is_reached(tmp_path: Path) -> None:
    whole = simulated(tmp_path)
    third = whole["rounds"][2]["scores"]["rmse"]
    told = simulated(
        tmp_path, evaluation={"dataset": None, "target": {"metric": "rmse", "value": third}}
    )
    # Version 3 is evaluated in round 4, which ends the run.
    assert len(told["rounds"]) == 4
    assert [r["digest"] for r in told["rounds"]] == [r["digest"] for r in whole["rounds"]][:4]
    assert told["final"]["version"] == 4
    assert len(told["final"]["clients"]) == 3


def test_nobody_evaluates_where_nothing_is_held_out(tmp_path: Path) -> None:
    told = simulated(tmp_path, evaluation={"dataset": None, "holdout": 0})
    assert told["evaluated_by"] is None
    assert set(told["final"]["scores"].values()) == {None}
    assert told["final"]["digest"] == simulated(tmp_path)["final"]["digest"]


def test_the_phase_after_a_reached_target_is_the_end() -> None:
    from featherfed.server.rounds.transitions import Aggregated, Policy, RunState, transition

    state = RunState(Phase.AGGREGATING, 2)
    assert transition(state, Aggregated(1.0, enough=True), Policy(9, 1)).phase is Phase.FINISHED
    assert transition(state, Aggregated(1.0), Policy(9, 1)).phase is Phase.GATHERING


def test_whoever_asks_for_the_task_leaves_no_row(
    federation: Callable[..., Federation],
) -> None:
    server = federation(rounds=1)
    transport = server.transport()
    for number in range(20):
        reply = transport.get_task(f"stranger{number}")
    assert (task_of(reply), reply.holdout, reply.protocol) == (TASK, 0.0, PROTOCOL)
    with pytest.raises(Rejected, match="BAD_NAME"):
        transport.get_task("../x")
    transport.join(join_request("known"))
    transport.get_task("known")
    server.store.flush()
    assert {entry.client for entry in server.store.ledger.entries()} == {"known"}


def test_a_tables_row_names_the_leading_metric(tmp_path: Path) -> None:
    sweep = Sweep.model_validate({"grid": {"codec": ["float32"], "clients": [3]}})
    case, told = next(sweep.cases()), simulated(tmp_path)
    row = case_row(case, told)
    assert (row["metric"], row["score"]) == ("rmse", told["final"]["scores"]["rmse"])
    rounds = round_rows(case, told)
    assert [r["score"] for r in rounds] == [r["scores"]["rmse"] for r in told["rounds"]]
    assert "accuracy" not in {*row, *rounds[0]}
