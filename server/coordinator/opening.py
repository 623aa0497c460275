"""Creating a run in the store, or checking that the run found there can be continued."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import Manifest, weights_digest
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.extending import extend
from featherfed.server.coordinator.restoring import notice_restore
from featherfed.server.errors import ServerError
from featherfed.server.rounds.total import TotalRounds
from featherfed.server.rounds.transitions import RunState
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.records import ModelVersion, RunRecord, StoredPlan
from featherfed.server.storage.store import Store


def open_run(
    settings: Settings,
    store: Store,
    plan: pb.Plan,
    manifest: Manifest,
    first_weights: Sequence[Array] | None,
    secret: int | None,
    now: float,
) -> TotalRounds:
    """Create the run that `settings` describe unless `store` has it, and name it in `plan.run`.

    What a run began with stays: `plan.report` is set to what its clients send. Its number of rounds
    may be raised (extending.py): return it, and set `plan.rounds` to it.

    `first_weights`: version 0, if it is not what the plan's seed gives. `secret`: seed of cohorts
    and slots, random if None. Raises ServerError if the store has another run, a model that is not
    the newest version by its digest, or a private run of which nobody knows what it published.
    """
    model = hashlib.sha256(plan.model_json.encode() + manifest.digest).hexdigest()
    seeded = first_weights is None
    stored = store.runs.record()
    if stored is None:
        # Each round spends privacy, so a private run holds none that does not train.
        calibrates = manifest.calibrates and not settings.private
        rounds = TotalRounds(settings.rounds, calibrates=calibrates)
        plan.last_round = rounds.last
        fingerprint = f"{settings.fingerprint} {model}"
        plan.run = f"{settings.name}-{secrets.token_hex(4)}"
        record = RunRecord(plan.run, fingerprint, now)
        weights = first_weights or initial_weights(manifest, plan.seed)
        version = ModelVersion(0, weights_digest(weights), "delta", "", 0.0, b"")
        with store.transaction():
            seed = secrets.randbits(63) if secret is None else secret
            store.runs.create(record, seed, RunState(since=now))
            store.versions.add(version, weights, None)
            store.runs.save_plan(StoredPlan(plan, seeded))
            store.runs.save_settings(settings.as_text())
            store.publications.set_repeated(0)
            store.publications.write_file(plan.run)
        return rounds
    if stored.fingerprint not in _fingerprints(
        settings, store.runs.total_rounds(settings.rounds), model
    ):
        raise ServerError(
            f"{store.place} holds run {stored.name!r} with other settings; {store.elsewhere}, "
            "restore the settings, or delete that to start anew"
        )
    plan.run, known = stored.name, store.runs.plan()
    plan.report = known.plan.report if known else ""
    _check_model(store, manifest)
    store.runs.save_plan(StoredPlan(plan, seeded))  # databases of older versions have none
    notice_restore(settings, store, plan.run)
    rounds = extend(settings, store, plan.run, now)
    plan.rounds, plan.last_round = rounds.now, rounds.last
    with store.transaction():
        store.runs.save_settings(settings.with_rounds(rounds).as_text())
    return rounds


def _fingerprints(settings: Settings, rounds: TotalRounds, model: str) -> list[str]:
    """Return the fingerprints of runs that these settings may go on with."""
    begun = settings.model_copy(update={"rounds": rounds.first})
    return [f"{begun.fingerprint} {model}"]


def _check_model(store: Store, manifest: Manifest) -> None:
    weights, _ = store.versions.model(manifest)
    newest = store.versions.newest()
    if weights_digest(weights) != newest.digest:
        raise store.damaged(f"the model is not version {newest.version} by its digest")
