"""The content of metrics.json, read from the store; docs/metrics.md has the schema."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from featherfed.compression.exchange.manifest import Manifest
from featherfed.proto.peer_text import printable
from featherfed.server.errors import MAX_DETAIL
from featherfed.server.rounds.held_out import HeldOutScores
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.ledger_totals import Totals
from featherfed.server.storage.records import (
    JournaledUpdate,
    LedgerEntry,
    RoundRecord,
    Scores,
    TransferredBytes,
)
from featherfed.server.storage.store import Store
from featherfed.tasks.metrics import is_larger_better
from featherfed.tasks.task import Task

SCHEMA = 2

Bytes = dict[str, int]

_SIDES = ("uplink", "downlink")

_OF_TRAINING = ("transfer", "control", "retry")
"""Ledger kinds of training clients."""

_OF_RELEASES = {"release": "transfer", "release_retry": "retry"}
"""Ledger kind of an inference-only device -> the same kind of a training client."""


def collect(
    store: Store, settings: Settings, task: Task, manifest: Manifest, extra: dict[str, Any]
) -> Any:
    """Return the run's metrics so far, without `final`; `extra`: more top-level entries."""
    return {
        **head(store, settings, task, manifest, extra),
        "rounds": list(rounds(store, settings, task)),
        **tail(store),
    }


def head(
    store: Store, settings: Settings, task: Task, manifest: Manifest, extra: dict[str, Any]
) -> dict[str, Any]:
    """Return what stays the same while a server runs; `extra`: more entries."""
    run = store.runs.record()
    assert run is not None, "a store holds a run from its first moment"
    return {
        "schema": SCHEMA,
        "run": run.name,
        "started": datetime.fromtimestamp(run.started, UTC).isoformat(timespec="seconds"),
        "dataset": settings.evaluation.dataset,
        "task": task.as_dict(),
        "metric": {
            "name": task.leading,
            "larger_is_better": is_larger_better(task.leading),
        },
        "evaluated_by": settings.evaluation.evaluated_by,
        "num_parameters": manifest.num_values,
        "float32_bytes": 4 * manifest.sent.num_values,
        "settings": _flat(settings, task),
        **extra,
    }


def rounds(store: Store, settings: Settings, task: Task) -> Iterator[dict[str, Any]]:
    """Yield the entries of the rounds that gave the versions so far, one at a time."""
    for number in range(1, store.versions.newest_scores().version + 1):
        yield round_entry(store, settings, task, number)


def tail(store: Store) -> dict[str, Any]:
    """Return what changes with every round and is no larger for many of them."""
    return {
        "releases": _releases(store.ledger.device_totals()),
        **({"repeated_rounds": repeated} if (repeated := store.publications.repeated) else {}),
    }


def round_entry(store: Store, settings: Settings, task: Task, number: int) -> dict[str, Any]:
    """Return the entry of a round that gave a version; what it costs depends on that round only."""
    round_, version = store.journal.round(number), store.versions.get(number)
    entries = store.ledger.of_round(number)
    ledger = _by_client(entries)
    runtimes = store.clients.runtimes(number)
    updates = sorted(store.journal.updates(number), key=lambda update: update.client)
    # In a private run they would tell how long a client trained, and so on how much.
    arrivals = {} if settings.private else store.journal.arrivals(number)
    aggregation = store.journal.aggregation(number)
    counted = [u for u in updates if u.client not in aggregation.left_out]
    discarded = store.journal.discarded()
    spent = {} if aggregation.epsilon is None else {"epsilon": aggregation.epsilon}
    why = {"discarded": discarded[number]} if number in discarded else {}
    calibrates = store.runs.total_rounds(settings.rounds).is_calibration(number)
    kind = {"calibration": True} if calibrates else {}
    return {
        "round": number,
        "scores": _scores(version.scores, task),
        "spread": _spread(store, task, number),
        "opened": datetime.fromtimestamp(round_.opened, UTC).isoformat(timespec="milliseconds"),
        "seconds": _seconds(round_),
        "asked": len(round_.cohort),
        "version": number,
        "digest": version.digest.hex(),
        "broadcast": version.kind,
        "sparsity": version.sparsity,
        "clip": aggregation.clip,
        "clipped": aggregation.clipped,
        **spent,
        **why,
        **kind,
        **_noise(store, number, [ledger[update.client]["uplink"] for update in counted]),
        "clients": [
            {
                **_client(_public(update, settings), task, runtimes[update.client], ledger),
                **_arrived(arrivals.get(update.client), round_),
            }
            for update in counted
        ],
        "missing": sorted(set(round_.cohort) - {update.client for update in updates}),
        "refused": [
            {
                "client": printable(refusal.client, MAX_DETAIL),  # older servers stored them as is
                "reason": refusal.reason,
                "count": refusal.count,
                "detail": printable(refusal.detail),
            }
            for refusal in store.refusals.of_round(number)
        ],
        "wasted_bytes": sum(e.message_bytes for e in entries if e.kind.endswith("retry")),
    }


def _noise(store: Store, number: int, uplinks: list[Bytes]) -> dict[str, float]:
    """Return the noise in a round's mean and the bytes for a noise of 1, nothing if unknown.

    `uplinks`: of the clients whose updates counted. Noise falls as bytes grow, in proportion.
    """
    noise, found = store.journal.noise(number), store.journal.weight_noise(number)
    if noise is None:
        return {}
    if not noise.noise:
        return {"noise": 0.0}
    mean = sum(uplink["payload_bytes"] for uplink in uplinks) / len(uplinks)
    told = {"noise": noise.ratio, "bytes_for_noise_1": round(mean * noise.ratio)}
    if found is None:
        return told
    return {**told, "weight_noise": found, "byte_factor": store.journal.byte_factor(number)}


def final(
    store: Store,
    settings: Settings,
    task: Task,
    sparsity: float,
    models: list[dict[str, Any]],
    version: int | None = None,
) -> dict[str, Any]:
    """Return the `final` part: the last version, its delivery, totals and the exported models.

    `version`: that of the models, from 1, if it is not the newest.
    """
    last = store.versions.newest() if version is None else store.versions.get(version)
    closed = store.journal.round(last.version).closed
    whole = replace(store.journal.round(1), closed=closed)
    delivery = _by_client(store.ledger.of_round(last.version + 1))
    reports = store.evaluations.of(last.version)
    totals = {key: size for key, size in store.ledger.totals().items() if key[1] in _OF_TRAINING}
    return {
        "scores": _scores(last.scores, task),
        "digest": last.digest.hex(),
        "version": last.version,
        "sparsity": sparsity,
        "seconds": _seconds(whole),
        "clients": [
            {
                "client": client,
                "downlink": sides["downlink"],
                **({"scores": _own(reports[client], task)} if client in reports else {}),
            }
            for client, sides in delivery.items()
        ],
        "totals": _sides(totals),
        "models": models,
        **({"privacy": _privacy(store, settings, last.version)} if settings.private else {}),
    }


def _privacy(store: Store, settings: Settings, rounds: int) -> dict[str, Any]:
    privacy = settings.privacy
    return {
        "epsilon": store.journal.aggregation(rounds).epsilon,
        "delta": privacy.delta,
        "noise_multiplier": privacy.noise_multiplier,
        "rounds": store.journal.most_rounds(rounds) + store.publications.repeated,
    }


def _public(update: JournaledUpdate, settings: Settings) -> JournaledUpdate:
    """Return an update without its loss in a private run: it has no noise."""
    return replace(update, train_loss=None) if settings.private else update


def _scores(scores: Scores | None, task: Task) -> dict[str, float | None]:
    """Return loss and metrics by name, null while they are unknown."""
    known = scores or {}
    return {name: known.get(name) for name in ("loss", *task.metrics)}


def _own(sums: bytes, task: Task) -> dict[str, float] | None:
    """Return the scores of a client's sums, None if it sent none."""
    return HeldOutScores(task).scores([sums]) or None


def _spread(store: Store, task: Task, version: int) -> list[float] | None:
    """Return the lowest and highest leading metric of a version on clients' held-out examples."""
    held_out = HeldOutScores(task)
    each = [held_out.scores([sums]) for sums in store.journal.sums_before(version + 1)]
    each += [held_out.scores([sums]) for sums in store.evaluations.of(version).values() if sums]
    found = [scores[task.leading] for scores in each if scores]
    return [min(found), max(found)] if found else None


def _seconds(round_: RoundRecord) -> float:
    """Return a round's duration, 0 if the clock was put back before a restart."""
    assert round_.closed is not None, "a round with a version is closed"
    return max(0.0, round(round_.closed - round_.opened, 3))


def _arrived(at: float | None, round_: RoundRecord) -> dict[str, float]:
    """Return when an update came in, in seconds after its round opened; nothing if unknown."""
    return {} if at is None else {"arrived": max(0.0, round(at - round_.opened, 3))}


def _client(
    update: JournaledUpdate, task: Task, runtime: str, ledger: dict[str, dict[str, Bytes]]
) -> dict[str, Any]:
    return {
        "client": update.client,
        "num_examples": update.num_examples,
        "scores": _scores(update.scores, task) if update.scores else None,
        "before": _own(update.before, task),
        "after": _own(update.after, task),
        "train_loss": update.train_loss,
        "codec": update.codec,
        "runtime": runtime,
        **ledger[update.client],
    }


def _releases(devices: dict[str, Totals]) -> list[dict[str, Any]]:
    """Return the bytes of each inference-only device."""
    return [
        {
            "device": device,
            **_sides({(side, _OF_RELEASES[kind]): size for (side, kind), size in totals.items()}),
        }
        for device, totals in devices.items()
    ]


def _by_client(entries: list[LedgerEntry]) -> dict[str, dict[str, Bytes]]:
    """Return the bytes of a round's training clients by client, direction and kind."""
    clients: dict[str, Totals] = defaultdict(dict)
    for entry in entries:
        if entry.kind in _OF_TRAINING:
            size = TransferredBytes(entry.payload_bytes, entry.message_bytes)
            clients[entry.client][entry.direction, entry.kind] = size
    return {client: _sides(totals) for client, totals in clients.items()}


def _sides(totals: Totals) -> dict[str, Bytes]:
    """Return the bytes by direction, as metrics.json names their kinds."""
    nothing = TransferredBytes()
    return {
        side: {
            "payload_bytes": totals.get((side, "transfer"), nothing).payload,
            "message_bytes": totals.get((side, "transfer"), nothing).message,
            "control_bytes": totals.get((side, "control"), nothing).message,
            "retry_bytes": totals.get((side, "retry"), nothing).message,
        }
        for side in _SIDES
    }


def _flat(settings: Settings, task: Task) -> dict[str, Any]:
    """Return the settings that say what the run was, without where it listened."""
    s = settings
    return {
        "model": s.model.name,
        "rounds": s.rounds,
        "seed": s.seed,
        **s.training.model_dump(),
        "loss": task.loss_text,
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
