"""metrics.json: what is measured for it, and the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.coordinator import DirectRun
from support.disk import fill
from support.models import MANIFEST, TASK
from support.updates import honest, random_update

from featherfed.api import metrics_file
from featherfed.api.metrics_file import MetricsFile
from featherfed.server.coordinator.evaluation import drawn
from featherfed.server.observability import metrics_json as metrics

Direct = Callable[..., DirectRun]

DENSE = {"uplink": "float32", "downlink": "float32"}


# ---- the models that are evaluated ----


def evaluated(run: DirectRun) -> list[set[str]]:
    """Return the clients of each round whose own models were evaluated."""
    return [
        {client["client"] for client in round_["clients"] if client["scores"] is not None}
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


# ---- the file ----

HEAD = {"schema": 1, "run": "\u00e4"}


def entry(number: int) -> dict[str, Any]:
    return {"round": number, "clients": [f"c{i}" for i in range(number)]}


def whole(rounds: int, **tail: Any) -> dict[str, Any]:
    """Return the content after so many rounds."""
    return {**HEAD, "rounds": [entry(i + 1) for i in range(rounds)], "releases": rounds, **tail}


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def begun(path: Path, rounds: int = 1) -> MetricsFile:
    """Return a file of so many rounds."""
    file = MetricsFile(path)
    file.replace(HEAD, map(entry, range(1, rounds + 1)), {"releases": rounds})
    return file


@pytest.fixture(params=[True, False], ids=["links", "no links"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file where the file system knows hard links, and where it does not."""
    if not request.param:

        def refuse(*args: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    return tmp_path / "metrics.json"


def test_rounds_are_added_one_by_one(path: Path) -> None:
    file = begun(path)
    assert read(path) == whole(1)
    for number in range(2, 9):
        file.append(entry(number), {"releases": number})
        assert read(path) == whole(number)
        assert list(read(path)) == ["schema", "run", "rounds", "releases"]
        assert file.num_rounds == number
    file.replace(HEAD, map(entry, range(1, 9)), {"releases": 8, "final": {}})
    assert read(path) == whole(8, final={})
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_round_is_written_at_its_own_price(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    file = begun(path, 500)
    file.append(entry(501), {"releases": 501})
    spare = path.with_name(f".spare-{path.name}")
    kept = spare.read_bytes()[:-200]
    file.append(entry(502), {"releases": 502})
    assert path.read_bytes().startswith(kept), "it was not written again"
    assert os.stat(path).st_ino != os.stat(spare).st_ino


@pytest.mark.parametrize("crash", range(6))
def test_a_kill_leaves_a_whole_file(
    path: Path, crash: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the round before or of this one; the next server goes on with either."""
    file = begun(path, 2)
    file.append(entry(3), {"releases": 3})
    calls = 0

    def dying(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > crash:
                raise KeyboardInterrupt
            return work(*args, **named)

        return call

    with monkeypatch.context() as patch:
        for name in ("truncate", "rename", "replace", "link", "unlink"):
            patch.setattr(os, name, dying(getattr(os, name)))
        patch.setattr(metrics_file, "put_in_place", dying(metrics_file.put_in_place))
        patch.setattr(metrics_file, "_after_rounds", dying(metrics_file._after_rounds))
        try:
            file.append(entry(4), {"releases": 4})
        except KeyboardInterrupt:
            assert read(path) in (whole(3), whole(4))
        else:
            assert read(path) == whole(4)
    again = begun(path, 4)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    again.append(entry(5), {"releases": 5})
    assert read(path) == whole(5)


def test_a_full_disk_leaves_the_file_of_before(small_disk: Path) -> None:
    path = small_disk / "metrics.json"
    file = begun(path, 2)
    fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        file.append("x" * 10**7, {"releases": 3})
    assert read(path) == whole(2)
    assert file.num_rounds == 2


# ---- what a round costs ----


def test_neither_metrics_nor_status_cost_more_after_many_rounds(direct_run: Direct) -> None:
    run = direct_run(rounds=60, compression=DENSE)
    store, steps = run.store, 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def cost(work: Callable[[], object]) -> int:
        """Return the steps of SQLite's virtual machine in `work`."""
        nonlocal steps
        steps = 0
        store._database._connection.set_progress_handler(count, 1)
        work()
        store._database._connection.set_progress_handler(None, 1)
        return steps

    def after_a_round() -> list[int]:
        run.step(honest(5))
        number = run.coordinator.newest_version
        return [
            cost(lambda: metrics.round_entry(store, run.settings, TASK, number)),
            cost(lambda: metrics.tail(store)),
            cost(run.coordinator.status),
        ]

    run.step(honest(5))
    run.coordinator.status()
    early = after_a_round()
    for _ in range(50):
        run.step(honest(5))
    late = after_a_round()
    for before, after in zip(early, late, strict=True):
        assert after <= 1.5 * before + 20, (early, late)


def test_the_parts_of_the_file_are_its_content(direct_run: Direct) -> None:
    run = direct_run(rounds=3, compression=DENSE)
    path = run.store.folder / "metrics.json"
    file = MetricsFile(path)
    for _ in range(3):
        run.step(honest(5))
        number = run.coordinator.newest_version
        if number == 1:
            head = metrics.head(run.store, run.settings, TASK, MANIFEST, {"featherfed": "0"})
            rounds = metrics.rounds(run.store, run.settings, TASK)
            file.replace(head, rounds, metrics.tail(run.store))
        else:
            last = metrics.round_entry(run.store, run.settings, TASK, number)
            file.append(last, metrics.tail(run.store))
        assert read(path) == metrics.collect(
            run.store, run.settings, TASK, MANIFEST, {"featherfed": "0"}
        )


@pytest.mark.parametrize("links", [True, False])
def test_the_round_before_may_be_written_anew(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its scores become known while the next round is open."""
    if not links:
        monkeypatch.setattr(metrics_file.os, "link", _no_link)
    path = tmp_path / "metrics.json"
    file, expected = MetricsFile(path), [{"round": 1, "score": None}]
    file.replace({"run": "x"}, expected, {"releases": []})
    for number in range(2, 12):
        changed = None
        if number % 4:  # a round may also stay as it was
            changed = expected[-1] = {"round": number - 1, "score": "known" * (number % 3)}
        expected.append({"round": number, "score": None})
        file.append(expected[-1], {"releases": [number]}, changed)
        assert read(path) == {"run": "x", "rounds": expected, "releases": [number]}


def _no_link(*_: object) -> None:
    raise OSError("no hard links here")
