"""The server's database: full disks, damage, older versions, backup and check."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from support.clients import Pull
from support.disk import damage, fill
from support.evaluator import DistanceEvaluator
from support.federation import Federation, settings
from support.models import MANIFEST, TASK
from support.processes import run

from featherfed.api.backup import back_up
from featherfed.cli.check import check_directory
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.state import ClientState
from featherfed.edge_client.state_directory import lock_state
from featherfed.proto import federation_pb2 as pb
from featherfed.server import loop as conduct
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import CannotStore, ServerError
from featherfed.server.settings.plan import make_plan
from featherfed.server.storage.records import LedgerEntry
from featherfed.server.storage.store import Store

Start = Callable[..., Federation]


# ---- the server ----


def test_a_full_disk_at_the_server_stops_nothing(
    federation: Start,
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(conduct, "STORAGE_PAUSE_SECONDS", 0.2)
    plain = federation("plain", rounds=3)
    expected = plain.run_clients(*[plain.client(f"c{i}", value=i / 3) for i in range(3)])

    (tmp_path / "full").symlink_to(small_disk)
    server = federation("full", rounds=3)
    trained = threading.Barrier(3, timeout=20)
    room: list[Path] = []

    def on_train(task: pb.Train) -> None:
        if task.round == 2 and trained.wait() == 0:
            room.append(fill(small_disk))
            threading.Timer(4, room[0].unlink).start()
        elif task.round == 2:
            while not room:
                time.sleep(0.01)

    with caplog.at_level(logging.DEBUG):
        clients = []
        for i in range(3):
            client = server.client(f"c{i}", trainer=Pull(i / 3, on_train))
            client._make_state = lambda run, i=i: ClientState(tmp_path / f"state{i}", run)  # type: ignore[misc]
            clients.append(client)
        held = server.run_clients(*clients)
    assert {h.digest for h in held} == {expected[0].digest}
    assert len(list(server.store.journal.updates(2))) == 3
    told = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert [r.__dict__["event"] for r in told] == ["storage_failing"], "once, not at every call"
    assert any(r.__dict__.get("event") == "storage_working" for r in caplog.records)
    assert any("STORAGE: the server cannot write now" in r.getMessage() for r in caplog.records)
    assert check_directory(server.directory)


def test_a_full_disk_is_reported_as_such(tmp_path: Path) -> None:
    store = Store(tmp_path / "run.db")
    pages = store._database.run("PRAGMA page_count")[0][0]
    store._database.run(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(CannotStore, match="database or disk is full"), store.transaction():
        store._database.run("INSERT INTO counts VALUES ('x', ?)", bytes(10**6))
    assert not store._database._connection.in_transaction
    assert store.failing
    assert store.refusals.add(1, "c", "LATE", "too late", 5.0), "waits in memory"
    with pytest.raises(CannotStore), store.transaction():
        store._database.run("INSERT INTO counts VALUES ('x', ?)", bytes(10**6))
    store._database.run("PRAGMA max_page_count = 100000")
    with store.transaction():
        store._database.run("INSERT INTO counts VALUES ('x', 1)")
    assert not store.failing
    assert [(row.client, row.reason, row.count) for row in store.refusals.all()] == [
        ("c", "LATE", 1)
    ]
    store.close()


def test_a_server_that_stops_on_a_full_disk_loses_counts_only(tmp_path: Path) -> None:
    store = Store(tmp_path / "run.db")
    (pages,) = store._database.run("PRAGMA page_count")[0]
    store._database.run(f"PRAGMA max_page_count = {pages}")
    for round_ in range(1000):  # more than fits
        store.ledger.count(LedgerEntry(round_, "c" * 100, "uplink", "control", 0, 100))
    with pytest.raises(CannotStore):
        store.flush()
    store.close()
    Store(tmp_path / "run.db").close()


def test_metrics_and_exports_wait_for_room(
    federation: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `on_round` the next one makes up for a failure; `on_finished` is insisted on."""
    monkeypatch.setattr(conduct, "STORAGE_PAUSE_SECONDS", 0.05)
    calls = {"round": 0, "finished": 0}

    def fail_first(name: str, times: int) -> None:
        calls[name] += 1
        if calls[name] <= times:
            raise OSError(28, "No space left on device")

    original = conduct.serve

    async def serve(*args: Any, **more: Any) -> bool:
        more["on_round"] = lambda: fail_first("round", 1)
        more["on_finished"] = lambda: fail_first("finished", 3)
        return await original(*args, **more)

    monkeypatch.setattr("support.federation.serve", serve)
    server = federation(rounds=2, clients={"minimum": 1})
    server.run_clients(server.client("a"))
    server.join()
    assert server.finished
    assert calls == {"round": 2, "finished": 4}


def finished(federation: Start, folder: str = "run", **changes: Any) -> Path:
    """Return the output of a finished run, its server gone."""
    server = federation(folder, **{"rounds": 2, **changes})
    server.run_clients(*[server.client(f"c{i}", value=i / 3) for i in range(3)])
    server.join()
    server.close()
    return server.directory


def test_a_damaged_database_is_refused_and_the_remedy_named(federation: Start) -> None:
    directory = finished(federation)
    damage(directory / "run.db", at=0.1, length=40_000)
    with pytest.raises(ServerError, match=r"is damaged .* put a backup"):
        Store(directory / "run.db")
    (directory / "run.db").write_bytes(b"not at all a database" * 1000)
    with pytest.raises(ServerError, match=r"is damaged .* put a backup"):
        Store(directory / "run.db")


def test_a_model_with_a_flipped_bit_is_refused(federation: Start) -> None:
    directory = finished(federation)
    with closing(sqlite3.connect(directory / "run.db")) as db, db:
        blob = bytearray(db.execute("SELECT weights FROM model").fetchone()[0])
        blob[1000] ^= 1
        db.execute("UPDATE model SET weights = ?", (bytes(blob),))
    with pytest.raises(ServerError, match=r"damaged .table model: not what was written"):
        Store(directory / "run.db")
    with closing(Store(directory / "run.db", checked=True)) as store:
        changed = settings(directory, rounds=2)
        plan = make_plan(changed, TASK, "{}", MANIFEST)
        with pytest.raises(ServerError, match="the model is not version 2 by its digest"):
            Coordinator(changed, store, plan, MANIFEST, TASK, DistanceEvaluator(), time.time)


def test_a_directory_that_cannot_be_written_is_said_at_once(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ServerError, match=r"cannot write to the output directory .*Read-only"):
        Store(small_disk / "run.db")
    with pytest.raises(ClientError, match=r"cannot use state directory .*Read-only.*--state-dir"):
        lock_state(small_disk / "state")


OLD_REFUSALS = """
DROP TABLE refused; DROP TABLE counts; DROP TABLE plan;
DROP VIEW refusals; DROP TABLE checksums; DROP TABLE provenance;
PRAGMA user_version = 0; PRAGMA application_id = 0;
CREATE TABLE refusals (round INTEGER NOT NULL, client TEXT NOT NULL, reason TEXT NOT NULL,
    detail TEXT NOT NULL, at REAL NOT NULL);
INSERT INTO refusals VALUES (1, 'a', 'LATE', 'x', 3), (1, 'a', 'LATE', 'x', 4),
    (2, 'b', 'MALFORMED', 'y', 5);
"""


def test_a_database_of_an_older_version_is_taken_over(federation: Start) -> None:
    directory = finished(federation)
    with closing(sqlite3.connect(directory / "run.db")) as db:
        db.executescript(OLD_REFUSALS)
    (directory / "run.db-commits").unlink()
    server = federation(rounds=2)
    rows = [astuple(row) for row in server.store.refusals.all()]
    assert rows == [(1, "a", "LATE", 2, "x", 3, 4), (2, "b", "MALFORMED", 1, "y", 5, 5)]
    server.close()
    assert check_directory(directory)


# ---- backup and check ----


def test_a_backup_made_under_writes_is_consistent(federation: Start, tmp_path: Path) -> None:
    codec = {
        "uplink": "float32",
        "downlink": "float32",
    }  # nothing is lost, and clients keep nothing
    server = federation(rounds=12, clients={"minimum": 2}, compression=codec)
    copies = []

    def on_train(task: pb.Train) -> None:
        if task.round in (2, 5, 9):
            copies.append(back_up(server.directory, tmp_path / f"backup{task.round}"))

    server.run_clients(server.client("a", trainer=Pull(1.0, on_train)), server.client("b"))
    server.join()
    assert check_directory(server.directory)
    server.close()
    assert len(copies) == 3
    for copy in copies:
        assert check_directory(copy.parent)
    (tmp_path / "again").mkdir()
    shutil.copy(copies[1], tmp_path / "again" / "run.db")
    restored = federation("again", rounds=12, clients={"minimum": 2}, compression=codec)
    assert restored.store.versions.newest().version == 4
    restored.run_clients(restored.client("a"), restored.client("b"))
    assert restored.store.versions.newest().digest == newest_digest(server.directory)


def test_clients_of_a_newer_version_follow_a_restored_run(
    federation: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes: dict[str, object] = {"rounds": 4, "clients": {"minimum": 2}}
    server = federation(**changes)

    def on_train(task: pb.Train) -> None:
        if task.round == 2:
            back_up(server.directory, tmp_path / "backup")

    server.run_clients(server.client("a", trainer=Pull(1.0, on_train)), server.client("b"))
    server.close()
    for path in server.directory.glob("run.db*"):
        path.unlink()
    shutil.copy(tmp_path / "backup" / "run.db", server.directory / "run.db")
    restored = federation(**changes)
    assert "goes on from version 1; versions published after that: 3" in caplog.text
    held = restored.run_clients(restored.client("a"), restored.client("b"))
    assert {h.digest for h in held} == {restored.store.versions.newest().digest}


def newest_digest(directory: Path) -> bytes:
    with closing(sqlite3.connect(directory / "run.db")) as db:
        sql = "SELECT digest FROM versions ORDER BY version DESC LIMIT 1"
        return bytes(db.execute(sql).fetchone()[0])


def test_backup_says_what_it_cannot_do(federation: Start, tmp_path: Path) -> None:
    server = federation(rounds=1)
    with pytest.raises(ServerError, match="no such file; give the output directory"):
        back_up(tmp_path / "nothing", tmp_path / "b")
    with pytest.raises(ServerError, match="the run's own folder"):
        back_up(server.directory, server.directory)
    done = run("backup", str(server.directory), str(tmp_path / "b"), cwd=tmp_path)
    assert done.stdout == f"backup: {tmp_path / 'b' / 'run.db'}\n"
    done = run("check", str(tmp_path / "b"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "ok    every version recomputed from the first" in done.stdout
    done = run("check", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1
    assert "holds neither a run (run.db) nor a client's state" in done.stderr


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("DELETE FROM versions WHERE version = 1", "versions [0, 2]"),
        ("DELETE FROM rounds WHERE round = 1", "rounds [2]"),
        ("UPDATE model SET weights = (SELECT zeroblob(length(weights)))", "the stored weights are"),
        (
            "UPDATE versions SET digest = zeroblob(32) WHERE version = 1",
            "version 1 does not follow",
        ),
        ("UPDATE versions SET payload = x'00' WHERE version = 2", "version 2 does not follow"),
        ("UPDATE updates SET client = 'z' WHERE client = 'c1'", "updates of z, who are not in"),
        ("DELETE FROM updates WHERE round = 1", "round 1 made a version of no update"),
        ("DELETE FROM updates WHERE client = 'c2'", "the ledger has an update of c2, the journal"),
        ("DELETE FROM ledger WHERE client = 'c0'", "the update of c0 is not in the ledger"),
        ("DELETE FROM updates WHERE client = 'c2'", "averages the updates of slots"),
    ],
)
def test_check_notices_damage(
    federation: Start, capsys: pytest.CaptureFixture[str], sql: str, says: str
) -> None:
    directory = finished(federation, compression={"uplink": "sketch(0.1)"})
    assert check_directory(directory)
    with closing(sqlite3.connect(directory / "run.db")) as db, db:
        assert db.execute(sql).rowcount
    capsys.readouterr()
    assert not check_directory(directory)
    assert says in capsys.readouterr().out


def test_check_notices_an_open_round_that_lost_an_update(federation: Start) -> None:
    server = federation(rounds=2)
    done = threading.Event()
    hold = threading.Event()

    def wait(task: pb.Train) -> None:
        if task.round == 2:
            done.set()
            hold.wait(20)

    clients = [server.client(f"c{i}", trainer=Pull(1.0, wait if i else None)) for i in range(3)]
    thread = threading.Thread(target=server.run_clients, args=clients)
    thread.start()
    assert done.wait(20)
    deadline = time.monotonic() + 20
    while not server.store.journal.has_update(2, "c0") and time.monotonic() < deadline:
        time.sleep(0.02)
    copy = back_up(server.directory, server.directory.parent / "copy").parent
    hold.set()
    thread.join()
    assert check_directory(copy)
    with closing(sqlite3.connect(copy / "run.db")) as db, db:
        db.execute("UPDATE updates SET payload = NULL WHERE round = 2")
    assert not check_directory(copy)
    with closing(sqlite3.connect(copy / "run.db")) as db, db:
        db.execute("DELETE FROM updates WHERE round = 2")
    assert not check_directory(copy), "the ledger knows of it"


def test_check_notices_damaged_pages(federation: Start, capsys: pytest.CaptureFixture[str]) -> None:
    directory = finished(federation)
    damage(directory / "run.db", at=0.1, length=40_000)
    assert not check_directory(directory)
    assert "WRONG pages and indices" in capsys.readouterr().out
