"""The content of metrics.json, read from the store; docs/metrics.md has the schema."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from featherfed.compression.exchange.manifest import Manifest
from featherfed.proto.peer_text import printable
from featherfed.server.errors import MAX_DETAIL
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.records import JournaledUpdate, LedgerEntry, RoundRecord
from featherfed.server.storage.store import Store

SCHEMA = 1

Bytes = dict[str, int]

_SIDES = ("uplink", "downlink")

_OF_RELEASES = {"release": "transfer", "release_retry": "retry"}
"""Ledger kind of an inference-only device -> the same kind of a training client."""


def collect(store: Store, settings: Settings, manifest: Manifest, extra: dict[str, Any]) -> Any:
    """Return the run's metrics so far, without `final`; `extra`: more top-level entries."""
    run = store.runs.record()
    assert run is not None, "a store holds a run from its first moment"
    entries = store.ledger.entries()
    newest = store.versions.newest().version
    return {
        "schema": SCHEMA,
        "run": run.name,
        "started": datetime.fromtimestamp(run.started, UTC).isoformat(timespec="seconds"),
        "dataset": settings.evaluation.dataset,
        "num_parameters": manifest.num_values,
        "float32_bytes": 4 * manifest.num_values,
        "settings": _flat(settings),
        **extra,
        "rounds": _rounds(store, settings, entries, newest),
        "releases": _releases(entries),
        **({"repeated_rounds": repeated} if (repeated := store.publications.repeated) else {}),
    }


def _rounds(
    store: Store, settings: Settings, entries: list[LedgerEntry], newest: int
) -> list[dict[str, Any]]:
    """Return the rounds that gave the versions up to `newest`."""
    ledger = _by_round_and_client(entries)
    wasted: dict[int, int] = defaultdict(int)
    for entry in entries:
        wasted[entry.round] += entry.message_bytes * entry.kind.endswith("retry")
    refused: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for refusal in store.refusals.all():
        refused[refusal.round].append({
            "client": printable(refusal.client, MAX_DETAIL),  # older servers stored them as is
            "reason": refusal.reason,
            "count": refusal.count,
            "detail": printable(refusal.detail),
        })  # fmt: skip
    discarded = store.journal.discarded()
    runtimes = {name: record.runtime for name, record in store.clients.all().items()}
    rounds = []
    for round_ in store.journal.rounds():
        number = round_.round
        if number > newest:
            continue
        version = store.versions.get(number)
        updates = sorted(store.journal.updates(number), key=lambda update: update.client)
        aggregation = store.journal.aggregation(number)
        counted = [u for u in updates if u.client not in aggregation.left_out]
        spent = {} if aggregation.epsilon is None else {"epsilon": aggregation.epsilon}
        why = {"discarded": discarded[number]} if number in discarded else {}
        rounds.append({
            "round": number,
            "accuracy": version.accuracy,
            "loss": version.loss,
            "seconds": _seconds(round_),
            "version": number,
            "digest": version.digest.hex(),
            "broadcast": version.kind,
            "sparsity": version.sparsity,
            "clip": aggregation.clip,
            "clipped": aggregation.clipped,
            **spent,
            **why,
            "clients": [
                _client(_public(update, settings), runtimes[update.client], ledger[number])
                for update in counted
            ],
            "missing": sorted(set(round_.cohort) - {update.client for update in updates}),
            "refused": refused[number],
            "wasted_bytes": wasted[number],
        })  # fmt: skip
    return rounds


def final(
    store: Store, settings: Settings, sparsity: float, models: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the `final` part: the last version, its delivery, totals and the exported models."""
    last = store.versions.newest()
    rounds = store.journal.rounds()
    whole = replace(rounds[0], closed=rounds[-1].closed)
    entries = [entry for entry in store.ledger.entries() if entry.kind not in _OF_RELEASES]
    delivery = _by_round_and_client(entries)[settings.rounds + 1]
    return {
        "accuracy": last.accuracy,
        "loss": last.loss,
        "digest": last.digest.hex(),
        "version": last.version,
        "sparsity": sparsity,
        "seconds": _seconds(whole),
        "clients": [
            {"client": client, "downlink": sides["downlink"]} for client, sides in delivery.items()
        ],
        "totals": {side: _sum(e for e in entries if e.direction == side) for side in _SIDES},
        "models": models,
        **({"privacy": _privacy(store, settings)} if settings.private else {}),
    }


def _privacy(store: Store, settings: Settings) -> dict[str, Any]:
    privacy = settings.privacy
    return {
        "epsilon": store.journal.aggregation(settings.rounds).epsilon,
        "delta": privacy.delta,
        "noise_multiplier": privacy.noise_multiplier,
        "rounds": store.journal.most_rounds(settings.rounds) + store.publications.repeated,
    }


def _public(update: JournaledUpdate, settings: Settings) -> JournaledUpdate:
    """Return an update without its losses in a private run: they have no noise."""
    return replace(update, train_loss=None, train_accuracy=None) if settings.private else update


def _seconds(round_: RoundRecord) -> float:
    """Return a round's duration, 0 if the clock was put back before a restart."""
    assert round_.closed is not None, "a round with a version is closed"
    return max(0.0, round(round_.closed - round_.opened, 3))


def _client(
    update: JournaledUpdate, runtime: str, ledger: dict[str, dict[str, Bytes]]
) -> dict[str, Any]:
    return {
        "client": update.client,
        "num_examples": update.num_examples,
        "accuracy": update.accuracy,
        "train_loss": update.train_loss,
        "train_accuracy": update.train_accuracy,
        "codec": update.codec,
        "runtime": runtime,
        **ledger[update.client],
    }


def _releases(entries: list[LedgerEntry]) -> list[dict[str, Any]]:
    """Return the bytes of each inference-only device, in order of names."""
    of_device = defaultdict(list)
    for entry in entries:
        if entry.kind in _OF_RELEASES:
            of_device[entry.client].append(replace(entry, kind=_OF_RELEASES[entry.kind]))
    return [
        {
            "device": device,
            **{side: _sum(e for e in of_device[device] if e.direction == side) for side in _SIDES},
        }
        for device in sorted(of_device)
    ]


def _by_round_and_client(entries: list[LedgerEntry]) -> dict[int, dict[str, dict[str, Bytes]]]:
    groups: dict[int, dict[str, list[LedgerEntry]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        if entry.kind in _OF_RELEASES:
            continue
        groups[entry.round][entry.client].append(entry)
    return defaultdict(
        dict,
        {
            number: {
                client: {side: _sum(e for e in of_client if e.direction == side) for side in _SIDES}
                for client, of_client in clients.items()
            }
            for number, clients in groups.items()
        },
    )


def _sum(entries: Iterable[LedgerEntry]) -> Bytes:
    """Return the bytes of training clients' entries by kind."""
    total = {"payload_bytes": 0, "message_bytes": 0, "control_bytes": 0, "retry_bytes": 0}
    for entry in entries:
        if entry.kind == "transfer":
            total["payload_bytes"] += entry.payload_bytes
            total["message_bytes"] += entry.message_bytes
        else:
            total[f"{entry.kind}_bytes"] += entry.message_bytes
    return total


def _flat(settings: Settings) -> dict[str, Any]:
    """Return the settings that say what the run was, without where it listened."""
    s = settings
    return {
        "model": s.model.name,
        "rounds": s.rounds,
        "seed": s.seed,
        **s.training.model_dump(),
        **s.compression.model_dump(),
        "optimize": s.optimization.method,
        **({"final_sparsity": s.optimization.final_sparsity} if s.prunes else {}),
        "minimum_clients": s.clients.minimum,
        "fraction": s.clients.fraction,
        "quorum": s.clients.quorum,
        "deadline": s.clients.deadline,
        "aggregation": s.rule.name,
        **({"byzantine": s.rule.byzantine} if s.rule.is_robust else {}),
        **({"noise_multiplier": s.privacy.noise_multiplier} if s.private else {}),
        **s.notes,
    }
