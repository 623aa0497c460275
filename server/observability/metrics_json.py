"""`metrics.json` from the store; schema in docs/metrics.md."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from featherfed.compression.exchange.manifest import Manifest
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.records import Entry, Update
from featherfed.server.storage.store import Store

SCHEMA = 1

Bytes = dict[str, int]

_SIDES = ("uplink", "downlink")

_OF_RELEASES = {"release": "transfer", "release_retry": "retry"}
"""Ledger kinds of devices that only infer, and what a training client's would be called."""


def collect(store: Store, settings: Settings, manifest: Manifest, facts: dict[str, Any]) -> Any:
    """Return what is known of the run so far, without `final`; `facts` are top-level additions."""
    run = store.run()
    assert run is not None, "a store holds a run from its first moment"
    entries = store.ledger()
    ledger = _by_round_and_client(entries)
    refused = defaultdict(list)
    for row in store.refusals():
        refused[row["round"]].append({k: row[k] for k in ("client", "reason", "count", "detail")})
    wasted: dict[int, int] = defaultdict(int)
    for entry in entries:
        wasted[entry.round] += entry.message_bytes * entry.kind.endswith("retry")
    newest, runtimes = store.newest().version, store.runtimes()
    rounds = []
    for row in store.rounds():
        number = row["round"]
        if number > newest:
            continue
        version = store.version(number)
        updates = sorted(store.updates(number), key=lambda update: update.client)
        facts_of = store.facts(number)
        counted = [_told(u, settings) for u in updates if u.client not in facts_of.left_out]
        rounds.append({
            "round": number,
            "accuracy": version.accuracy,
            "loss": version.loss,
            "seconds": _seconds(row["opened"], row["closed"]),
            "version": number,
            "digest": version.digest.hex(),
            "broadcast": version.kind,
            "sparsity": version.sparsity,
            "clip": facts_of.clip,
            "clipped": facts_of.clipped,
            **({} if facts_of.epsilon is None else {"epsilon": facts_of.epsilon}),
            "clients": [_client(u, runtimes[u.client], ledger[number]) for u in counted],
            "missing": sorted(set(json.loads(row["cohort"])) - {u.client for u in updates}),
            "refused": refused[number],
            "wasted_bytes": wasted[number],
        })  # fmt: skip
    return {
        "schema": SCHEMA,
        "run": run[0],
        "started": datetime.fromtimestamp(run[2], UTC).isoformat(timespec="seconds"),
        "dataset": settings.evaluation.dataset,
        "num_parameters": manifest.num_values,
        "float32_bytes": 4 * manifest.num_values,
        "settings": _flat(settings),
        **facts,
        "rounds": rounds,
        "releases": _releases(entries),
    }


def final(
    store: Store, settings: Settings, sparsity: float, models: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the `final` part: the last version, its delivery, totals and the exported models."""
    last = store.newest()
    rows = store.rounds()
    entries = [entry for entry in store.ledger() if entry.kind not in _OF_RELEASES]
    delivery = _by_round_and_client(entries)[settings.rounds + 1]
    return {
        "accuracy": last.accuracy,
        "loss": last.loss,
        "digest": last.digest.hex(),
        "version": last.version,
        "sparsity": sparsity,
        "seconds": _seconds(rows[0]["opened"], rows[-1]["closed"]),
        "clients": [
            {"client": client, "downlink": sides["downlink"]} for client, sides in delivery.items()
        ],
        "totals": {side: _sum(e for e in entries if e.direction == side) for side in _SIDES},
        "models": models,
        **({"privacy": _privacy(store, settings)} if settings.private else {}),
    }


def _privacy(store: Store, settings: Settings) -> dict[str, Any]:
    asked = settings.privacy
    return {
        "epsilon": store.facts(settings.rounds).epsilon,
        "delta": asked.delta,
        "noise_multiplier": asked.noise_multiplier,
        "rounds": store.participation(settings.rounds),
    }


def _told(update: Update, settings: Settings) -> Update:
    """Return what may be told of an update: its losses have no noise in a private run."""
    return replace(update, train_loss=None, train_accuracy=None) if settings.private else update


def _seconds(begin: float, end: float) -> float:
    """Return a duration; a clock that was put back before a restart makes none negative."""
    return max(0.0, round(end - begin, 3))


def _client(update: Update, runtime: str, ledger: dict[str, dict[str, Bytes]]) -> dict[str, Any]:
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


def _releases(entries: list[Entry]) -> list[dict[str, Any]]:
    """Return what each device that only infers has sent and got, in order of names."""
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


def _by_round_and_client(entries: list[Entry]) -> dict[int, dict[str, dict[str, Bytes]]]:
    groups: dict[int, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
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


def _sum(entries: Iterable[Entry]) -> Bytes:
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
