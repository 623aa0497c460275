"""Changes of many callers that are committed together, and each undone by itself."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.coordinator import Clock, Run
from support.engines import open_store
from support.updates import update

from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Busy, CannotStore, Refused
from featherfed.server.rounds.growing_set import GrowingSet
from featherfed.server.storage import group_commit
from featherfed.server.storage.group_commit import GroupCommit
from featherfed.server.storage.store import Store


@pytest.fixture(autouse=True)
def _no_hurry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a commit take in all that wait: with PostgreSQL each is a round trip."""
    if "engine" in request.fixturenames and request.getfixturevalue("engine") == "postgres":
        monkeypatch.setattr(group_commit, "LONGEST_SECONDS", 60)


@pytest.fixture
def store(tmp_path: Path, engine: str) -> Iterator[Store]:
    store = open_store(tmp_path)
    yield store
    store.close()


def together(store: Store, *works: Callable[[], Any]) -> list[Any]:
    """Return the results of works that all wait at the same time, or their errors."""

    async def run() -> list[Any]:
        commits = GroupCommit(store.attempt)
        return await asyncio.gather(*map(commits.run, works), return_exceptions=True)

    return asyncio.run(run())


def add(store: Store, name: str) -> Callable[[], str]:
    def work() -> str:
        store.runs.increment(name)
        return name

    return work


def test_works_that_wait_together_share_one_commit(store: Store) -> None:
    before = store._database._commits.number
    names = [f"n{number}" for number in range(50)]
    assert together(store, *(add(store, name) for name in names)) == names
    assert store._database._commits.number == before + 1
    assert [store.runs.counter(name) for name in names] == [1] * 50


def test_a_refused_work_is_undone_and_no_other(store: Store) -> None:
    told: list[str] = []

    def refused() -> None:
        store.runs.increment("refused")
        store.after_commit(lambda: told.append("refused"))
        raise Busy("too much", 1)

    def accepted() -> None:
        store.runs.increment("accepted")
        store.after_commit(lambda: told.append("accepted"))

    before = store._database._commits.number
    one, two, three = together(store, accepted, refused, accepted)
    assert (one, type(two), three) == (None, Busy, None)
    assert (store.runs.counter("refused"), store.runs.counter("accepted")) == (0, 2)
    assert told == ["accepted", "accepted"]
    assert store._database._commits.number == before + 1


@pytest.mark.parametrize("error", [CannotStore("no room"), ValueError("a bug")])
def test_an_unexpected_failure_refuses_nobody_else(store: Store, error: Exception) -> None:
    told: list[str] = []

    def fails() -> None:
        store.runs.increment("fails")
        raise error

    def works() -> str:
        store.after_commit(lambda: told.append("works"))
        return add(store, "works")()

    assert together(store, works, fails, works) == ["works", error, "works"]
    assert (store.runs.counter("fails"), store.runs.counter("works")) == (0, 2)
    assert told == ["works", "works"], "only what was committed is told"


def test_a_commit_that_fails_fails_for_all_who_changed_something(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise CannotStore("no room")

    monkeypatch.setattr(store._database, "_commit", full)
    read, *others = together(store, lambda: store.runs.counter("n"), *[add(store, "n")] * 3)
    assert read == 0, "what only reads is answered"
    assert [type(other) for other in others] == [CannotStore] * 3
    monkeypatch.undo()
    assert store.runs.counter("n") == 0


def test_a_work_is_done_though_its_caller_is_gone(store: Store) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert go_on.wait(10)

    async def run() -> None:
        commits = GroupCommit(store.attempt)
        first = asyncio.ensure_future(commits.run(slow))
        await asyncio.to_thread(begun.wait, 10)
        second = asyncio.ensure_future(commits.run(add(store, "n")))
        await asyncio.sleep(0)
        second.cancel()
        go_on.set()
        await first
        assert await commits.run(add(store, "m")) == "m"

    asyncio.run(run())
    assert (store.runs.counter("n"), store.runs.counter("m")) == (1, 1)


def test_updates_of_one_commit_see_each_other(tmp_path: Path, engine: str) -> None:
    """After the one that closes the round, others of the same commit come too late."""
    run = Run(tmp_path, Clock(), clients={"minimum": 3, "quorum": 0.6})
    run.join(*"abc")
    run.poll(*"abc")
    run.tick()
    live, payload, seen = run.coordinator.run, update(), list[str]()
    live.on_phase = lambda: seen.append(str(live.phase))
    header = pb.UpdateHeader(round=1, num_examples=1, size=len(payload))
    decoded = {name: run.coordinator.updates.decode(name, header, payload) for name in "abc"}

    def accept(name: str) -> pb.Outcome:
        return run.coordinator.updates.accept(name, header, decoded[name], len(payload))

    async def all_at_once() -> list[Any]:
        works = [functools.partial(accept, name) for name in "abbc"]
        works.append(lambda: run.coordinator.updates.check("a", header))
        commits = run.coordinator.commits
        return await asyncio.gather(*map(commits.run, works), return_exceptions=True)

    before = run.store._database._commits.number
    *outcomes, late = asyncio.run(all_at_once())
    assert outcomes == [pb.ACCEPTED, pb.ACCEPTED, pb.DUPLICATE, pb.ACCEPTED]
    assert isinstance(late, Refused)
    assert late.reason == pb.LATE
    assert run.store._database._commits.number == before + 1
    assert seen == ["aggregating"]
    assert live.committed.state.reported == set("abc")
    assert live.committed.state == live.state
    run.store.close()


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abcdefgh")), max_size=40))
def test_growing_sets_are_what_frozensets_would_be(steps: list[tuple[int, str]]) -> None:
    """Any earlier set may grow again, as the state does when a change of it is undone."""
    sets: list[tuple[GrowingSet, frozenset[str]]] = [(GrowingSet(), frozenset())]
    for which, name in steps:
        grown, plain = sets[which % len(sets)]
        sets.append((grown.with_one(name), plain | {name}))
    for grown, plain in sets:
        assert (grown, len(grown), set(grown)) == (plain, len(plain), plain)
        assert frozenset("abc") - grown == frozenset("abc") - plain
        assert all((name in grown) == (name in plain) for name in "abcdefgh")
