"""The run's events as log lines: a text for people, and fields (`extra`) for JSON lines.

docs/observability.md lists the events and their fields.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from featherfed.compression.exchange.noise import MeanNoise
from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused
from featherfed.server.rounds.transitions import Phase, RunState
from featherfed.server.storage.records import JournaledUpdate, ModelVersion

logger = logging.getLogger(__name__)


def _log(level: int, event: str, text: str, *values: Any, **fields: Any) -> None:
    logger.log(level, text, *values, extra={"event": event, **fields})


def run_opened(run: str, state: RunState, version: int, again: bool) -> None:
    """Log that a server begins a run, or takes one up again."""
    verb = "goes on" if again else "begins"
    _log(
        logging.INFO, "run_opened", "run %s %s: %s, round %d, version %d",
        run, verb, state.phase, state.round, version,
        run=run, phase=str(state.phase), round=state.round, version=version,
    )  # fmt: skip


def rounds_raised(run: str, round_: int, rounds: int) -> None:
    """Log that a run has more rounds from now on, the first of them `round_`."""
    _log(
        logging.INFO, "rounds_raised",
        "run %s goes on to %d rounds, from round %d on; its clients join again",
        run, rounds, round_, run=run, round=round_, rounds=rounds,
    )  # fmt: skip


def rounds_kept(run: str, wanted: int, rounds: int) -> None:
    """Log that a run keeps its number of rounds, though fewer are wanted."""
    _log(
        logging.WARNING, "rounds_kept",
        "run %s keeps its %d rounds; %d are wanted, but a run file makes no run shorter. To end it "
        "early, set [evaluation] target, or end it on the live page",
        run, rounds, wanted, run=run, rounds=rounds, wanted=wanted,
    )  # fmt: skip


def still_ended(run: str, rounds: int, planned: int) -> None:
    """Log that a run stays as short as it was made."""
    _log(
        logging.WARNING, "still_ended",
        "run %s was ended early: it has %d rounds of %d; serve it with --rounds %d or more to go "
        "on",
        run, rounds, planned, planned + 1, run=run, rounds=rounds, planned=planned,
    )  # fmt: skip


def run_ended_early(run: str, rounds: int) -> None:
    """Log that whoever runs the server lets a run end with the rounds that have opened."""
    _log(
        logging.INFO, "run_ended_early", "run %s is to end after round %d", run, rounds,
        run=run, rounds=rounds,
    )  # fmt: skip


def paused(run: str, round_: int, paused: bool) -> None:
    """Log that no round opens any more, or that rounds open again."""
    text = "paused: no round opens until it is resumed" if paused else "resumed"
    _log(
        logging.INFO, "paused" if paused else "resumed", "run %s is %s", run, text,
        run=run, round=round_,
    )  # fmt: skip


def client_excluded(run: str, round_: int, client: str, excluded: bool) -> None:
    """Log that a client takes no part any more, or may take part again."""
    text = "is excluded" if excluded else "is included again"
    _log(
        logging.INFO, "client_excluded" if excluded else "client_included", "%s %s", client, text,
        run=run, round=round_, client=client,
    )  # fmt: skip


def target_still_reached(run: str, version: int, rounds: int) -> None:
    """Log that a run does not go on, since its target is reached."""
    _log(
        logging.WARNING, "target_still_reached",
        "run %s stays at its end, version %d of %d, since [evaluation] target is reached; set "
        "another target, or none, to go on",
        run, version, rounds, run=run, version=version, rounds=rounds,
    )  # fmt: skip


def run_restored(run: str, version: int, repeated: int | None) -> None:
    """Log that a run goes on from an older state; `repeated`: rounds that clients got before."""
    later = "nobody knows how many" if repeated is None else str(repeated)
    _log(
        logging.WARNING, "run_restored",
        "run %s goes on from version %d; versions published after that: %s. Its database is an "
        "older one, such as a backup, or the server died as it stored the last of them. Their "
        "rounds are repeated, updates acknowledged in them are lost, and clients go back to "
        "version %d by themselves",
        run, version, later, version,
        run=run, version=version, repeated=repeated,
    )  # fmt: skip


def client_joined(run: str, request: pb.JoinRequest, again: bool) -> None:
    """Log that a client joined."""
    runtime, examples = request.capabilities.runtime, request.data.num_examples
    _log(
        logging.INFO, "client_joined", "%s joined%s: %d examples, %s",
        request.client, " again" if again else "", examples, runtime or "unknown runtime",
        run=run, client=request.client, again=again, num_examples=examples, runtime=runtime,
    )  # fmt: skip


def refused(run: str, round_: int, client: str, refusal: Refused, first: bool) -> None:
    """Log a refusal, as a warning if it is the `first` of its round, client and reason."""
    reason = pb.Reason.Name(refusal.reason)
    visible = first and refusal.reason != pb.STORAGE  # which the store logs once
    _log(
        logging.WARNING if visible else logging.DEBUG, "refused", "round %d: refused %s: %s: %s",
        round_, client, reason, refusal.detail,
        run=run, round=round_, client=client, reason=reason, detail=refusal.detail,
    )  # fmt: skip


def update_accepted(run: str, update: JournaledUpdate, message_bytes: int) -> None:
    """Log that an update was written to the journal."""
    size = len(update.payload or b"")
    _log(
        logging.DEBUG, "update_accepted", "round %d: %s sent an update of %d bytes",
        update.round, update.client, size,
        run=run, round=update.round, client=update.client, codec=update.codec,
        payload_bytes=size, message_bytes=message_bytes, num_examples=update.num_examples,
    )  # fmt: skip


def update_duplicate(run: str, round_: int, client: str) -> None:
    """Log that an update arrived again."""
    _log(
        logging.DEBUG, "update_duplicate", "round %d: %s sent its update again", round_, client,
        run=run, round=round_, client=client,
    )  # fmt: skip


def waiting_for_clients(run: str, missing: int, minimum: int, join: str) -> None:
    """Log how many clients a round still needs to open; `join`: the command that joins one."""
    _log(
        logging.INFO, "waiting_for_clients",
        "waiting for %d more clients, %d of %d are here; join one: %s",
        missing, minimum - missing, minimum, join,
        run=run, missing=missing, minimum=minimum, join=join,
    )  # fmt: skip


def round_goes_on(
    run: str, round_: int, reported: int, wanted: int, deadline: float | None
) -> None:
    """Log how far a round is that takes long; `deadline`: seconds until a quorum closes it."""
    left = f"; it closes in {deadline:.0f} s at the latest" if deadline else ""
    _log(
        logging.INFO, "round_goes_on", "round %d: %d of %d clients have reported%s",
        round_, reported, wanted, left, run=run, round=round_, reported=reported, wanted=wanted,
    )  # fmt: skip


def state_changed(run: str, before: RunState, after: RunState) -> None:
    """Log a change of phase, or that more clients were asked into the round."""
    number, fields = after.round, {"run": run, "round": after.round}
    if (before.phase, after.phase) == (Phase.GATHERING, Phase.TRAINING):
        _log(
            logging.INFO, "round_opened", "round %d: open, %d clients", number, len(after.cohort),
            **fields, clients=len(after.cohort), required=after.required,
        )  # fmt: skip
    if before.phase is Phase.TRAINING and len(after.cohort) > len(before.cohort):
        helpers = sorted(set(after.cohort) - set(before.cohort))
        _log(
            logging.INFO, "helpers_asked", "round %d: %d more clients are asked to help",
            number, len(helpers), **fields, helpers=helpers,
        )  # fmt: skip
    if (before.phase, after.phase) == (Phase.TRAINING, Phase.AGGREGATING):
        missing = sorted(set(after.cohort) - after.reported)
        some = ", ".join([*missing[:5], *(["..."] if missing[5:] else [])])
        _log(
            logging.INFO, "round_closed", "round %d: closed, %d of %d clients reported%s",
            number, len(after.reported), len(after.cohort),
            f"; missing: {some}" if missing else "",
            **fields, reported=len(after.reported), missing=missing, lost=sorted(after.lost),
            seconds=round(after.since - before.since, 3),
        )  # fmt: skip
    if after.phase is Phase.FINISHED and before.phase is not Phase.FINISHED:
        _log(logging.INFO, "run_finished", "run %s: done after %d rounds", run, number, **fields)


def round_discarded(run: str, round_: int, reason: str) -> None:
    """Log that a round's model is not adopted; the next version is what the round started from."""
    _log(
        logging.WARNING, "round_discarded",
        "round %d: discarded, its model cannot be used: %s; version %d is what it started from",
        round_, reason, round_,
        run=run, round=round_, reason=reason,
    )  # fmt: skip


def version_made(run: str, version: ModelVersion, noise: MeanNoise | None) -> None:
    """Log that a round was aggregated into a model version; `noise`: what is in it, if known."""
    digest, size = version.digest.hex(), len(version.payload)
    ratio = None if noise is None else noise.ratio
    _log(
        logging.INFO, "version_made", "version %d (%s): %d bytes as a %s%s",
        version.version, digest[:16], size, version.kind,
        f"; noise: {ratio:.{3 if ratio < 1 else 1}f} times the update" if ratio else "",
        run=run, version=version.version, digest=digest, scores=version.scores,
        payload_bytes=size, kind=version.kind, noise=ratio,
    )  # fmt: skip


def bytes_raised(
    run: str, round_: int, preset: str, factor: float, noise: float, most: float
) -> None:
    """Log that clients will send more than a preset's usual bytes, to keep its promise."""
    _log(
        logging.INFO, "bytes_raised",
        "after round %d clients send %.2f times the usual bytes of %r: the noise was %.3g of the "
        "weights, and %.3g keeps what it promises",
        round_, factor, preset, noise, most,
        run=run, round=round_, preset=preset, factor=factor, weight_noise=noise, limit=most,
    )  # fmt: skip


def version_evaluated(run: str, version: int, scores: Mapping[str, float], clients: int) -> None:
    """Log how good a version is on the held-out examples of clients."""
    text = ", ".join(f"{name} {value:.4g}" for name, value in scores.items()) or "no finite figure"
    _log(
        logging.INFO, "version_evaluated", "version %d: %s, by %d clients", version, text, clients,
        run=run, version=version, scores=dict(scores), clients=clients,
    )  # fmt: skip


def int8_failed(run: str, why: str) -> None:
    """Log that the final model has no int8 file, so that clients cannot evaluate one."""
    _log(
        logging.WARNING, "int8_failed", "run %s: no int8 file for clients to evaluate: %s", run,
        why, run=run, why=why,
    )  # fmt: skip


def scaling_fixed(run: str, clients: int) -> None:
    """Log that means and deviations of the clients' features are fixed for the whole run."""
    _log(
        logging.INFO, "scaling_fixed",
        "run %s: features are standardised by the statistics of %d clients", run, clients,
        run=run, clients=clients,
    )  # fmt: skip
