"""The status of a run, for people and progress bars."""

from __future__ import annotations

from featherfed.proto import federation_pb2 as pb
from featherfed.server.rounds.transitions import Phase, Policy, RunState
from featherfed.server.storage.store import Store


def describe(
    run: str, state: RunState, policy: Policy, store: Store, clients: int, metric: str
) -> pb.StatusReply:
    """Return the run's status; `clients`: how many have joined; `metric`: the task's leading one.

    Whoever reaches the server may ask, other clients too: it says how many are in which state, not
    who. It is as large and takes as long with many clients and rounds as with few.
    """
    newest = store.versions.newest_scores()
    reply = pb.StatusReply(
        run=run,
        phase=state.phase,
        round=state.round,
        rounds=policy.rounds,
        version=newest.version,
        wanted_clients=policy.minimum,
        metric=metric,
    )
    evaluated = store.versions.newest_evaluated()
    if evaluated is not None and evaluated.scores and metric in evaluated.scores:
        reply.score = evaluated.scores[metric]
    reply.discarded_rounds = len(store.journal.discarded())
    reply.uplink_bytes = store.ledger.message_bytes("uplink")
    reply.downlink_bytes = store.ledger.message_bytes("downlink")
    reply.client_counts.CopyFrom(_counts(state, clients))
    return reply


def _counts(state: RunState, clients: int) -> pb.ClientCounts:
    """Return how many clients are in which state; each counts once."""
    away = state.lost | state.late
    asked = frozenset(state.cohort if state.phase is Phase.TRAINING else ()) - away
    reported = asked & state.reported
    return pb.ClientCounts(
        present=clients - len(away) - len(asked),
        training=len(asked) - len(reported),
        reported=len(reported),
        lost=len(state.lost),
        late=len(away) - len(state.lost),
    )
