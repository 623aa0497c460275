"""When rounds opened and updates came in: stored, and in metrics.json."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest
from support.coordinator import DirectRun
from support.models import TASK
from support.updates import honest

from featherfed.server.observability import metrics_json as metrics
from featherfed.server.storage.store import Store

Direct = Callable[..., DirectRun]


def test_a_round_tells_when_it_opened_and_updates_came(direct_run: Direct) -> None:
    run = direct_run()
    run.step(honest(3))
    (entry,) = metrics.rounds(run.store, run.settings, TASK)
    stored = run.store.journal.round(1)
    assert datetime.fromisoformat(entry["opened"]).timestamp() == pytest.approx(
        stored.opened, abs=0.001
    )
    assert entry["asked"] == len(stored.cohort) == 3
    arrivals = run.store.journal.arrivals(1)
    assert set(arrivals) == {client["client"] for client in entry["clients"]}
    for client in entry["clients"]:
        after = arrivals[client["client"]] - stored.opened
        assert client["arrived"] == pytest.approx(after, abs=0.001)
        assert 0 <= client["arrived"] <= entry["seconds"] + 0.001


def test_a_database_of_an_older_version_has_no_arrivals(direct_run: Direct) -> None:
    run = direct_run()
    run.step(honest(3))
    run.store.journal._database.run("DELETE FROM arrivals")
    (entry,) = metrics.rounds(run.store, run.settings, TASK)
    assert all("arrived" not in client for client in entry["clients"])


def test_a_private_run_does_not_tell_how_long_clients_trained(direct_run: Direct) -> None:
    run = direct_run(
        compression={"uplink": "float16 | zstd", "downlink": "float32", "broadcast": "aggregate"},
        evaluation={"clients": 0},
        privacy={"noise_multiplier": 0.5, "clip": 0.5},
    )
    run.step(honest(5))
    (entry,) = metrics.rounds(run.store, run.settings, TASK)
    assert len(entry["clients"]) == 5
    assert all("arrived" not in client for client in entry["clients"])


def test_an_arrival_before_the_opening_is_at_the_opening(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "run.db")) as store:
        with store.transaction():
            store.journal.open_round(1, 100.0, ["a"])
            store.journal.add_arrival(1, "a", 99.0)
        (at,) = store.journal.arrivals(1).values()
        # The machine's clock was put back before a restart.
        assert metrics._arrived(at, store.journal.round(1)) == {"arrived": 0.0}
