"""Runs in PostgreSQL: takeover by a standby, PostgreSQL's own crashes, and what is refused."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from support.engines import address_of, on_postgres
from support.federation import Federation
from support.kills import (
    check_acks,
    newest_version_of,
    numpy_processes,
    numpy_spec,
    outcome,
    outcome_in_postgres,
)
from support.postgres import PostgresServer
from support.processes import wait_until

from featherfed.api.backup import back_up
from featherfed.api.serve_settings import serve_settings
from featherfed.cli.check import check_directory
from featherfed.server.errors import CannotStore, Deposed, ServerError
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.postgres_address import (
    PostgresAddress,
    check_not_in_postgres,
    write_address,
)
from featherfed.server.storage.store import Store

psycopg = pytest.importorskip("psycopg", reason="needs the extra [postgres]")

from featherfed.server.storage.postgres_connection import (  # noqa: E402  what needs psycopg
    connect,
    end_other_sessions,
)
from featherfed.server.storage.postgres_schema import tables  # noqa: E402

Start = Callable[..., Federation]
ROUNDS, CLIENTS = 4, 2
CODEC = "topk(0.05) | quantize(4) | zstd"


@pytest.mark.slow
def test_a_standby_takes_over_and_postgres_may_crash(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    """Over real gRPC, with processes that are killed; the model is that of SQLite, bit for bit."""
    plain = numpy_spec(CODEC, ROUNDS, CLIENTS)
    with numpy_processes(tmp_path / "sqlite", plain, CLIENTS) as processes:
        processes.wait(120)
    wanted = outcome(tmp_path / "sqlite" / "run.db")

    dsn, folder = postgres.new_database(), tmp_path / "postgres"
    spec = numpy_spec(CODEC, ROUNDS, CLIENTS, seconds=0.2, hold_last_round=True, postgres=dsn)

    def logged(name: str, text: str) -> bool:
        return text in (folder / f"{name}.log").read_text("utf-8")

    with numpy_processes(folder, spec, CLIENTS) as processes:
        newest = newest_version_of(folder)
        processes.commands = {**processes.commands, "standby": processes.commands["server"]}
        wait_until(lambda: newest() >= 1)
        processes.start("standby")
        wait_until(lambda: logged("standby", "this one is a standby"))
        processes.kill("server")
        begin = time.monotonic()
        wait_until(lambda: logged("standby", "taking over"))
        assert time.monotonic() - begin < 5
        processes.start("server")
        wait_until(lambda: logged("server", "this one is a standby"))
        postgres.stop("immediate")
        time.sleep(1)
        postgres.start()
        (folder / "over").touch()
        processes.wait(120)
    left = outcome_in_postgres(dsn, tmp_path / "copy")
    assert (left.digests, left.journal) == (wanted.digests, wanted.journal)
    assert check_acks(folder, left) >= ROUNDS * CLIENTS - 1


@pytest.fixture
def address(postgres: PostgresServer) -> PostgresAddress:
    return PostgresAddress(postgres.new_database())


@pytest.fixture
def store(address: PostgresAddress, tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "run.db", postgres=address)
    yield store
    store.close()


def lose_connection(store: Store) -> None:
    """End the session of a store in PostgreSQL, as a cut network does."""
    database: Any = store._database
    with closing(connect(database._address, "test")) as other:
        end_other_sessions(other, database._name)


def another_server_commits(address: PostgresAddress, folder: Path) -> None:
    """Let another server take over, change the run, and end."""
    with closing(Store(folder / "run.db", postgres=address)) as other:
        other.runs.increment("other")


def test_a_lost_connection_loses_nothing_and_is_taken_up(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.runs.increment("n")
    lose_connection(store)
    with pytest.raises(CannotStore, match="connection to PostgreSQL is lost") as told:
        store.runs.increment("n")
    assert "127.0.0.1" not in told.value.detail, "clients read this"
    assert store.failing
    store.flush()
    assert not store.failing
    assert (store.runs.counter("n"), "can be written again" in caplog.text) == (1, True)


def test_no_part_of_a_lost_transaction_is_written(store: Store) -> None:

    def change() -> None:
        with store.transaction():
            store.runs.increment("n")
            lose_connection(store)
            for name in ("lost", "after"):
                with suppress(CannotStore):
                    store.runs.increment(name)

    with pytest.raises(CannotStore):
        change()
    store.flush()
    assert [store.runs.counter(name) for name in ("n", "lost", "after")] == [0] * 3


def test_a_server_that_another_one_followed_never_writes_again(
    store: Store, address: PostgresAddress, tmp_path: Path
) -> None:
    lose_connection(store)
    another_server_commits(address, tmp_path)
    with pytest.raises(CannotStore):
        store.runs.increment("n")
    for _ in range(2):
        with pytest.raises(Deposed, match="was changed while the connection was lost"):
            store.flush()
    with closing(Store(tmp_path / "run.db", postgres=address)) as now:
        assert (now.runs.counter("n"), now.runs.counter("other")) == (0, 1)
    with pytest.raises(Deposed):
        store.runs.increment("n")


def test_a_server_ends_while_another_one_serves(
    store: Store, address: PostgresAddress, tmp_path: Path
) -> None:
    lose_connection(store)
    with closing(Store(tmp_path / "run.db", postgres=address)):
        with pytest.raises(CannotStore):
            store.flush()
        with pytest.raises(Deposed, match="another server serves the run"):
            store.flush()


@pytest.mark.parametrize("made", [True, False])
def test_a_commit_whose_answer_is_lost_is_looked_up(store: Store, made: bool) -> None:
    database: Any = store._database
    connection, told = database._connection, list[str]()

    class LosesAnswers:
        """A connection that ends with the first COMMIT, after or before PostgreSQL has it."""

        def __getattr__(self, name: str) -> Any:
            return getattr(connection, name)

        def execute(self, statement: Any, *more: Any, **named: Any) -> Any:
            if statement == "COMMIT":
                if made:
                    connection.execute("COMMIT")
                connection.close()
                raise psycopg.OperationalError("the connection is lost")
            return connection.execute(statement, *more, **named)

    database._connection = LosesAnswers()
    with suppress(CannotStore), store.transaction():
        store.after_commit(lambda: told.append("committed"))
        store.runs.increment("n")
    assert told == ["committed"] * made
    assert store.runs.counter("n") == made
    store.runs.increment("n")
    assert store.runs.counter("n") == made + 1


def test_a_commit_that_nobody_knew_of_for_long_begins_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    database: Any = store._database
    monkeypatch.setattr("featherfed.server.storage.postgres.IN_DOUBT_SECONDS", 0)
    with closing(connect(database._address, "test")) as other:
        other.execute("UPDATE provenance SET commits = commits + 1")  # it was made
    database._connection.close()
    with pytest.raises(Deposed):
        store.runs.increment("n")


def test_a_newer_or_a_strange_schema_is_refused_by_name(
    address: PostgresAddress, tmp_path: Path
) -> None:
    path = tmp_path / "run.db"
    Store(path, postgres=address).close()
    with closing(connect(address, "test")) as db:
        db.execute("UPDATE schema_version SET version = 99")
        db.execute("UPDATE provenance SET featherfed = '9.9.9'")
    with pytest.raises(ServerError, match=r"newer featherfed \(9\.9\.9\): it has format 99"):
        Store(path, postgres=address)
    with closing(connect(address, "test")) as db:
        db.execute("DROP TABLE schema_version")
    with pytest.raises(ServerError, match=r"not of featherfed; name another schema"):
        Store(path, postgres=address)
    Store(path, postgres=address._replace(schema="other")).close()


def test_both_engines_have_the_same_columns(
    store: Store, address: PostgresAddress, tmp_path: Path
) -> None:
    (tmp_path / "file").mkdir()
    Store(tmp_path / "file" / "run.db").close()
    with closing(sqlite3.connect(tmp_path / "file" / "run.db")) as file:
        for table in tables():
            names = [row[1] for row in file.execute(f"PRAGMA table_info({table})")]
            sql = (
                "SELECT column_name FROM information_schema.columns WHERE table_schema = ? "
                "AND table_name = ? ORDER BY ordinal_position"
            )
            assert [row[0] for row in store._database.run(sql, address.schema, table)] == names


def test_an_address_with_a_password_is_refused_and_not_repeated() -> None:
    for dsn in ("postgresql://me:secret@host/db", "host=h password=secret", "secret is no address"):
        with pytest.raises(ServerError) as told:
            serve_settings(Settings(), None, None, None, False, postgres=dsn)
        assert "secret" not in str(told.value)


def test_a_server_that_may_lose_what_it_acknowledged_is_refused(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    address = PostgresAddress(postgres.new_database())
    postgres.stop("fast")
    postgres.start(fsync="off")
    try:
        with pytest.raises(ServerError, match="fsync is off"):
            Store(tmp_path / "run.db", postgres=address)
    finally:
        postgres.stop("fast")
        postgres.start(synchronous_commit="off")
    with closing(Store(tmp_path / "run.db", postgres=address)) as store:
        assert store._database.run("SELECT current_setting('synchronous_commit')") == [("on",)]


def test_a_folder_tells_where_its_run_is(
    federation: Start, postgres: PostgresServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Backup, check and all that reads a stored run go by the output folder, as with SQLite."""
    with on_postgres(postgres.dsn):
        server = federation(rounds=2)
        found = address_of(server.directory)
    assert found is not None
    write_address(server.directory, found)
    server.run_clients(*[server.client(f"c{i}", value=i / 3) for i in range(3)])
    back_up(server.directory, tmp_path / "backup")
    assert check_directory(tmp_path / "backup")
    assert check_directory(server.directory)
    assert "every version recomputed from the first" in capsys.readouterr().out
    with closing(Store(tmp_path / "backup" / "run.db")) as copy:
        assert copy.versions.newest().digest == server.store.versions.newest().digest
    with pytest.raises(ServerError, match="is in PostgreSQL: serve it with --postgres"):
        check_not_in_postgres(server.directory)
    with pytest.raises(ServerError, match="holds a run in SQLite"):
        write_address(tmp_path / "backup", found)
