"""The run in SQLite (WAL): every change of state is one transaction, durable when it returns."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, fields, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.files import lock_file
from featherfed.compression.importance import Allocation
from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import CannotStore, ServerError
from featherfed.server.rounds.transitions import Phase, RunState
from featherfed.server.storage.failures import Trouble, damaged, of_people
from featherfed.server.storage.records import (
    Entry,
    Facts,
    Member,
    Norms,
    Piece,
    Sent,
    Totals,
    Update,
    Version,
)
from featherfed.server.storage.refusals import Refusals
from featherfed.server.storage.unwritten_bytes import Counts, Tally

_SCHEMA = Path(__file__).with_name("schema.sql")


class Store:
    """The database of one run; safe to use from several threads.

    What cannot be written now raises CannotStore and has changed nothing; a database that turns out
    to be damaged raises ServerError.
    """

    def __init__(self, path: Path) -> None:
        """Open the database, or begin one; raise ServerError if it is in use, damaged or locked."""
        self.folder = path.parent
        self._lock = threading.RLock()
        self._tally = Tally()
        self._path = path
        self.trouble = Trouble(f"the run database {path}")
        self._alone = _only_server(path)
        try:
            self._db = _open(path)
        except sqlite3.Error as error:
            self._alone.close()
            meaning = of_people(error, path)
            if isinstance(meaning, ServerError):
                raise meaning from error
            raise ServerError(
                f"cannot use the run database {path}: {error}; make room or allow writing there"
            ) from error
        except ServerError:
            self._alone.close()
            raise
        self._refusals = Refusals(self._run, self.transaction)

    def close(self) -> None:
        """Write what was counted, and close the database."""
        with self._lock:
            try:
                self.write_counts()
            finally:
                self._db.close()
                self._alone.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes inside happen together or not at all; may be nested."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            self._run("BEGIN IMMEDIATE")
            counts = self._tally.take()
            try:
                yield
                self._write(counts)
                self._run("COMMIT")  # a full disk may show only here
            except BaseException:
                self._tally.add(counts)
                if self._db.in_transaction:  # after some errors SQLite has gone back by itself
                    self._db.execute("ROLLBACK")
                raise
            self.trouble.worked()

    def _run(self, sql: str, *values: Any) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                meaning = of_people(error, self._path)
                if isinstance(meaning, CannotStore):
                    self.trouble.failed(error)
                if meaning is error:
                    raise
                raise meaning from error

    # ---- the run ----

    def create_run(
        self, name: str, fingerprint: str, started: float, secret: int, state: RunState
    ) -> None:
        """Write the run's only row."""
        self._run(
            "INSERT INTO run VALUES (1, ?, ?, ?, ?, ?)",
            name, fingerprint, started, secret, _dump(state),
        )  # fmt: skip

    def secret(self) -> int:
        """Return the seed of cohorts and slots."""
        return int(self._run("SELECT secret FROM run")[0][0])

    def run(self) -> tuple[str, str, float] | None:
        """Return name, fingerprint and start of the run, or None if there is none yet."""
        rows = self._run("SELECT name, fingerprint, started FROM run")
        return tuple(rows[0]) if rows else None

    def load_state(self) -> RunState:
        """Return the state last saved, with those whose updates were journaled since."""
        state = _load(self._run("SELECT state FROM run")[0][0])
        rows = self._run("SELECT client FROM updates WHERE round = ?", state.round)
        return replace(state, reported=state.reported | {row[0] for row in rows})

    def save_state(self, state: RunState) -> None:
        """Replace the state; who has reported is in the journal."""
        self._run("UPDATE run SET state = ?", _dump(state))

    def save_plan(self, plan: pb.Plan, *, seeded: bool) -> None:
        """Keep what clients are told; `seeded`: version 0 is what the plan's seed gives."""
        blob = plan.SerializeToString(deterministic=True)
        self._run("INSERT OR IGNORE INTO plan VALUES (1, ?, ?)", blob, seeded)

    def plan(self) -> tuple[pb.Plan, bool] | None:
        """Return what clients are told and whether version 0 is seeded; None in an old database."""
        rows = self._run("SELECT plan, seeded FROM plan")
        return (pb.Plan.FromString(rows[0][0]), bool(rows[0][1])) if rows else None

    def bump(self, name: str) -> None:
        """Count one more of what no other table remembers."""
        self._run(
            "INSERT INTO counts VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1",
            name,
        )

    # ---- clients ----

    def save_client(self, client: str, member: Member, runtime: str, now: float) -> None:
        """Write a client; a known one gets the new session."""
        self._run(
            "INSERT INTO clients VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (client) DO UPDATE SET "
            "session = excluded.session, num_examples = excluded.num_examples, "
            "stages = excluded.stages, runtime = excluded.runtime",
            client, member.session, member.num_examples, " ".join(sorted(member.stages)),
            runtime, now,
        )  # fmt: skip

    def clients(self) -> dict[str, Member]:
        """Return all clients by name, in name order."""
        sql = "SELECT client, session, num_examples, stages FROM clients ORDER BY client"
        return {row[0]: Member(row[1], row[2], frozenset(row[3].split())) for row in self._run(sql)}

    def runtimes(self) -> dict[str, str]:
        """Return what each client trained with when it last joined."""
        return {row[0]: row[1] for row in self._run("SELECT client, runtime FROM clients")}

    # ---- rounds, updates, versions ----

    def open_round(self, round_: int, now: float, cohort: Sequence[str]) -> None:
        """Write that a round began."""
        cohort_json = json.dumps(sorted(cohort))
        self._run("INSERT INTO rounds VALUES (?, ?, NULL, ?)", round_, now, cohort_json)

    def close_round(self, round_: int, now: float, cohort: Sequence[str]) -> None:
        """Write that a round ended, and with which cohort."""
        cohort_json = json.dumps(sorted(cohort))
        self._run(
            "UPDATE rounds SET closed = ?, cohort = ? WHERE round = ?", now, cohort_json, round_
        )

    def rounds(self) -> list[Any]:
        """Return the rows of all rounds in order."""
        return self._run("SELECT * FROM rounds ORDER BY round")

    def add_update(self, update: Update) -> None:
        """Journal an update; raise sqlite3.IntegrityError if the client has one in this round."""
        marks = ", ".join("?" * len(fields(update)))
        self._run(f"INSERT INTO updates VALUES ({marks})", *asdict(update).values())

    def has_update(self, round_: int, client: str) -> bool:
        """Whether the client's update of this round was journaled."""
        sql = "SELECT 1 FROM updates WHERE round = ? AND client = ?"
        return bool(self._run(sql, round_, client))

    def updates(self, round_: int) -> Iterator[Update]:
        """Yield a round's updates in order of slots, one payload in memory at a time."""
        names = self._run("SELECT client FROM updates WHERE round = ? ORDER BY slot", round_)
        for (client,) in names:
            rows = self._run("SELECT * FROM updates WHERE round = ? AND client = ?", round_, client)
            yield Update(*rows[0])

    def weights(self, round_: int) -> dict[str, int]:
        """Return the numbers of examples of a round's updates by client, in order of slots."""
        sql = "SELECT client, num_examples FROM updates WHERE round = ? ORDER BY slot"
        return {row[0]: row[1] for row in self._run(sql, round_)}

    def add_norms(self, round_: int, client: str, norms: Norms) -> None:
        """Write the norms of an update."""
        self._run("INSERT INTO norms VALUES (?, ?, ?, ?, ?)", round_, client, *astuple(norms))

    def norms(self, round_: int) -> dict[str, Norms]:
        """Return the norms of a round's updates by client, in order of names."""
        sql = "SELECT client, whole, trainable, state FROM norms WHERE round = ? ORDER BY client"
        return {row[0]: Norms(*row[1:]) for row in self._run(sql, round_)}

    def participation(self, until: int) -> int:
        """Return in how many of the rounds up to `until` the most eager client took part."""
        sql = "SELECT COUNT(*) AS n FROM updates WHERE round <= ? GROUP BY client"
        return int(self._run(f"SELECT MAX(n) FROM ({sql})", until)[0][0])

    def add_facts(self, round_: int, facts: Facts) -> None:
        """Write what a round's aggregation did."""
        values = {**asdict(facts), "left_out": json.dumps(facts.left_out)}.values()
        self._run("INSERT INTO aggregations VALUES (?, ?, ?, ?, ?, ?)", round_, *values)

    def facts(self, round_: int) -> Facts:
        """Return what a round's aggregation did, nothing for one that is not known."""
        sql = "SELECT clip, clipped, left_out, next_clip, epsilon FROM aggregations WHERE round = ?"
        for clip, clipped, left_out, next_clip, epsilon in self._run(sql, round_):
            return Facts(clip, clipped, tuple(json.loads(left_out)), next_clip, epsilon)
        return Facts()

    def grade_update(
        self, round_: int, client: str, accuracy: float | None, prediction: str | None
    ) -> None:
        """Write what a client's model is worth, and drop its payload: it is in the version now."""
        self._run(
            "UPDATE updates SET payload = NULL, accuracy = ?, prediction = ? "
            "WHERE round = ? AND client = ?",
            accuracy, prediction, round_, client,
        )  # fmt: skip

    def add_refusal(self, round_: int, client: str, reason: str, detail: str, now: float) -> bool:
        """Count that something of a client was refused; return whether it is the first of its kind.

        It is on disk within a second; a disk that is full makes it wait, never fail.
        """
        return self._refusals.add(round_, client, reason, detail, now)

    def add_outlier(self, round_: int, client: str, detail: str, now: float) -> None:
        """Count that an update is an outlier, in the transaction that makes its version."""
        self._refusals.add_at_once(round_, client, pb.Reason.Name(pb.OUTLIER), detail, now)

    def refusals(self) -> list[Any]:
        """Return a row per round, client and reason, in order of the first of each."""
        self._refusals.flush()
        return self._run("SELECT * FROM refused ORDER BY first, round, client, reason")

    def add_version(
        self, version: Version, weights: Sequence[Array], residual: Sequence[Array] | None
    ) -> None:
        """Write a version and make it the newest."""
        allocation = version.allocation
        self._run(
            "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            version.version, version.digest, version.kind, version.codec, version.sparsity,
            version.payload, allocation and allocation.levels, allocation and allocation.profile,
            version.loss, version.accuracy,
        )  # fmt: skip
        self._run(
            "INSERT OR REPLACE INTO model VALUES (1, ?, ?, ?)",
            version.version,
            _to_blob(weights),
            None if residual is None else _to_blob(residual),
        )

    def version(self, number: int) -> Version:
        """Return one version; raise IndexError if there is none of this number."""
        return _version(self._run("SELECT * FROM versions WHERE version = ?", number)[0])

    def newest(self) -> Version:
        """Return the newest version."""
        rows = self._run("SELECT * FROM versions ORDER BY version DESC LIMIT 1")
        return _version(rows[0])

    def versions(self, after: int = -1) -> list[Version]:
        """Return the versions above `after`, in order, with their payloads."""
        rows = self._run("SELECT * FROM versions WHERE version > ? ORDER BY version", after)
        return [_version(row) for row in rows]

    def model(self, manifest: Manifest) -> tuple[list[Array], list[Array] | None]:
        """Return the newest version's weights and the server's residual."""
        weights, residual = self._run("SELECT weights, residual FROM model")[0]
        return (
            _from_blob(weights, manifest),
            None if residual is None else _from_blob(residual, manifest),
        )

    # ---- transfers under way ----

    def add_piece(self, piece: Piece) -> None:
        """Keep a piece of an update, unless it does not continue what there is of that update."""
        kept, _ = self.kept_bytes(piece.client, piece.round, piece.digest, piece.size)
        if piece.data and piece.at == kept:
            self._run("INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?)", *asdict(piece).values())

    def kept_bytes(self, client: str, round_: int, digest: bytes, size: int) -> tuple[int, int]:
        """Return how much there is of an update: bytes of payload, and of what carried them."""
        rows = self._run(
            "SELECT coalesce(sum(length(data)), 0), coalesce(sum(message_bytes), 0) FROM uploads "
            "WHERE client = ? AND round = ? AND digest = ? AND size = ?",
            client, round_, digest, size,
        )  # fmt: skip
        return tuple(rows[0])

    def kept_payload(self, client: str) -> bytes:
        """Return what there is of a client's update."""
        rows = self._run("SELECT data FROM uploads WHERE client = ? ORDER BY at", client)
        return b"".join(row[0] for row in rows)

    def drop_pieces(self, client: str) -> None:
        """Forget what there is of a client's update."""
        self._run("DELETE FROM uploads WHERE client = ?", client)

    def drop_transfers(self) -> None:
        """Forget what belongs to a round that is over."""
        self._run("DELETE FROM uploads")
        self._run("DELETE FROM downloads")

    def sent(self, like: Sent) -> Sent:
        """Return how much was sent of the same download, nothing if there was none."""
        rows = self._run(
            "SELECT payload_bytes, message_bytes FROM downloads "
            "WHERE client = ? AND kind = ? AND round = ? AND digest = ?",
            like.client, like.kind, like.round, like.digest,
        )  # fmt: skip
        return replace(like, **dict(rows[0])) if rows else like

    def _save_sent(self, sent: Sent) -> None:
        """Write how much was sent; a client has one download of a kind at a time."""
        self._run(
            "INSERT OR REPLACE INTO downloads VALUES (?, ?, ?, ?, ?, ?)", *asdict(sent).values()
        )

    # ---- ledger ----

    def count(self, *entries: Entry) -> None:
        """Add bytes really sent to the ledger.

        Those of control are written with the next transaction, and never wait for the disk; a crash
        before that forgets them.
        """
        at_once = [entry for entry in entries if entry.kind != "control"]
        for entry in entries:
            if entry.kind == "control":
                self._tally.add(_counts(entry))
        if at_once:
            with self.transaction():
                for entry in at_once:
                    self._write(_counts(entry))

    def count_sent(self, sent: Sent | None, *entries: Entry) -> None:
        """Count bytes of a download and, if given, remember how much of it was sent."""
        with self.transaction():
            self.count(*entries)
            if sent is not None:
                self._save_sent(sent)

    def write_counts(self) -> None:
        """Write what `count` and `add_refusal` have not yet written."""
        self._refusals.flush()
        if self._tally:
            with self.transaction():
                pass

    def _write(self, counts: Counts) -> None:
        for key, sizes in counts.items():
            self._run(
                "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (round, client, direction, kind) DO UPDATE SET "
                "payload_bytes = payload_bytes + excluded.payload_bytes, "
                "message_bytes = message_bytes + excluded.message_bytes",
                *key, *sizes,
            )  # fmt: skip

    def message_bytes(self, direction: str) -> int:
        """Return all message bytes in one direction so far."""
        with self._lock:  # nothing is being moved from the tally to the ledger meanwhile
            sql = "SELECT COALESCE(SUM(message_bytes), 0) FROM ledger WHERE direction = ?"
            return int(self._run(sql, direction)[0][0]) + self._tally.message_bytes(direction)

    def totals(self) -> Totals:
        """Return what was counted since the run began."""
        with suppress(CannotStore):  # a disk that is full is one of the things to be told
            self.write_counts()
        ledger = self._run(
            "SELECT direction, kind, SUM(payload_bytes), SUM(message_bytes) FROM ledger "
            "GROUP BY direction, kind"
        )
        duplicates = self._run("SELECT value FROM counts WHERE name = 'duplicate_updates'")
        refusals = self._run("SELECT reason, SUM(count) FROM refused GROUP BY reason")
        return Totals(
            {(row[0], row[1]): (row[2], row[3]) for row in ledger},
            self._run("SELECT COUNT(*) FROM updates")[0][0],
            duplicates[0][0] if duplicates else 0,
            {row[0]: row[1] for row in refusals},
            self.newest().loss,
            self.trouble.failing,
        )

    def has_transfer(self, round_: int, client: str) -> bool:
        """Whether the client has downloaded a model in this round."""
        sql = (
            "SELECT 1 FROM ledger WHERE round = ? AND client = ? "
            "AND direction = 'downlink' AND kind = 'transfer'"
        )
        return bool(self._run(sql, round_, client))

    def downloaded(self, round_: int) -> set[str]:
        """Return the clients that have downloaded a model in this round."""
        sql = (
            "SELECT client FROM ledger WHERE round = ? "
            "AND direction = 'downlink' AND kind = 'transfer'"
        )
        return {row[0] for row in self._run(sql, round_)}

    def ledger(self) -> list[Entry]:
        """Return the whole ledger."""
        self.write_counts()
        rows = self._run("SELECT * FROM ledger ORDER BY round, client, direction, kind")
        return [Entry(*row) for row in rows]


def _only_server(path: Path) -> IO[bytes]:
    try:
        return lock_file(path.with_suffix(".lock"))
    except BlockingIOError as error:
        raise ServerError(f"another server uses {path.parent}; stop it first") from error
    except OSError as error:
        raise ServerError(
            f"cannot write to the output directory {path.parent}: {error.strerror}; allow writing "
            "there, or choose another output directory in the run file"
        ) from error


def _open(path: Path) -> sqlite3.Connection:
    """Return the database, checked, of today's schema and writable."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        found = [row[0] for row in db.execute("PRAGMA quick_check(3)")]
        if found != ["ok"]:
            raise damaged(path, "; ".join(" ".join(text.split()) for text in found))
        db.executescript(_SCHEMA.read_text("utf-8"))
        db.execute("BEGIN IMMEDIATE")  # says now whether it can be written
        _move_old_refusals(db)
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def _move_old_refusals(db: sqlite3.Connection) -> None:
    """Take over the table of runs before refusals were counted: a row for each of them."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'refusals'").fetchall():
        return
    db.execute(
        "INSERT INTO refused SELECT round, client, reason, COUNT(*), detail, MIN(at), MAX(at) "
        "FROM refusals GROUP BY round, client, reason"
    )
    db.execute("DROP TABLE refusals")


def _counts(entry: Entry) -> Counts:
    key = entry.round, entry.client, entry.direction, entry.kind
    return {key: (entry.payload_bytes, entry.message_bytes)}


def _version(row: Any) -> Version:
    fields = dict(row)
    levels, profile = fields.pop("levels"), fields.pop("profile")
    allocation = None if levels is None else Allocation(levels, profile)
    return Version(**fields, allocation=allocation)


def _dump(state: RunState) -> str:
    fields = {**vars(state), "reported": []}
    for name in ("lost", "late"):
        fields[name] = sorted(fields[name])
    return json.dumps(fields)


def _load(text: str) -> RunState:
    fields = json.loads(text)
    for name in ("reported", "lost", "late"):
        fields[name] = frozenset(fields.get(name, ()))
    cohort = tuple(fields["cohort"])
    return RunState(**{**fields, "phase": Phase(fields["phase"]), "cohort": cohort})


def _to_blob(tensors: Sequence[Array]) -> bytes:
    return b"".join(np.ascontiguousarray(t, "<f4").tobytes() for t in tensors)


def _from_blob(blob: bytes, manifest: Manifest) -> list[Array]:
    flat = np.frombuffer(blob, "<f4").astype(np.float32)
    ends = np.cumsum([spec.size for spec in manifest])
    return [
        flat[end - spec.size : end].reshape(spec.shape)
        for end, spec in zip(ends, manifest, strict=True)
    ]
