"""Model downloads: which route a client gets, and the round that its bytes count in."""

from __future__ import annotations

from typing import NamedTuple

from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import weights_digest
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.storage.records import DownloadKey
from featherfed.server.transfers.downloads import Download
from featherfed.server.transfers.routes import Route, Router


class Delivery(NamedTuple):
    """What a client downloads, and the count of its bytes."""

    route: Route
    download: Download


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
        """Begin the smallest download of the newest version; raise Refused for another version."""
        run, stages = self._run, self._members.record(client).stages
        with run.lock:
            route, round_ = self._router.route(request, stages), run.ledger_round
            again = run.store.ledger.has_model(round_, client)
            key = DownloadKey(client, "transfer", round_, route.digest)
            download = Download(run.store, key, route.data, request.offset, again)
            return Delivery(route, download)
