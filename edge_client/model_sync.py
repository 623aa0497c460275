"""Bring the model that a client holds up to a version that the server names."""

from __future__ import annotations

import logging

from featherfed.compression.errors import WireError
from featherfed.compression.exchange.manifest import Manifest
from featherfed.edge_client.answers import ComputingTime, check_links, max_answer
from featherfed.edge_client.errors import ClientError, StaleTask, TooLarge
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
        self._limit = max_answer(manifest)
        self._missed = b""
        """The digest that the server named last, and then sent another model."""

    def catch_up(self, version: int, digest: bytes) -> HeldModel:
        """Return the version of this digest; it is the held one from now on.

        Raises StaleTask if the server sends another one, as after a restore of a backup, and
        ClientError if it does so again, or sends one that cannot be used.
        """
        held = self._state.held()
        if held is None or (held.version, held.digest) != (version, digest):
            held = self._fetch_from(version, held) or self._fetch_whole(version)
            if (held.version, held.digest) != (version, digest):
                text = f"the server sent another model than version {version}"
                if digest == self._missed:
                    raise ClientError(text)
                self._missed = digest
                raise StaleTask(text)
            self._state.save_held(held)
        return held

    def _fetch_from(self, version: int, held: HeldModel | None) -> HeldModel | None:
        """Return the version by the links from `held`, None if they cannot be used."""
        try:
            return self._fetch(version, held)
        except (DigestMismatch, WireError, TooLarge) as error:
            log.warning("%s; fetching the whole model", error)
            return None

    def _fetch_whole(self, version: int) -> HeldModel:
        try:
            return self._fetch(version, None)
        except (DigestMismatch, WireError, TooLarge) as error:
            raise ClientError(f"the server's model cannot be used: {error}") from error

    def _fetch(self, version: int, held: HeldModel | None) -> HeldModel:
        request = pb.FetchModelRequest(session=self._session, version=version)
        if held is not None:
            request.have_version = held.version
            request.have_digest = held.digest[:DIGEST_PREFIX_BYTES]
        links, data = self._transport.fetch_model(request, self._limit)
        computing = ComputingTime()
        begin = None if held is None else held.version
        check_links(self._manifest, begin, version, links, computing)
        return apply_links(self._manifest, self._seed, held, links, data, computing)
