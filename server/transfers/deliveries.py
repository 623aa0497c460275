"""Model downloads: which route a client gets, and the round that its bytes count in."""

from __future__ import annotations

from typing import NamedTuple

from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import weights_digest
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.transfers.routes import Route, Router


class Delivery(NamedTuple):
    """What a client downloads, and the round that its bytes count in.

    `again`: the client has already downloaded a whole model in this round.
    """

    route: Route
    round: int
    again: bool


class Deliveries:
    """Chooses what to send to clients that ask for the newest model version."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._run = coordinator.run
        self._members = coordinator.members
        store, manifest = coordinator.store, coordinator.manifest
        seed_digest = weights_digest(initial_weights(manifest, coordinator.plan.seed))
        seeded = seed_digest == store.versions.get(0).digest
        self._router = Router(store.versions, manifest, seeded=seeded)

    def deliver(self, client: str, request: pb.FetchModelRequest) -> Delivery:
        """Return the smallest route to the newest version; raise Refused for any other version."""
        run = self._run
        with run.lock:
            route = self._router.route(request, self._members.record(client).stages)
            again = run.store.ledger.has_model(run.ledger_round, client)
            return Delivery(route, run.ledger_round, again)
