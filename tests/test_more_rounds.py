"""Runs that go on beyond the rounds that they began with, or beyond their target."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.clients import Pull
from support.federation import Federation, settings
from support.kills import free_port
from support.models import MANIFEST

from featherfed.cli.check_run import checks_of_run
from featherfed.server.coordinator.opening import open_run
from featherfed.server.coordinator.update_codecs import UpdateCodecs
from featherfed.server.errors import ServerError
from featherfed.server.rounds.total import TotalRounds
from featherfed.server.rounds.transitions import Phase
from featherfed.server.settings.settings import Settings

NAMES = ("a", "b", "c")


def run(server: Federation) -> list[str]:
    """Let three clients take part until the end; return the digests of all versions."""
    server.run_clients(*(server.client(name, value) for value, name in enumerate(NAMES, 1)))
    server.join()
    return digests(server)


def digests(server: Federation) -> list[str]:
    return [version.digest.hex() for version in server.store.versions.all()]


@pytest.mark.parametrize("uplink", ["balanced", "deadzone(0.15) | zstd(1)"])
def test_a_finished_run_goes_on(federation: Callable[..., Federation], uplink: str) -> None:
    compression = {"uplink": uplink}
    first = federation(rounds=6, compression=compression)
    before = run(first)
    first.close()
    again = federation(rounds=6, compression=compression)
    assert again.coordinator.phase is Phase.FINISHED
    again.close()
    more = federation(rounds=9, compression=compression)
    assert (more.coordinator.phase, more.coordinator.plan.rounds) == (Phase.GATHERING, 9)
    after = run(more)
    assert len(after) == 10
    assert after[:7] == before
    for name, find in checks_of_run(more.store):
        assert not list(find()), name
    more.close()
    fewer = federation(rounds=6, compression=compression)  # the same command as at first
    assert (fewer.coordinator.phase, fewer.coordinator.settings.rounds) == (Phase.FINISHED, 9)
    assert digests(fewer) == after


def test_a_run_goes_on_in_mid_run_and_clients_learn_of_it(tmp_path: Path) -> None:
    """Clients that stay connected have an older plan, and join again."""
    port = free_port()

    def serve(rounds: int) -> Federation:
        changed = settings(
            tmp_path, rounds=rounds, server={"port": port, "linger": 10},
            clients={"minimum": 2, "quorum": 1.0, "deadline": 60, "patience": 60},
        )  # fmt: skip
        return Federation(tmp_path, changed).start()

    first, reached, go_on = serve(2), threading.Event(), threading.Event()

    class Slow(Pull):
        def train(self, weights: Any, task: Any) -> Any:
            if task.round == 2 and not reached.is_set():
                reached.set()
                assert go_on.wait(60)
            return super().train(weights, task)

    clients = [first.client("a", 1.0, trainer=Slow(1.0)), first.client("b", 2.0)]
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    assert reached.wait(60)
    first.close()
    second = serve(4)
    go_on.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    second.join()
    assert second.finished
    assert second.store.versions.newest().version == 4
    assert second.store.runs.extensions() == [(3, 4)]  # the open round keeps its schedule
    second.close()


def test_other_settings_may_not_change(federation: Callable[..., Federation]) -> None:
    server = federation(rounds=2)
    changed = server.settings.model_copy(update={"rounds": 3, "seed": 9})
    with pytest.raises(ServerError, match="with other settings"):
        open_run(changed, server.store, server.coordinator.plan, MANIFEST, None, None, 0.0)


def test_a_run_that_reached_its_target_goes_on_with_another_one(
    federation: Callable[..., Federation], caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(federation("whole", rounds=5))
    server = federation(rounds=5)
    store = server.store
    run(server)
    reached = (store.versions.get(1).scores or {})["loss"]
    server.close()
    target = {"target": {"metric": "loss", "value": reached}}
    early = federation("early", rounds=5, evaluation=target)
    assert run(early) == whole[:2]
    early.close()
    still = federation("early", rounds=7, evaluation=target)
    assert still.coordinator.phase is Phase.FINISHED
    assert "since [evaluation] target is reached" in caplog.text
    still.close()
    on = federation("early", rounds=5)
    assert on.coordinator.settings.rounds == 7
    after = run(on)
    assert after[:2] == whole[:2]
    assert len(after) == 8


def test_schedules_go_by_the_rounds_that_hold_when_a_round_opens() -> None:
    run_ = Settings.model_validate({"rounds": 6, "optimization": {"method": "prune"}})
    total = TotalRounds(6, ((7, 9),))
    raised = run_.with_rounds(total)
    assert raised.rounds == 9
    assert [raised.sparsity.at(r) for r in range(1, 7)] == [
        run_.sparsity.at(r) for r in range(1, 7)
    ]
    assert raised.sparsity.at(9) == run_.sparsity.at(6) == 0.8
    dense = Settings.model_validate({"rounds": 6, "compression": {"uplink": "balanced"}})
    old = UpdateCodecs(dense, MANIFEST, "bounded", "accuracy")
    new = UpdateCodecs(dense.with_rounds(total), MANIFEST, "bounded", "accuracy", total)
    known = frozenset({"sketch", "topk", "quantize", "zstd"})
    for round_ in range(1, 7):
        assert new.choose(round_, 5, known) == old.choose(round_, 5, known)
        assert new.server_rate(round_, 5) == old.server_rate(round_, 5)
    rates = [new.server_rate(round_, 5) for round_ in range(5, 10)]
    assert rates[:2] == rates[3:]
    assert rates[2] >= max(rates[:2])


def test_the_number_that_holds_for_a_round() -> None:
    total = TotalRounds(7, ((5, 9), (10, 12)))
    assert [total.at(r) for r in (1, 4, 5, 9, 10, 12)] == [7, 7, 9, 9, 12, 12]
    assert (total.now, TotalRounds(3).now) == (12, 3)
