"""A gRPC server around the federation service, with health checking and reflection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.server.access.limits import Peer
from featherfed.server.errors import CannotListen
from featherfed.server.rpc.authentication import AuthenticationInterceptor
from featherfed.server.rpc.callers import authenticated_peer
from featherfed.server.rpc.context import Context
from featherfed.server.rpc.draining import DrainingInterceptor
from featherfed.server.rpc.parsing import ParsingInterceptor
from featherfed.server.rpc.quotas import QuotaInterceptor
from featherfed.server.rpc.service import FederationService
from featherfed.server.rpc.streams import CHUNK_BYTES
from featherfed.server.rpc.tls import ServerKeys
from featherfed.server.rpc.unknown_methods import create_grpc_server
from featherfed.server.settings.settings import Settings

SERVICE = pb.DESCRIPTOR.services_by_name["Federation"].full_name

MAX_CALLS_PER_CONNECTION = 1024
"""Calls open on one connection, so that one peer cannot take all of `limits.streams`."""

MAX_WAITING_CALLS = 4096
"""Calls that wait until the event loop takes them up, some 13 kB each; more are cancelled, and
clients try them again. gRPC's own limit cancels some of a thousand clients that call at once."""

OPTIONS = [
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
    ("grpc.max_receive_message_length", 4 * CHUNK_BYTES),
    # Pings notice a client behind NAT that vanished in a long poll.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.bdp_probe", 0),  # gRPC holds 64 KiB of an upload; with probing, up to some MiB
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_concurrent_streams", MAX_CALLS_PER_CONNECTION),
    ("grpc.server.max_pending_requests", MAX_WAITING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", MAX_WAITING_CALLS),
]


async def create_server(service: FederationService, settings: Settings) -> tuple[Any, int]:
    """Return a started server and the port it listens on.

    Raises CannotListen, or ServerError if the credentials cannot be used.
    """
    keys = None
    if settings.security.credentials is not None:
        folder = Path(settings.security.credentials)
        keys = ServerKeys(folder, settings.security.client_certificates)
    server = create_grpc_server(
        interceptors=_interceptors(service, settings),
        options=OPTIONS,
        # Calls that the quotas refuse are open for a moment, too: theirs are to decide, not this.
        maximum_concurrent_rpcs=2 * settings.limits.streams,
    )
    pb_grpc.add_FederationServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(service.draining.health, server)
    reflection.enable_server_reflection(
        (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    address = join_address(settings.server.host, settings.server.port)
    try:
        if keys is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, keys.credentials())
    except RuntimeError as error:
        raise cannot_listen(address) from error
    await server.start()
    for name in ("", SERVICE):
        await service.draining.health.set(name, health_pb2.HealthCheckResponse.SERVING)
    return server, port


def _interceptors(service: FederationService, settings: Settings) -> list[Any]:
    """Return what a call passes, in this order."""
    security, quotas, refuser = settings.security, service.callers.quotas, service.refuser

    def quota(peer_of: Callable[[Context], Peer]) -> QuotaInterceptor:
        return QuotaInterceptor(quotas, peer_of, SERVICE, refuser.refuse)

    passed: list[Any] = [
        quota(service.callers.connected_peer),
        DrainingInterceptor(service.draining, SERVICE),
    ]
    if security.credentials is not None:
        folder, certificates = Path(security.credentials), security.client_certificates
        passed.append(AuthenticationInterceptor(folder, certificates, refuser.refuse_stranger))
        if not certificates:  # the connection shows no name, the token does
            passed.append(quota(authenticated_peer))
    stall_seconds = settings.limits.stall_seconds
    return [
        *passed,
        ParsingInterceptor(SERVICE, refuser.refuse_stranger, service.draining, stall_seconds),
    ]


def cannot_listen(address: str) -> CannotListen:
    """Return the error for an address that is not to be had."""
    return CannotListen(
        f"cannot listen on {address}: it is in use or not an address of this machine; choose "
        "another with --port or [server] port (0 takes a free one)"
    )


def join_address(host: str, port: int) -> str:
    """Return HOST:PORT, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
