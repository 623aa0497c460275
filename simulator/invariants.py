"""What must hold in every simulated run, whatever happens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from featherfed.cli.check_run import checks_of_run
from featherfed.proto import federation_pb2 as pb
from featherfed.server.rounds.held_out import HeldOutScores
from featherfed.server.storage.store import Store
from featherfed.simulator.network import CallRecord
from featherfed.simulator.training import TASK


class Violation(Exception):
    """Something that must hold does not."""


Sums = dict[tuple[str, str], int]
"""(client, direction) -> bytes of messages."""


class Acknowledgements:
    """Nothing that was acknowledged is lost: each update stays in the journal."""

    def __init__(self) -> None:
        self._given: set[tuple[int, str]] = set()

    def check_reply(self, record: CallRecord, reply: bytes, store: Store) -> None:
        """Check and remember an acknowledgement as it leaves the server."""
        if pb.SubmitReply.FromString(reply).outcome in (pb.ACCEPTED, pb.DUPLICATE):
            round_ = pb.UpdateChunk.FromString(record.request).header.round
            self._given.add((round_, record.client))
            self.check_journal(store)

    def check_journal(self, store: Store) -> None:
        """Raise Violation if an acknowledged update is not in the journal."""
        journal = {
            (round_.round, client)
            for round_ in store.journal.rounds()
            for client in store.journal.reporters(round_.round)
        }
        if lost := sorted(self._given - journal):
            raise Violation(f"acknowledged updates are not in the journal: {lost}")

    def __contains__(self, update: tuple[int, str]) -> bool:
        """Whether the update of (round, client) was acknowledged."""
        return update in self._given

    def forget(self, store: Store) -> None:
        """Accept that a restored backup does not know what was acknowledged after it."""
        self._given = {
            (round_.round, client)
            for round_ in store.journal.rounds()
            for client in store.journal.reporters(round_.round)
        }


class Residuals:
    """What the codec lost is sent once: no residual is part of two updates that count."""

    def __init__(self) -> None:
        self._used: dict[tuple[str, bytes], int] = {}

    def check(
        self, client: str, round_: int, residual: bytes | None, accepted: Acknowledgements
    ) -> None:
        """Raise Violation if an accepted update of another round had this residual in it."""
        if residual is None:
            return
        before = self._used.get((client, residual), round_)
        if before != round_ and (before, client) in accepted:
            raise Violation(f"{client} sends one residual in rounds {before} and {round_}")
        self._used[client, residual] = round_


class Versions:
    """All who hold a version hold the same bits."""

    def __init__(self) -> None:
        self._digests: dict[int, bytes] = {}
        self._forgotten: set[tuple[int, bytes]] = set()

    def check(self, holder: str, version: int, digest: bytes) -> None:
        """Raise Violation if this version was seen with another digest."""
        known = self._digests.setdefault(version, digest)
        if known != digest:
            raise Violation(
                f"{holder} holds version {version} as {digest.hex()[:16]}, others as "
                f"{known.hex()[:16]}"
            )

    def restored(self, store: Store) -> None:
        """Accept that a restored server knows these versions, and makes later ones anew."""
        self._forgotten |= set(self._digests.items())
        self._digests = {version.version: version.digest for version in store.versions.all()}

    def forgot(self, version: int, digest: bytes) -> bool:
        """Whether a server knew this version before it was restored, and does not now."""
        return (version, digest) in self._forgotten and self._digests.get(version) != digest


def check_start(client: str, task: pb.Train, digest: bytes) -> None:
    """Raise Violation if a client trains from other weights than its task names.

    Masked weights have another digest.
    """
    if not task.sparsity and digest != task.digest:
        raise Violation(
            f"{client} trains round {task.round} from {digest.hex()[:16]}, not from version "
            f"{task.version}, {task.digest.hex()[:16]}"
        )


def check_store(store: Store) -> None:
    """Raise Violation if `featherfed check` finds anything wrong."""
    for name, find in checks_of_run(store):
        if wrong := list(find()):
            raise Violation(f"{name}: {'; '.join(wrong)}")


def check_scores(store: Store) -> None:
    """Raise Violation unless versions have the scores of what clients sent, each client once."""
    held_out = HeldOutScores(TASK)
    last = store.versions.newest().version
    for version in store.versions.all():
        number = version.version
        sums = store.journal.sums_before(number + 1)
        if number == last:
            sums = [one for one in store.evaluations.of(number).values() if one]
        if (version.scores or {}) != held_out.scores(sums):
            raise Violation(f"version {number} has not the scores that its clients found")


def check_digests(store: Store, wanted: list[bytes]) -> None:
    """Raise Violation if the versions are not those of the undisturbed run."""
    found = [version.digest for version in store.versions.all()]
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        if one != other:
            raise Violation(f"version {number} is not that of the undisturbed run")


def ledger_sums(store: Store) -> Sums:
    """Return the ledger's message bytes by client and direction."""
    sums: Sums = defaultdict(int)
    for entry in store.ledger.entries():
        if not entry.kind.startswith("release"):
            sums[entry.client, entry.direction] += entry.message_bytes
    return sums


def check_ledger(
    store: Store, records: Iterable[CallRecord], base: Sums, lost_since: dict[int, float]
) -> None:
    """Raise Violation if the ledger is not what the network carried since `base` was counted.

    `lost_since`: server's life -> time since when control bytes may have been in memory as it died.
    """
    least: Sums = defaultdict(int, base)
    most: Sums = defaultdict(int, base)
    for record in records:
        if record.method.endswith("/GetStatus"):
            continue
        for direction, size in (("uplink", record.up), ("downlink", record.down)):
            most[record.client, direction] += size
            if _must_be_counted(record, lost_since):
                least[record.client, direction] += size
    sums = ledger_sums(store)
    for key in sorted(sums.keys() | most.keys()):
        if not least[key] <= sums.get(key, 0) <= most[key]:
            raise Violation(
                f"the ledger has {sums.get(key, 0)} bytes of {key}, the network carried "
                f"{least[key]} to {most[key]}"
            )


def _must_be_counted(record: CallRecord, lost_since: dict[int, float]) -> bool:
    """Whether a call's bytes are in the ledger for certain; docs/design.md says which are not."""
    return record.ended == "ok" and record.ended_at < lost_since.get(record.server, float("inf"))
