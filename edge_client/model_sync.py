"""Bring the model that a client holds up to a version that the server names."""

from __future__ import annotations

import logging

from featherfed.compression.errors import WireError
from featherfed.compression.exchange.manifest import Manifest
from featherfed.edge_client.errors import ClientError, StaleTask
from featherfed.edge_client.state import ClientState, HeldModel
from featherfed.edge_client.transport import DIGEST_PREFIX_BYTES, Transport
from featherfed.edge_client.versions import DigestMismatch, apply_links
from featherfed.proto import federation_pb2 as pb

log = logging.getLogger(__name__)


class ModelSync:
    """Returns a named model version, downloading only what the client does not hold."""

    def __init__(
        self,
        transport: Transport,
        session: int,
        manifest: Manifest,
        seed: int,
        state: ClientState,
    ) -> None:
        self._transport = transport
        self._session = session
        self._manifest = manifest
        self._seed = seed
        self._state = state
        self._missed = b""
        """The digest that the server named last, and then sent another model."""

    def catch_up(self, version: int, digest: bytes) -> HeldModel:
        """Return the version of this digest; it is the held one from now on.

        Raises StaleTask if the server sends another one, as after a restore of a backup, and
        ClientError if it does so again, or sends one that cannot be used.
        """
        held = self._state.held()
        if held is None or (held.version, held.digest) != (version, digest):
            try:
                held = self._fetch(version, held)
            except (DigestMismatch, WireError) as error:
                log.warning("%s; fetching the whole model", error)
                held = self._fetch_whole(version)
            if (held.version, held.digest) != (version, digest):
                text = f"the server sent another model than version {version}"
                if digest == self._missed:
                    raise ClientError(text)
                self._missed = digest
                raise StaleTask(text)
            self._state.save_held(held)
        return held

    def _fetch_whole(self, version: int) -> HeldModel:
        try:
            return self._fetch(version, None)
        except (DigestMismatch, WireError) as error:
            raise ClientError(f"the server's model cannot be used: {error}") from error

    def _fetch(self, version: int, held: HeldModel | None) -> HeldModel:
        request = pb.FetchModelRequest(session=self._session, version=version)
        if held is not None:
            request.have_version = held.version
            request.have_digest = held.digest[:DIGEST_PREFIX_BYTES]
        links, data = self._transport.fetch_model(request)
        return apply_links(self._manifest, self._seed, held, links, data)
