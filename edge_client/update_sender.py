"""Send an update and act on the server's answer."""

from __future__ import annotations

import hashlib
import logging

from featherfed.edge_client.errors import UNKNOWN_HERE, ClientError, Rejected
from featherfed.edge_client.state import ClientState, PendingUpdate
from featherfed.edge_client.transport import CHUNK_BYTES, DIGEST_PREFIX_BYTES, Transport
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.peer_text import printable

log = logging.getLogger(__name__)

_KEPT_FOR_LATER = {pb.LATE, pb.NOT_SELECTED, pb.WRONG_VERSION}
"""Refusals of a valid update that came at the wrong time: all of it goes into the residual."""


class UpdateSender:
    """Sends an update and settles the residual by the server's answer."""

    def __init__(self, transport: Transport, session: int, state: ClientState) -> None:
        self._transport = transport
        self._session = session
        self._state = state

    def send(self, pending: PendingUpdate, again: bool = False) -> None:
        """Send an update; `again` if the server may already have some or all of it.

        Raises Rejected if the server refuses the update itself, ClientError if its answer is not
        understood: the update is then kept.
        """
        header = pb.UpdateHeader(
            session=self._session,
            round=pending.round,
            version=pending.version,
            num_examples=pending.num_examples,
            size=len(pending.payload),
            train_loss=pending.loss,
            before=pending.before,
            after=pending.after,
        )
        if len(pending.payload) > CHUNK_BYTES:
            header.digest = hashlib.sha256(pending.payload).digest()[:DIGEST_PREFIX_BYTES]
            if again:
                header.offset = self._transport.resume_update(header)
        reply = self._transport.submit_update(header, pending.payload)
        detail = printable(reply.detail)
        if reply.outcome in (pb.ACCEPTED, pb.DUPLICATE):
            log.info("round %d: sent %d bytes", pending.round, len(pending.payload))
            self._state.settle(pending.residual)
        elif reply.reason in _KEPT_FOR_LATER:
            log.warning("round %d: not counted: %s", pending.round, detail)
            self.keep_for_later(pending)
        elif reply.outcome != pb.REFUSED:
            raise ClientError(
                f"round {pending.round}: the server's answer {reply.outcome} is {UNKNOWN_HERE}"
            )
        else:
            self._state.settle(self._state.residual())
            raise Rejected(f"round {pending.round}: update refused: {detail}")

    def keep_for_later(self, pending: PendingUpdate) -> None:
        """Add all of an update that does not count to the residual, if the codec keeps one."""
        self._state.settle(pending.target)
