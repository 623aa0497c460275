"""What the server writes to its database, and when."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from support.clients import join_request
from support.coordinator import THREE, Clock, Run, opened
from support.engines import rows
from support.federation import Federation
from support.processes import wait_until

from featherfed.server.rounds.transitions import Phase
from featherfed.server.storage.records import LedgerEntry, StoredChunk
from featherfed.server.storage.transfers import Transfers

Start = Callable[..., Federation]
CODEC = {"uplink": "float32", "downlink": "float32"}

pytestmark = pytest.mark.usefixtures("engine")


def traced(one: Run, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that every statement of a run's database is added to."""
    statements: list[str] = []
    original = one.store._database._execute

    def execute(sql: str, *values: Any) -> list[Any]:
        statements.append(sql)
        return original(sql, *values)

    monkeypatch.setattr(one.store._database, "_execute", execute)
    return statements


# ---- what it costs ----


def test_polls_do_not_wait_for_the_disk_and_no_byte_is_forgotten(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = opened(run(Clock(), clients=THREE))
    statements = traced(one, monkeypatch)
    for _ in range(100):
        one.poll("a")
        one.store.ledger.count(
            LedgerEntry(1, "a", "uplink", "control", 0, 16),
            LedgerEntry(1, "a", "downlink", "control", 0, 10),
        )
    assert statements == []
    assert one.coordinator.status().uplink_bytes == 1600
    assert rows(one.path.parent, "SELECT COUNT(*) FROM ledger") == [(0,)]
    one.submit("a")
    sql = "SELECT message_bytes FROM ledger WHERE kind = 'control' ORDER BY direction DESC"
    assert rows(one.path.parent, sql) == [(1600,), (1000,)]
    assert one.coordinator.status().downlink_bytes == 1000


def test_what_changes_nothing_waits_for_no_disk(run: Callable[..., Run]) -> None:
    one = opened(run(Clock(), clients=THREE))
    one.store.ledger.count(LedgerEntry(1, "a", "uplink", "control", 0, 7))
    sql = "SELECT commits FROM provenance"
    before = one.store._database.run(sql)[0][0]
    with one.store.transaction():
        one.store.journal.has_update(1, "a")
    assert one.store._database.run(sql)[0][0] == before
    one.store.flush()
    assert one.store._database.run(sql)[0][0] == before + 1
    assert [e.message_bytes for e in one.store.ledger.entries()] == [7]


def test_it_is_known_without_the_disk_of_whom_an_upload_may_be_stored(
    run: Callable[..., Run],
) -> None:
    one = run(Clock())
    transfers, part = one.store.transfers, StoredChunk("a", 0, 1, b"12345678", 9, 4, b"data")
    with suppress(RuntimeError), one.store.transaction():
        transfers.add_chunk(part)
        raise RuntimeError
    assert transfers.received("a", 1, b"12345678", 9).payload == 0, "it may be, but is not"
    transfers.add_chunk(part)
    assert [transfers.may_have_upload(name) for name in "ab"] == [True, False]
    assert Transfers(one.store._database).may_have_upload("a"), "after a restart, too"
    with suppress(RuntimeError), one.store.transaction():
        transfers.drop_upload("a")
        raise RuntimeError
    assert transfers.received("a", 1, b"12345678", 9).payload == 4
    with one.store.transaction():
        transfers.drop_upload("a")
        transfers.add_chunk(part)
    assert transfers.received_payload("a") == b"data"
    assert transfers.may_have_upload("a")
    transfers.drop_all()
    assert not transfers.may_have_upload("a")


def test_a_failed_transaction_forgets_no_bytes(run: Callable[..., Run]) -> None:
    one = run(Clock())
    one.store.ledger.count(LedgerEntry(1, "a", "uplink", "control", 0, 7))
    with pytest.raises(RuntimeError), one.store.transaction():
        raise RuntimeError
    one.store.ledger.count(LedgerEntry(1, "a", "uplink", "control", 0, 1))
    assert [e.message_bytes for e in one.store.ledger.entries()] == [8]


def test_the_ledgers_totals_are_the_sums_of_its_rows(run: Callable[..., Run]) -> None:
    one = run(Clock())
    ledger = one.store.ledger

    def sums(*kinds: str) -> dict[tuple[str, str], tuple[int, int]]:
        found: dict[tuple[str, str], tuple[int, int]] = {}
        for e in ledger.entries():
            if not kinds or e.kind in kinds:
                payload, message = found.get((e.direction, e.kind), (0, 0))
                sizes = payload + e.payload_bytes, message + e.message_bytes
                found[e.direction, e.kind] = sizes
        return found

    for round_ in (1, 2):
        for name in "ab":
            ledger.count(
                LedgerEntry(round_, name, "uplink", "transfer", 10, 12),
                LedgerEntry(round_, name, "uplink", "transfer", 7, 8),
                LedgerEntry(round_, name, "downlink", "control", 0, 5),
            )
        ledger.count(LedgerEntry(round_, "pi", "downlink", "release", 100, 110))
        with suppress(RuntimeError), one.store.transaction():
            ledger.count(LedgerEntry(round_, "a", "uplink", "retry", 30, 33))
            ledger.count(LedgerEntry(round_, "a", "uplink", "transfer", 30, 33))
            raise RuntimeError
        one.store.flush()
        assert ledger.totals() == sums()
        assert ledger.device_totals() == {"pi": sums("release", "release_retry")}
    assert ledger.devices() == {"pi"}
    assert ledger.message_bytes("uplink") == 80


def test_counted_bytes_are_written_within_a_second_or_so(federation: Start) -> None:
    server = federation(rounds=1, clients={"minimum": 2})
    server.transport().join(join_request("a"))
    sql = "SELECT COUNT(*) FROM ledger"
    wait_until(lambda: rows(server.directory, sql) == [(2,)], 10)


def test_an_update_does_not_rewrite_the_state(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal knows who has reported: a round of n clients writes O(n), not O(n^2)."""
    names = [f"c{i}" for i in range(30)]
    clock = Clock()
    one = run(clock, clients={"minimum": 30})
    one.join(*names)
    one.poll(*names)
    one.tick()
    statements = traced(one, monkeypatch)
    for name in names[:-1]:
        one.submit(name)
    assert any(sql.startswith("INSERT INTO updates") for sql in statements)
    assert not [sql for sql in statements if sql.startswith("UPDATE run")]
    one.restart(clock)
    assert one.coordinator.run._state.reported == set(names[:-1])
    one.submit(names[-1])
    assert one.tick().phase is Phase.AGGREGATING


def test_a_state_of_before_over_selection_is_read(run: Callable[..., Run]) -> None:
    clock = Clock()
    one = opened(run(clock, clients=THREE))
    one.submit("a")
    old = (
        '{"phase": "training", "round": 1, "since": 1e9, "cohort": ["a", "b", "c"], "slots": 3, '
        '"reported": ["a"], "required": 2, "lost": []}'
    )
    one.store._database.run("UPDATE run SET state = ?", old)
    one.restart(clock)
    for name in "bc":
        assert one.tick().phase is Phase.TRAINING
        one.submit(name)
    assert one.tick().phase is Phase.AGGREGATING
