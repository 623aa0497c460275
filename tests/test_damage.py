"""Changed bytes in a run's files: rows, the write-ahead log, backups, and what is said of them."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from support.coordinator import CODEC, DirectRun
from support.models import MANIFEST
from support.scripts import load_script
from support.updates import honest

from featherfed.api.backup import back_up
from featherfed.cli.check import check_directory
from featherfed.compression.exchange.manifest import weights_digest
from featherfed.server.errors import CannotStore, ServerError
from featherfed.server.storage import checksums
from featherfed.server.storage.commit_count import CommitCount, count_path, read_count
from featherfed.server.storage.records import DownloadKey, StoredChunk, TransferredBytes
from featherfed.server.storage.store import Store

Make = Callable[..., DirectRun]


def a_run(direct_run: Make) -> DirectRun:
    """Return a run with one version and a closed round, and with rows in all tables."""
    run = direct_run(clients=3, rounds=3, compression=CODEC)
    run.step(honest(3))
    run.submit(honest(3))
    store = run.store
    store.refusals.add(1, "c1", "LATE", "too late", 5.0)
    store.runs.increment("duplicate_updates")
    store.transfers.add_chunk(StoredChunk("c2", 0, 2, b"12345678", 900, 340, b"data"))
    key = DownloadKey("c2", "transfer", 2, b"0123456789abcdef")
    store.transfers.save_sent(key, TransferredBytes(100, 140))
    store.flush()
    return run


def found_in(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        checksums.add_functions(db)
        return list(checksums.differences(db))


def test_checksums_follow_every_statement(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "run.db")) as store:
        database, draw = store._database, random.Random(7)
        for _ in range(300):
            with suppress(sqlite3.IntegrityError, ZeroDivisionError), store.transaction():
                for _ in range(draw.randrange(1, 4)):
                    round_, name = draw.randrange(3), draw.choice("abc")
                    database.run(draw.choice(STATEMENTS), round_, name, draw.choice(VALUES))
                if draw.random() < 0.3:
                    raise ZeroDivisionError
        with suppress(sqlite3.IntegrityError):  # the first of the two rows is taken back
            database.run("INSERT INTO norms VALUES (9, 'a', 1, 1, 1), (9, 'a', 1, 1, 1)")
        assert database.run("SELECT COUNT(*) FROM norms")[0][0]
        assert list(checksums.differences(database._connection)) == []


STATEMENTS = (
    "INSERT INTO norms VALUES (?1, ?2, ?3, 2, 1e300)",
    "INSERT OR REPLACE INTO norms VALUES (?1, ?2, ?3, -1.5, 0)",
    "INSERT OR IGNORE INTO norms VALUES (?1, ?2, ?3, 1, -0.0)",
    "INSERT INTO norms VALUES (?1, ?2, ?3, 1, 1) ON CONFLICT DO UPDATE SET whole = whole + ?3",
    "UPDATE norms SET trainable = ?3, round = (round + 1) % 3 WHERE client = ?2 AND round = ?1",
    "UPDATE OR REPLACE norms SET client = 'c', whole = ?3 WHERE client = ?2 AND round = ?1",
    "DELETE FROM norms WHERE client = ?2 AND ?1 = 2 AND ?3 != 0",
)
VALUES = (0, -0.0, 1, 0.1, 1e17, -7, 2**53 + 1)


CHANGES = {
    "run": "UPDATE run SET secret = secret + 1",
    "clients": "UPDATE clients SET num_examples = 7 WHERE client = 'c1'",
    "versions, version 1": "UPDATE versions SET scores = 1 WHERE version = 1",
    "model": "UPDATE model SET residual = x'00'",
    "clients .*": "UPDATE clients SET runtime = CAST(x'c3' AS TEXT)",
    "rounds, round 1": "UPDATE rounds SET opened = opened + 1 WHERE round = 1",
    "updates, round 2": "UPDATE updates SET num_examples = 99 WHERE round = 2 AND client = 'c0'",
    "arrivals, round 2": "UPDATE arrivals SET at = at + 1 WHERE round = 2 AND client = 'c0'",
    "norms, round 2": "UPDATE norms SET whole = 2 * whole WHERE round = 2 AND client = 'c0'",
    "aggregations, round 1": "UPDATE aggregations SET clip = 1",
    "noise, round 1": "UPDATE noise SET noise_energy = 7 WHERE round = 1",
    "refused, round 1": "UPDATE refused SET count = 2",
    "counts": "UPDATE counts SET value = value + 1",
    "publications": "UPDATE publications SET repeated = repeated + 1",
    "plan": "UPDATE plan SET seeded = 1 - seeded",
    "settings": "UPDATE settings SET settings = settings || ' '",
    "ledger, round 2": "DELETE FROM ledger WHERE client = 'c0' AND round = 2",
    "uploads, round 2": "UPDATE uploads SET data = x'00'",
    "downloads, round 2": "UPDATE downloads SET payload_bytes = 7",
    "updates, round 3": "INSERT INTO updates SELECT 3, client, slot, codec, num_examples, payload, "
    "0, '', NULL, NULL, NULL FROM updates WHERE round = 2",
}


def test_a_changed_row_of_any_table_is_refused_by_name(direct_run: Make, tmp_path: Path) -> None:
    run = a_run(direct_run)
    run.store.close()
    copy = tmp_path / "copy.db"
    for table, sql in CHANGES.items():
        shutil.copy(run.store.folder / "run.db", copy)
        Store(copy).close()
        with closing(sqlite3.connect(copy)) as db, db:
            assert db.execute(sql).rowcount
        says = rf"copy\.db is damaged .*table {table}: not what was written.* put a backup"
        with pytest.raises(ServerError, match=says):
            Store(copy)
    with closing(sqlite3.connect(run.store.folder / "run.db")) as db:
        tables = {row[0] for row in db.execute("SELECT DISTINCT name FROM checksums")}
    assert {table.split(",")[0].split()[0] for table in CHANGES} == tables - {"sqlite_master"}


def test_changed_definitions_of_tables_are_refused(tmp_path: Path) -> None:
    Store(tmp_path / "run.db").close()
    with closing(sqlite3.connect(tmp_path / "run.db")) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET sql = replace(sql, 'REAL', 'TEXT')")
        db.commit()
    with pytest.raises(ServerError, match=r"damaged .the tables' definitions"):
        Store(tmp_path / "run.db")


@pytest.mark.parametrize(
    ("sql", "table"),
    [
        ("UPDATE updates SET payload = zeroblob(length(payload))", "updates, round 2"),
        ("UPDATE updates SET codec = CAST(x'ff' AS TEXT) WHERE round = 2", "updates .*"),
        ("UPDATE updates SET num_examples = 1 WHERE client = 'c0'", "updates, round 2"),
        ("UPDATE norms SET whole = 1e9 WHERE client = 'c0'", "norms, round 2"),
    ],
)
def test_damage_while_serving_stops_the_aggregation(direct_run: Make, sql: str, table: str) -> None:
    run = a_run(direct_run)
    with closing(sqlite3.connect(run.store.folder / "run.db")) as db, db:
        db.execute(sql)  # without the triggers, as a bad disk does it
    with pytest.raises(ServerError, match=rf"table {table}: not what was written.* put a backup"):
        run.coordinator.aggregate()
    assert run.coordinator.newest_version == 1


def test_a_damaged_model_is_replaced_by_the_next(direct_run: Make) -> None:
    """The server that serves it has it in memory; another would notice at its start."""
    run = a_run(direct_run)
    with closing(sqlite3.connect(run.store.folder / "run.db")) as db, db:
        db.execute("UPDATE model SET weights = zeroblob(length(weights))")
    run.coordinator.aggregate()
    run.store.close()
    found = Store(run.store.folder / "run.db")
    assert weights_digest(found.versions.model(MANIFEST)[0]) == found.versions.newest().digest
    found.close()


def test_a_disk_that_cannot_be_read_now_is_no_damage(
    direct_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(direct_run)

    def fail(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(checksums, "_computed", fail)
    with pytest.raises(CannotStore):
        run.coordinator.aggregate()
    monkeypatch.undo()
    run.coordinator.aggregate()


# ---- the write-ahead log ----


def killed(run: DirectRun, folder: Path) -> Path:
    """Return a copy of a run's database as a SIGKILL leaves it."""
    folder.mkdir()
    for path in run.store.folder.glob("run.db*"):
        if not path.name.endswith("-shm"):
            shutil.copy(path, folder)
    return folder / "run.db"


def test_commits_that_a_damaged_log_loses_are_missed(
    direct_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = killed(a_run(direct_run), tmp_path / "killed")
    log = path.with_name("run.db-wal")
    whole = log.read_bytes()
    assert len(whole) > 100_000
    for at in (40, 5000, len(whole) // 2, len(whole) - 100):
        bad = whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]
        log.write_bytes(bad)
        with pytest.raises(ServerError, match=r"commits are missing.*run\.db-wal is damaged"):
            Store(path)
        assert log.read_bytes() == bad, "what is left was not touched"
        assert not check_directory(path.parent)
        with pytest.raises(ServerError, match="commits are missing"):
            back_up(path.parent, tmp_path / "backup")
        path.with_name("run.db-shm").unlink(missing_ok=True)
    assert "WRONG no commit is missing" in capsys.readouterr().out
    log.write_bytes(whole)
    assert check_directory(path.parent)
    with closing(Store(path)) as store:
        assert len(store.journal.reporters(2)) == 3


def test_the_count_can_be_deleted_to_go_on_with_what_is_left(
    direct_run: Make, tmp_path: Path
) -> None:
    path = killed(a_run(direct_run), tmp_path / "killed")
    log = path.with_name("run.db-wal")
    log.write_bytes(log.read_bytes()[:-4000])
    with pytest.raises(ServerError, match=r"delete run\.db-commits to go on"):
        Store(path)
    count_path(path).unlink()
    with closing(Store(path)) as store:
        assert store.load_state().round >= 1
    assert read_count(path) is not None


def test_a_restored_backup_may_have_fewer_commits(direct_run: Make, tmp_path: Path) -> None:
    run = direct_run(clients=3, rounds=3, compression=CODEC)
    run.step(honest(3))
    back_up(run.store.folder, tmp_path / "backup")
    run.step(honest(3))
    run.store.close()
    before = read_count(run.store.folder / "run.db")
    shutil.copy(tmp_path / "backup" / "run.db", run.store.folder)
    assert check_directory(run.store.folder)
    with closing(Store(run.store.folder / "run.db")) as store:
        assert store.versions.newest().version == 1
    after = read_count(run.store.folder / "run.db")
    assert before is not None
    assert after is not None
    assert after.number < before.number


def test_a_damaged_or_foreign_count_accuses_nobody(direct_run: Make) -> None:
    run = a_run(direct_run)
    run.store.close()
    path = run.store.folder / "run.db"
    good = count_path(path).read_bytes()
    for at in range(len(good)):
        count_path(path).write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        found = read_count(path)
        assert found is None or found == read_count(path)
        Store(path).close()
    known = read_count(path)
    assert known is not None
    CommitCount(path, known._replace(database="another", number=10**6)).close()
    Store(path).close()
    assert read_count(path) == known, "written anew"


def test_no_backup_is_made_of_a_damaged_run(direct_run: Make, tmp_path: Path) -> None:
    run = a_run(direct_run)
    copy = back_up(run.store.folder, tmp_path / "backup")
    good = copy.read_bytes()
    with closing(sqlite3.connect(run.store.folder / "run.db")) as db, db:
        db.execute("UPDATE ledger SET message_bytes = 0")
    with pytest.raises(ServerError, match="table ledger, round 1: not what was written"):
        back_up(run.store.folder, tmp_path / "backup")
    assert copy.read_bytes() == good
    assert [path.name for path in (tmp_path / "backup").iterdir()] == ["run.db"]


def test_check_goes_on_where_a_column_is_gone(
    direct_run: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(direct_run)
    run.store.close()
    path = run.store.folder / "run.db"
    assert check_directory(path.parent)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET sql = replace(sql, 'opened', 'openee')")
        db.commit()
    capsys.readouterr()
    assert not check_directory(path.parent)
    said = capsys.readouterr().out
    assert "WRONG rows as they were written\n      the tables' definitions: not what" in said


@pytest.mark.slow
def test_no_flipped_byte_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As benchmarks/damage.py measures it, with a tenth of the flips."""
    module = load_script(Path(__file__).parent.parent / "benchmarks" / "damage.py")
    monkeypatch.setattr(module, "FLIPS", 100)
    for name, figures in module.damage(tmp_path).items():
        assert figures["silent"] == figures["found_by_start_as_traceback"] == 0, name
        assert figures["found_while_serving"] == 0, name
