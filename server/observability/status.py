"""The status of a run, for people and progress bars."""

from __future__ import annotations

from collections.abc import Iterable

from featherfed.proto import federation_pb2 as pb
from featherfed.server.rounds.transitions import Phase, Policy, RunState
from featherfed.server.storage.store import Store


def describe(
    run: str, state: RunState, policy: Policy, store: Store, clients: Iterable[str]
) -> pb.StatusReply:
    """Return the run's status; `clients`: all that have joined.

    Whoever reaches the server may ask, other clients too: it says how many are in which state, not
    who, in an order that says nothing.
    """
    newest = store.versions.newest()
    reply = pb.StatusReply(
        run=run,
        phase=state.phase,
        round=state.round,
        rounds=policy.rounds,
        version=newest.version,
        wanted_clients=policy.minimum,
    )
    if newest.accuracy is not None:
        reply.accuracy = newest.accuracy
    reply.discarded_rounds = len(store.journal.discarded())
    reply.uplink_bytes = store.ledger.message_bytes("uplink")
    reply.downlink_bytes = store.ledger.message_bytes("downlink")
    cohort = frozenset(state.cohort)
    for client_state in sorted(_client_state(state, cohort, client) for client in clients):
        reply.clients.add(state=client_state)
    return reply


def _client_state(state: RunState, cohort: frozenset[str], client: str) -> str:
    if client in state.lost:
        return "lost"
    if client in state.late:
        return "training"
    if state.phase is Phase.TRAINING and client in cohort:
        return "reported" if client in state.reported else "training"
    return "present"
