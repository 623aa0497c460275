"""One quota for every method of the port, before anything else is done for a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from featherfed.server.access.limits import Peer, Quotas
from featherfed.server.errors import Busy, Refused
from featherfed.server.rpc.context import Context
from featherfed.server.rpc.handlers import Requests, call_of, handler_of

RefuseNamed = Callable[[Context, str, Refused], Awaitable[None]]
"""Ends a call of a name, empty if nobody knows it, with a refusal."""


class QuotaInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses calls of a peer that makes too many, or has too many open."""

    def __init__(
        self,
        quotas: Quotas,
        peer_of: Callable[[Context], Peer],
        service: str,
        refuse: RefuseNamed,
    ) -> None:
        """`service`: the full name of the one whose calls are not watched apart."""
        self._quotas = quotas
        self._peer_of = peer_of
        self._prefix = f"/{service}/"
        self._refuse = refuse
        self._made: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Return the call's handler with the quota before it."""
        handler = await continuation(details)
        if handler is None:
            return None
        known, made = self._made.get(details.method, (None, None))
        if known is not handler:  # the next one gives the same handler for nearly every call
            made = self._counting(handler, details)
            self._made[details.method] = handler, made
        return made

    def _counting(self, handler: Any, details: Any) -> Any:
        call, watch = call_of(handler), not details.method.startswith(self._prefix)

        async def counted(requests: Requests, context: Context) -> Any:
            peer = self._peer_of(context)
            try:
                with self._quotas.call(peer, watch):
                    return await call(requests, context)
            except Busy as error:
                busy = error.with_traceback(None)
            await self._refuse(context, peer.key if peer.proven else "", busy)

        return handler_of(counted, handler)
