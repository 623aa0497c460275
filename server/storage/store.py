"""All stores of one run, over one database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from featherfed.server.errors import CannotStore, Deposed, ServerError
from featherfed.server.rounds.growing_set import GrowingSet
from featherfed.server.rounds.transitions import RunState
from featherfed.server.storage.clients import Clients
from featherfed.server.storage.controls import Controls
from featherfed.server.storage.database import Database
from featherfed.server.storage.evaluations import Evaluations
from featherfed.server.storage.journal import Journal
from featherfed.server.storage.ledger import Ledger
from featherfed.server.storage.model_files import ModelFileReports
from featherfed.server.storage.postgres_address import Leader, PostgresAddress
from featherfed.server.storage.publications import Publications
from featherfed.server.storage.refusals import Refusals
from featherfed.server.storage.runs import Runs
from featherfed.server.storage.scaling import ScalingStore
from featherfed.server.storage.sqlite import SqliteDatabase
from featherfed.server.storage.transfers import Transfers
from featherfed.server.storage.versions import Versions


class Store:
    """A run's stores by subject; changes in one `transaction` happen together or not at all.

    Safe to use from several threads. Every method of a store may raise CannotStore if the disk
    takes nothing now, and ServerError if the database is damaged.
    """

    def __init__(
        self,
        path: Path,
        checked: bool = False,
        postgres: PostgresAddress | None = None,
        standby: Callable[[Leader | None], None] = lambda leader: None,
    ) -> None:
        """Open or create the database; raise ServerError if it cannot be used.

        `checked`: see `SqliteDatabase`. `postgres`: where the run is instead of in the file `path`;
        then this waits until no other server serves it. `standby`: see `PostgresDatabase`.
        """
        self.folder = path.parent
        self._database = _open(path, checked, postgres, standby)
        self.runs = Runs(self._database)
        self.clients = Clients(self._database)
        self.controls = Controls(self._database)
        self.scaling = ScalingStore(self._database)
        self.journal = Journal(self._database)
        self.evaluations = Evaluations(self._database)
        self.model_files = ModelFileReports(self._database)
        self.versions = Versions(self._database)
        self.publications = Publications(self._database)
        self.ledger = Ledger(self._database)
        self.transfers = Transfers(self._database)
        self.refusals = Refusals(self._database)

    def transaction(self) -> AbstractContextManager[None]:
        """Return a block whose changes are committed together; blocks may be nested."""
        return self._database.transaction()

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Commit all changes of the block together, or none if it raises.

        As part of a transaction under way, it is undone without the rest.
        """
        with self._database.lock, self._database.attempt():
            yield

    def after_commit(self, call: Callable[[], None]) -> None:
        """Call a function once the transaction under way is on disk; now, if there is none.

        What is kept in memory of stored rows changes here.
        """
        self._database.after_commit(call)

    def load_state(self) -> RunState:
        """Return the run's state, with the clients of journaled updates in `reported`."""
        state = self.runs.state()
        reported = GrowingSet([*state.reported, *self.journal.reporters(state.round)])
        return replace(state, reported=reported)

    @property
    def failing(self) -> bool:
        """Whether the last attempt to write failed."""
        return self._database.failures.failing

    @property
    def place(self) -> str:
        """The database's name for people."""
        return self._database.place

    @property
    def elsewhere(self) -> str:
        """What to do to begin another run, for people."""
        return self._database.elsewhere

    def damaged(self, what: str) -> ServerError:
        """Return the error for a database that must not be used any more, and what to do."""
        return self._database.damaged(what)

    @property
    def front_secret(self) -> str:
        """What a server shows that passes calls on to this one; empty if none may."""
        return self._database.front_secret

    def advertise(self, address: str) -> None:
        """Tell other servers of the run where this one listens, HOST:PORT; does not wait."""
        self._database.advertise(address)

    def flush(self) -> None:
        """Write the counts of bytes and refusals that wait in memory.

        Raises Deposed once another server has taken over, also if nothing waits.
        """
        self._database.verify()
        self.refusals.flush()
        self.ledger.flush()

    def close(self) -> None:
        """Write what waits in memory if the disk takes it, and close the database."""
        try:
            with suppress(CannotStore, Deposed):  # logged; only counts are lost, as by a kill
                self.flush()
        finally:
            self._database.close()


def _open(
    path: Path,
    checked: bool,
    postgres: PostgresAddress | None,
    standby: Callable[[Leader | None], None],
) -> Database:
    if postgres is None:
        return SqliteDatabase(path, checked)
    from featherfed.server.storage.postgres import PostgresDatabase  # needs psycopg

    return PostgresDatabase(postgres, path, standby)
