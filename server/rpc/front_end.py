"""A gRPC server without a run of its own: it passes each call on to the server that leads."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from featherfed.proto import federation_pb2 as pb
from featherfed.server.rpc.context import Context
from featherfed.server.rpc.forwarded import PEER_KEY, SECRET_KEY, is_forwarded
from featherfed.server.rpc.server import OPTIONS, cannot_listen
from featherfed.server.rpc.unknown_methods import create_grpc_server
from featherfed.server.storage.postgres_address import Leader

_SERVICES = (
    pb.DESCRIPTOR.services_by_name["Federation"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
)
CONNECTIONS = 8
"""Connections to the leader, each of which carries MAX_CALLS_PER_CONNECTION at most."""
_CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),  # or all channels share one connection
    ("grpc.max_receive_message_length", -1),  # the leader is trusted
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]
_NOBODY = "no server leads the run now; try again later"
_OF_THE_CONNECTION = {"user-agent"}
"""Metadata that gRPC makes anew."""


class FrontEnd:
    """Passes calls on as bytes, in both directions, with their metadata, deadlines and statuses.

    All methods belong to one event loop.
    """

    def __init__(self, max_calls: int) -> None:
        """Serve nobody yet; `max_calls`: most calls that are open at a time."""
        self._leader: Leader | None = None
        self._channels: list[grpc.aio.Channel] = []
        self._turn = itertools.count()
        self._server = create_grpc_server(options=OPTIONS, maximum_concurrent_rpcs=max_calls)
        for service in _SERVICES:
            handlers = {
                method.name: grpc.stream_stream_rpc_method_handler(
                    self._passing_on(f"/{service.full_name}/{method.name}")
                )
                for method in service.methods
            }
            self._server.add_registered_method_handlers(service.full_name, handlers)
            generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
            self._server.add_generic_rpc_handlers((generic,))

    async def start(self, address: str) -> int:
        """Listen; return the port. Raises CannotListen."""
        try:
            port = int(self._server.add_insecure_port(address))
        except RuntimeError as error:
            raise cannot_listen(address) from error
        await self._server.start()
        return port

    async def stop(self) -> None:
        """End all calls, and give the port back."""
        await self._server.stop(None)
        await self.follow(None)

    async def follow(self, leader: Leader | None) -> None:
        """Pass calls on to this server from now on; None: there is none."""
        if leader == self._leader:
            return
        old, self._leader, self._channels = self._channels, leader, []
        if leader is not None:
            self._channels = [
                grpc.aio.insecure_channel(leader.address, _CHANNEL) for _ in range(CONNECTIONS)
            ]
        for channel in old:
            await channel.close(None)

    def _passing_on(self, method: str) -> Callable[..., Any]:
        async def pass_on(requests: Any, context: Context) -> None:
            given, leader = context.invocation_metadata() or (), self._leader
            # Passed on once before: the leader has become a front end, and nobody leads yet.
            if leader is None or is_forwarded(given):
                await context.abort(grpc.StatusCode.UNAVAILABLE, _NOBODY)
                return
            metadata = [(key, value) for key, value in given if key not in _OF_THE_CONNECTION]
            metadata += [(SECRET_KEY, leader.secret), (PEER_KEY, context.peer())]
            channel = self._channels[next(self._turn) % CONNECTIONS]
            call = channel.stream_stream(method, None, None)(
                requests, timeout=context.time_remaining(), metadata=metadata
            )
            try:
                await context.send_initial_metadata(tuple(await call.initial_metadata()))
                async for answer in call:
                    await context.write(answer)
                context.set_trailing_metadata(tuple(await call.trailing_metadata()))
                code, details = await call.code(), await call.details()
            except grpc.aio.AioRpcError as error:
                code, details = error.code(), error.details() or ""
                context.set_trailing_metadata(tuple(error.trailing_metadata() or ()))
            finally:
                call.cancel()
            if code is not grpc.StatusCode.OK:
                await context.abort(code, details)

        return pass_on
