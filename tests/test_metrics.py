"""metrics.json: what is measured for it, and the file."""

from __future__ import annotations

from collections.abc import Callable

from support.coordinator import DirectRun
from support.updates import honest, random_update

from featherfed.server.coordinator.evaluation import drawn

Direct = Callable[..., DirectRun]

DENSE = {"uplink": "float32", "downlink": "float32"}


# ---- the models that are evaluated ----


def evaluated(run: DirectRun) -> list[set[str]]:
    """Return the clients of each round whose own models were evaluated."""
    return [
        {client["client"] for client in round_["clients"] if client["accuracy"] is not None}
        for round_ in run.metrics()["rounds"]
    ]


def test_so_many_clients_as_the_settings_say_are_evaluated(direct_run: Direct) -> None:
    few = direct_run("few", 12, rounds=2, compression=DENSE, evaluation={"clients": 3})
    default = direct_run("default", 12, rounds=2, compression=DENSE)
    for run in (few, default):
        run.step(honest(12))
        run.step(honest(12))
    assert [len(found) for found in evaluated(few)] == [3, 3]
    assert [len(found) for found in evaluated(default)] == [10, 10]
    assert evaluated(few)[0] != evaluated(few)[1]


def test_an_update_that_is_left_out_is_not_evaluated_in_place_of_another(
    direct_run: Direct,
) -> None:
    run = direct_run(compression=DENSE, evaluation={"clients": 4})
    run.step({**honest(4), "bad": random_update(4, 1e6)})
    assert evaluated(run) == [{"c0", "c1", "c2", "c3"}]


def test_the_clients_to_evaluate_follow_from_secret_and_round() -> None:
    names = [f"c{i}" for i in range(20)]
    ten = drawn(names, 10, 1, 1)
    assert ten == drawn(reversed(names), 10, 1, 1)
    assert drawn(names, 3, 1, 1) < ten
    assert len({ten, drawn(names, 10, 2, 1), drawn(names, 10, 1, 2)}) == 3
    assert drawn(names, 30, 1, 1) == set(names)
    assert drawn(names, 0, 1, 1) == set()
