"""Consistency checks of a run's database; each yields a text for everything that is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from featherfed.compression.errors import WireError
from featherfed.compression.exchange.manifest import weights_digest
from featherfed.edge_client.plan import manifest_of
from featherfed.edge_client.state import HeldModel
from featherfed.edge_client.versions import DigestMismatch, apply_links
from featherfed.proto import federation_pb2 as pb
from featherfed.server.rounds.transitions import Phase
from featherfed.server.storage.store import Store
from featherfed.server.transfers.routes import seed_link, version_link

Find = Callable[[], Iterator[str]]
"""Yields a text for everything that is wrong."""


def checks_of_run(store: Store) -> list[tuple[str, Find]]:
    """Return the checks of a database that can be read, cheapest first, each with its name."""
    finds: list[tuple[str, Callable[[Store], Iterator[str]]]] = [
        ("versions without a gap, one for every round", _versions),
        ("the newest model's digest", _newest),
        ("every version recomputed from the first", _chain),
        ("the journal against rounds and cohorts", _journal),
        ("the journal against the ledger", _ledger),
        ("the journal against what was forwarded", _bundles),
    ]
    return [(name, partial(find, store)) for name, find in finds]


def _versions(store: Store) -> Iterator[str]:
    numbers = [version.version for version in store.versions.all()]
    state = store.load_state()
    made = state.round - (state.phase is not Phase.FINISHED)
    if numbers != list(range(made + 1)):
        yield f"versions {numbers}; round {state.round} ({state.phase}) needs 0 to {made}"
    rounds = [round_.round for round_ in store.journal.rounds()]
    begun = made + (state.phase in (Phase.TRAINING, Phase.AGGREGATING))
    if rounds != list(range(1, begun + 1)):
        yield f"rounds {rounds}; the run's state says that {begun} have begun"


def _newest(store: Store) -> Iterator[str]:
    known = store.runs.plan()
    if known is None:
        yield "no plan: serve the run once with this version of featherfed"
        return
    weights, _ = store.versions.model(manifest_of(known.plan))
    newest = store.versions.newest()
    if weights_digest(weights) != newest.digest:
        yield f"the stored weights are not version {newest.version} by its digest"


def _chain(store: Store) -> Iterator[str]:
    known = store.runs.plan()
    if known is None or not known.seeded:
        return  # the weights of a version 0 that was given are not kept
    plan, manifest = known.plan, manifest_of(known.plan)
    held: HeldModel | None = None
    for version in store.versions.all():
        allocation = held.allocation if held else None
        link = version_link(version, allocation) if held else seed_link(version)
        try:
            held = apply_links(manifest, plan.seed, held, [link], version.payload)
        except (DigestMismatch, WireError) as error:
            yield f"version {version.version} does not follow from the one before: {error}"
            return


def _journal(store: Store) -> Iterator[str]:
    state, newest = store.load_state(), store.versions.newest().version
    for round_ in store.journal.rounds():
        number = round_.round
        open_ = number == state.round and round_.closed is None
        cohort = set(state.cohort if open_ else round_.cohort)
        updates = list(store.journal.updates(number))
        if odd := sorted({u.client for u in updates} - cohort):
            yield f"round {number}: updates of {', '.join(odd)}, who are not in its cohort"
        if number <= newest and not updates:
            yield f"round {number} made a version of no update"
        if lost := [u.client for u in updates if number > newest and u.payload is None]:
            yield f"round {number}: no payload of {', '.join(lost)}, and no version yet"
        if number > newest and {u.client for u in updates} != set(state.reported):
            yield f"round {number}: the state knows other reports than the journal holds"


def _ledger(store: Store) -> Iterator[str]:
    counted = {
        (entry.round, entry.client): entry.payload_bytes
        for entry in store.ledger.entries()
        if (entry.direction, entry.kind) == ("uplink", "transfer")
    }
    journal = {
        (update.round, update.client): update.payload
        for round_ in store.journal.rounds()
        for update in store.journal.updates(round_.round)
    }
    for round_, client in sorted(journal.keys() - counted.keys()):
        yield f"round {round_}: the update of {client} is not in the ledger"
    for round_, client in sorted(counted.keys() - journal.keys()):
        yield f"round {round_}: the ledger has an update of {client}, the journal has none"
    for key in sorted(journal.keys() & counted.keys()):
        payload = journal[key]
        if payload is not None and len(payload) != counted[key]:
            yield f"round {key[0]}: {key[1]} sent {counted[key]} bytes, {len(payload)} are stored"


def _bundles(store: Store) -> Iterator[str]:
    for version in store.versions.after(0):
        if version.kind == "bundle":
            forwarded = Counter(p.slot for p in pb.Bundle.FromString(version.payload).parts)
            accepted = Counter(update.slot for update in store.journal.updates(version.version))
            if forwarded != accepted:
                yield (
                    f"version {version.version} averages the updates of slots "
                    f"{sorted(forwarded.elements())}, the journal has {sorted(accepted.elements())}"
                )
