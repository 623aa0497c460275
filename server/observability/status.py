"""The status of a run, for people and progress bars."""

from __future__ import annotations

from collections.abc import Mapping

from featherfed.proto import federation_pb2 as pb
from featherfed.server.rounds.transitions import Phase, Policy, RunState
from featherfed.server.storage.store import Store


def describe(
    run: str, state: RunState, policy: Policy, store: Store, num_examples: Mapping[str, int]
) -> pb.StatusReply:
    """Return the run's status; `num_examples` by client."""
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
    for client, count in num_examples.items():
        client_state = _client_state(state, cohort, client)
        reply.clients.add(client=client, num_examples=count, state=client_state)
    return reply


def _client_state(state: RunState, cohort: frozenset[str], client: str) -> str:
    if client in state.lost:
        return "lost"
    if client in state.late:
        return "training"
    if state.phase is Phase.TRAINING and client in cohort:
        return "reported" if client in state.reported else "training"
    return "present"
