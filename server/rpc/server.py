"""A gRPC server around the federation service, with health checking and reflection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.server.errors import ServerError
from featherfed.server.rpc.authentication import AuthenticationInterceptor
from featherfed.server.rpc.draining import DrainingInterceptor
from featherfed.server.rpc.parsing import ParsingInterceptor
from featherfed.server.rpc.service import FederationService
from featherfed.server.rpc.streams import CHUNK_BYTES
from featherfed.server.rpc.tls import ServerKeys
from featherfed.server.settings.settings import Settings

SERVICE = pb.DESCRIPTOR.services_by_name["Federation"].full_name

MAX_CALLS_PER_CONNECTION = 1024
"""Calls open on one connection, so that one peer cannot take all of `limits.streams`."""

_OPTIONS = [
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
    ("grpc.max_receive_message_length", 4 * CHUNK_BYTES),
    # Pings notice a client behind NAT that vanished in a long poll.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.bdp_probe", 0),  # gRPC holds 64 KiB of an upload; with probing, up to some MiB
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_concurrent_streams", MAX_CALLS_PER_CONNECTION),
]


async def create_server(service: FederationService, settings: Settings) -> tuple[Any, int]:
    """Return a started server and the port it listens on.

    Raises ServerError if the address cannot be listened on, or the credentials cannot be used.
    """
    interceptors: list[Any] = [DrainingInterceptor(service.draining, SERVICE)]
    refuse, security, keys = service.refuser.refuse_stranger, settings.security, None
    if security.credentials is not None:
        folder = Path(security.credentials)
        interceptors.append(AuthenticationInterceptor(folder, security.client_certificates, refuse))
        keys = ServerKeys(folder, security.client_certificates)
    interceptors.append(ParsingInterceptor(SERVICE, refuse))
    server = grpc.aio.server(
        interceptors=interceptors,
        options=_OPTIONS,
        maximum_concurrent_rpcs=settings.limits.streams,
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
        raise ServerError(
            f"cannot listen on {address}: it is in use or not an address of this machine; choose "
            "another with --port or [server] port (0 takes a free one)"
        ) from error
    await server.start()
    for name in ("", SERVICE):
        await service.draining.health.set(name, health_pb2.HealthCheckResponse.SERVING)
    return server, port


def join_address(host: str, port: int) -> str:
    """Return HOST:PORT, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
