"""The gRPC adapter; beside it only gate.py knows gRPC. Knows status codes and wire sizes."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.server.access.limits import Quotas, network
from featherfed.server.access.names import check_name
from featherfed.server.coordinator.coordinator import PRESENCE, Coordinator
from featherfed.server.errors import Busy, Refused, ServerError
from featherfed.server.observability.prometheus import Telemetry
from featherfed.server.rpc.authentication import Gate, proven_name
from featherfed.server.rpc.parsing import ParsingInterceptor
from featherfed.server.settings.settings import SecuritySettings
from featherfed.server.storage.records import Entry, Sent
from featherfed.server.storage.refusals import STRANGER
from featherfed.server.transfers.downloads import Download
from featherfed.server.transfers.framing import framed_size
from featherfed.server.transfers.leases import Turn, Turns, now, see_through
from featherfed.server.transfers.releases import Offer, Releases
from featherfed.server.transfers.routes import Route
from featherfed.server.transfers.uploads import PIECE_BYTES, SLOWEST, Uploads

CHUNK_BYTES = 64 * 1024
MAX_WAIT_SECONDS = 25
RETRY_AFTER = "retry-after"
"""Trailing metadata of a call that came too early: seconds to wait."""
GOING_DOWN = "the server is going down, try again; nothing is lost"
STREAMS_OF_CONNECTION = 1024
"""Calls open on one connection: one peer cannot take all of `limits.streams`."""
SERVICE = pb.DESCRIPTOR.services_by_name["Federation"].full_name

STATUS_OF_REASON: dict[int, grpc.StatusCode] = {
    pb.NONE: grpc.StatusCode.INTERNAL,
    pb.LATE: grpc.StatusCode.FAILED_PRECONDITION,
    pb.NOT_SELECTED: grpc.StatusCode.FAILED_PRECONDITION,
    pb.WRONG_VERSION: grpc.StatusCode.FAILED_PRECONDITION,
    pb.BAD_EXAMPLE_COUNT: grpc.StatusCode.INVALID_ARGUMENT,
    pb.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    pb.MALFORMED: grpc.StatusCode.INVALID_ARGUMENT,
    pb.NON_FINITE: grpc.StatusCode.INVALID_ARGUMENT,
    pb.BAD_NAME: grpc.StatusCode.INVALID_ARGUMENT,
    pb.DATA_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    pb.MISSING_CAPABILITY: grpc.StatusCode.FAILED_PRECONDITION,
    pb.UNKNOWN_SESSION: grpc.StatusCode.UNAUTHENTICATED,
    pb.UNKNOWN_VERSION: grpc.StatusCode.NOT_FOUND,
    pb.OUT_OF_RANGE: grpc.StatusCode.INVALID_ARGUMENT,
    pb.BAD_TOKEN: grpc.StatusCode.PERMISSION_DENIED,
    pb.WRONG_IDENTITY: grpc.StatusCode.PERMISSION_DENIED,
    pb.TOO_MANY_CLIENTS: grpc.StatusCode.FAILED_PRECONDITION,
    pb.BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    pb.TOO_SLOW: grpc.StatusCode.DEADLINE_EXCEEDED,
    pb.STORAGE: grpc.StatusCode.UNAVAILABLE,
    pb.OUTLIER: grpc.StatusCode.INVALID_ARGUMENT,
}

_OPTIONS = [
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
    ("grpc.max_receive_message_length", 4 * CHUNK_BYTES),
    # A client behind NAT that vanishes in a long poll is noticed; one that trains makes no call.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.bdp_probe", 0),  # 64 KiB of an upload wait in gRPC; else it may be some MiB
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_concurrent_streams", STREAMS_OF_CONNECTION),
]

Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])
Context = Any  # grpc.aio.ServicerContext, generic in types that matter to nobody here


@dataclass(frozen=True)
class _Device:
    """One that follows: when it was last heard of, and the version whose release it has."""

    heard: float
    version: int


def _refusals_to_status(method: Method) -> Method:
    @functools.wraps(method)
    async def wrapper(self: FederationService, request: Any, context: Context) -> Any:
        try:
            with self.telemetry.open_calls.track_inprogress():
                return await method(self, request, context)
        except Refused as refusal:
            refused = refusal.with_traceback(None)
        # Not in the handler above: a peer that reads nothing makes this wait, and the exception
        # would hold all that the method had in hand.
        await self.refuse(request, refused, context)

    return cast(Method, wrapper)


class FederationService(pb_grpc.FederationServicer):
    """Turns calls into calls of the coordinator, and counts their bytes."""

    def __init__(
        self,
        coordinator: Coordinator,
        releases: Releases | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Without `releases`, devices that only infer are refused."""
        self.limits = coordinator.settings.limits
        self.telemetry = telemetry or Telemetry()
        self.health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._quotas = Quotas(self.limits)
        self._coordinator = coordinator
        self._releases = releases
        self._changed = asyncio.Event()
        self._closing = False
        self._devices: dict[str, _Device] = {}
        self._uploads = Uploads(coordinator, self.telemetry)
        self._downloads = Turns()
        self._shared: tuple[Route, list[Any]] | None = None
        self._stall = self.limits.stall_seconds

    def notify(self) -> None:
        """Wake the clients that wait for a task: there may be one."""
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def closing(self) -> bool:
        """Whether new calls are refused."""
        return self._closing

    async def drain(self, grace: float) -> None:
        """Refuse new calls, let go of those that wait, and see uploads through for `grace` seconds.

        Safe to call again.
        """
        if not self._closing:
            self._closing = True
            self.notify()
            await self.health.enter_graceful_shutdown()
        until = now() + grace
        while self._uploads.under_way and now() < until:
            await asyncio.sleep(0.05)

    def every_device_has(self, version: int) -> bool:
        """Whether all devices that were heard of lately have the release of a version."""
        self._devices = {n: d for n, d in self._devices.items() if now() - d.heard <= PRESENCE}
        return all(device.version >= version for device in self._devices.values())

    async def refuse(self, request: Any, refusal: Refused, context: Context) -> None:
        """Count a refused call and end it with the status of its reason."""
        await self._end(context, self._caller(request), refusal)

    async def refuse_stranger(self, context: Context, refusal: Refused) -> None:
        """Count and end a call of somebody who has proven no name."""
        try:
            self._stranger(context)
        except Busy as busy:
            refusal = busy
        await self._end(context, STRANGER, refusal)

    async def _end(self, context: Context, caller: str, refusal: Refused) -> None:
        if not refusal.recorded:
            await asyncio.to_thread(self._coordinator.record_refusal, caller, refusal)
        wait = ((RETRY_AFTER, f"{refusal.wait:.3f}"),) if isinstance(refusal, Busy) else ()
        if refusal.pending is not None:  # no status goes out before the message that is on its way
            await asyncio.wait({refusal.pending}, timeout=self._stall)
        try:
            await context.abort(STATUS_OF_REASON[refusal.reason], str(refusal), wait)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            # The peer does not read the message before: it can be told nothing.
            raise asyncio.CancelledError from error

    def _caller(self, request: Any) -> str:
        """Return who made a call: who has proven it, or says so by a session or a fitting name."""
        if proven := proven_name():
            return proven
        name = getattr(request, "client", "") or getattr(request, "device", "")
        if not hasattr(request, "session"):
            return name
        with suppress(Refused):
            return self._coordinator.client_of(request.session)
        return ""

    async def _client(self, session: int, context: Context) -> str:
        """Return who calls; every call with a session begins here."""
        try:
            client = self._coordinator.client_of(session)
        except Refused:
            self._stranger(context)
            raise
        self._must_be(client)
        self._quotas.client(client)
        return client

    def _must_be(self, name: str) -> None:
        """Refuse a caller who has proven another name."""
        proven = proven_name()
        if proven not in (None, name):
            raise Refused(
                pb.WRONG_IDENTITY,
                f"these credentials belong to {proven!r}, who cannot act for others",
            )

    def _stranger(self, context: Context) -> None:
        """Let a call without a session in, or raise Busy."""
        identities = context.peer_identities()
        self._quotas.stranger(str(identities[0]) if identities else network(context.peer()))

    async def _count(self, *entries: Entry) -> None:
        if all(entry.kind == "control" for entry in entries):
            self._coordinator.store.count(*entries)  # never waits
        else:
            await asyncio.to_thread(self._coordinator.store.count, *entries)

    async def _count_control(self, client: str, request: Message, reply: Message) -> None:
        round_ = self._coordinator.ledger_round
        await self._count(
            Entry(round_, client, "uplink", "control", 0, framed_size(request)),
            Entry(round_, client, "downlink", "control", 0, framed_size(reply)),
        )

    @_refusals_to_status
    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinReply:  # noqa: D102
        self._stranger(context)
        self._must_be(request.client)
        reply = await asyncio.to_thread(self._coordinator.join, request)
        await self._count_control(request.client, request, reply)
        return reply

    @_refusals_to_status
    async def NextTask(  # noqa: D102
        self, request: pb.NextTaskRequest, context: Context
    ) -> pb.NextTaskReply:
        client = await self._client(request.session, context)
        self._quotas.begin_poll(client)
        try:
            reply = await self._next_task(client, min(request.wait_seconds, MAX_WAIT_SECONDS))
        finally:
            self._quotas.end_poll(client)
        if self._closing and reply.HasField("wait"):
            await context.abort(grpc.StatusCode.UNAVAILABLE, GOING_DOWN)
        await self._count_control(client, request, reply)
        return reply

    async def _next_task(self, client: str, seconds: float) -> pb.NextTaskReply:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            changed = self._changed
            reply = await asyncio.to_thread(self._coordinator.next_task, client)
            left = until - loop.time()
            if not reply.HasField("wait") or left <= 0 or self._closing:
                return reply
            del reply  # a thousand clients may wait here
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await changed.wait()

    @_refusals_to_status
    async def FetchModel(  # type: ignore[override]  # noqa: D102
        self, request: pb.FetchModelRequest, context: Context
    ) -> None:
        client = await self._client(request.session, context)
        async with self._downloads.take((client, "transfer")) as turn:
            delivery = await asyncio.to_thread(self._coordinator.fetch, client, request)
            route, round_ = delivery.route, delivery.round
            like = Sent(client, "transfer", round_, _digest(pb.ModelChunk(links=route.links)))
            download = await asyncio.to_thread(
                Download, self._coordinator.store, like, route.data, request.offset, delivery.again
            )
            first = pb.ModelChunk(links=route.links, offset=download.begin)
            rest = _chunks(pb.ModelChunk, first, download.data)
            chunks = rest if download.begin else self._chunks_of(route, rest)
            asked = Entry(round_, client, "uplink", "control", 0, framed_size(request))
            await self._send(context, turn, chunks, download, asked)

    def _chunks_of(self, route: Route, chunks: Iterator[Any]) -> list[Any]:
        """Return a whole route in chunks; all who are under way on it share them."""
        if self._shared is None or self._shared[0] is not route:
            self._shared = route, list(chunks)
        return self._shared[1]

    async def _send(
        self,
        context: Context,
        turn: Turn,
        chunks: Iterable[Any],
        download: Download,
        asked: Entry,
    ) -> None:
        """Send a download's chunks and write down what was sent, however it ends."""
        try:
            for message in chunks:
                await self._write(context, turn, message)
                if asked.kind == "control":  # not for a device that may have a client's name
                    self._coordinator.hear(asked.client)
                download.add(len(message.data), framed_size(message))
                if download.uncounted >= PIECE_BYTES:
                    await see_through(asyncio.to_thread(download.count))
        finally:
            await see_through(asyncio.to_thread(download.count, asked, last=True))

    async def _write(self, context: Context, turn: Turn, message: Any) -> None:
        """Send a message to a client that may not keep the server waiting."""
        until = now() + self._stall + len(message.data) / SLOWEST
        write = asyncio.ensure_future(context.write(message))
        try:
            await turn.within(until, write)
        except Refused as refusal:
            refusal.pending = write
            raise

    @_refusals_to_status
    async def FetchStep(  # type: ignore[override]  # noqa: D102
        self, request: pb.FetchStepRequest, context: Context
    ) -> None:
        client = await self._client(request.session, context)
        round_, size = self._coordinator.ledger_round, 0
        async with self._downloads.take((client, "step")) as turn:
            try:
                for piece in _pieces(self._coordinator.training_step[request.offset :]):
                    message = pb.FileChunk(data=piece)
                    await self._write(context, turn, message)
                    self._coordinator.hear(client)
                    size += framed_size(message)
            finally:
                asked = Entry(round_, client, "uplink", "control", 0, framed_size(request))
                sent = Entry(round_, client, "downlink", "control", 0, size)
                await see_through(self._count(asked, sent))

    @_refusals_to_status
    async def SubmitUpdate(  # noqa: D102
        self, request_iterator: AsyncIterator[pb.UpdateChunk], context: Context
    ) -> pb.SubmitReply:
        who = functools.partial(self._client, context=context)
        client, round_, reply = await self._uploads.receive(request_iterator, who)
        await self._count(Entry(round_, client, "downlink", "control", 0, framed_size(reply)))
        return reply

    @_refusals_to_status
    async def ResumeUpload(  # noqa: D102
        self, request: pb.ResumeUploadRequest, context: Context
    ) -> pb.ResumeUploadReply:
        client = await self._client(request.header.session, context)
        offset = await self._uploads.offset(client, request.header)
        reply = pb.ResumeUploadReply(offset=offset)
        await self._count_control(client, request, reply)
        return reply

    @_refusals_to_status
    async def Heartbeat(  # noqa: D102
        self, request: pb.HeartbeatRequest, context: Context
    ) -> pb.HeartbeatReply:
        client = await self._client(request.session, context)
        reply = pb.HeartbeatReply()
        await self._count_control(client, request, reply)
        return reply

    @_refusals_to_status
    async def FetchRelease(  # type: ignore[override]  # noqa: D102
        self, request: pb.FetchReleaseRequest, context: Context
    ) -> None:
        self._stranger(context)
        offer = await self._next_release(request)
        round_, device = self._coordinator.ledger_round, request.device
        asked = Entry(round_, device, "uplink", "release", 0, framed_size(request))
        if offer is None:
            await self._count(asked)
            return
        release = offer.release
        async with self._downloads.take((device, "release")) as turn:
            like = Sent(device, "release", round_, _digest(release))
            offset = request.offset if request.offset_digest == release.digest else 0
            download = await asyncio.to_thread(
                Download, self._coordinator.store, like, offer.data, offset
            )
            first = pb.ReleaseChunk(release=release, offset=download.begin)
            chunks = _chunks(pb.ReleaseChunk, first, download.data)
            await self._send(context, turn, chunks, download, asked)
            self._devices[device] = _Device(now(), release.version)

    async def _next_release(self, request: pb.FetchReleaseRequest) -> Offer | None:
        """Return the newest release once it is not what the device has; None if it stays that."""
        check_name(request.device)
        self._must_be(request.device)
        if self._releases is None:
            raise Refused(pb.MISSING_CAPABILITY, "this server releases no files")
        loop = asyncio.get_running_loop()
        had = self._devices.get(request.device, _Device(0, 0)).version
        until = loop.time() + min(request.wait_seconds, MAX_WAIT_SECONDS)
        while True:
            changed, newest = self._changed, self._coordinator.ledger_round - 1
            self._devices[request.device] = _Device(loop.time(), had)
            offer = await asyncio.wrap_future(
                self._releases.offer(request.kind, request.have_digest)
            )
            if offer:
                return offer
            had = newest
            self._devices[request.device] = _Device(loop.time(), had)
            left = until - loop.time()
            if left <= 0 or self._closing:
                return None
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await changed.wait()

    @_refusals_to_status
    async def GetStatus(  # noqa: D102
        self, request: pb.StatusRequest, context: Context
    ) -> pb.StatusReply:
        self._stranger(context)
        return await asyncio.to_thread(self._coordinator.status)


def _pieces(data: bytes | memoryview) -> Iterator[bytes]:
    """Yield what fits into one chunk, one after the other; no data are one empty piece."""
    for at in range(0, len(data) or 1, CHUNK_BYTES):
        yield bytes(data[at : at + CHUNK_BYTES])


def _chunks(make: Callable[..., Any], first: Any, data: bytes | memoryview) -> Iterator[Any]:
    """Yield data in messages that `make` makes; `first` is in the first of them."""
    for number, piece in enumerate(_pieces(data)):
        message = make(data=piece)
        if not number:
            message.MergeFrom(first)
        yield message


def _digest(message: Message) -> bytes:
    return hashlib.sha256(message.SerializeToString(deterministic=True)).digest()


class _Doorkeeper(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses new calls once the server is going down; health checks still get their answer."""

    def __init__(self, service: FederationService) -> None:
        self._service = service

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        if not self._service.closing or not details.method.startswith(f"/{SERVICE}/"):
            return await continuation(details)

        async def refuse(request: Message, context: Context) -> None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, GOING_DOWN)

        return grpc.unary_unary_rpc_method_handler(refuse)


async def create_server(
    service: FederationService, host: str, port: int, security: SecuritySettings | None = None
) -> tuple[Any, int]:
    """Return a started gRPC server with health checking and reflection, and its bound port.

    Raises ServerError if the address cannot be listened on, or the credentials cannot be used.
    """
    gate = _gate(service, security)
    server = grpc.aio.server(
        interceptors=[_Doorkeeper(service), *([gate] if gate else []), ParsingInterceptor(SERVICE)],
        options=_OPTIONS,
        maximum_concurrent_rpcs=service.limits.streams,
    )
    pb_grpc.add_FederationServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(service.health, server)
    reflection.enable_server_reflection(
        (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    try:
        address = join_address(host, port)
        if gate is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, gate.credentials())
    except RuntimeError as error:
        raise ServerError(
            f"cannot listen on {join_address(host, port)}: it is in use or not an address of this "
            "machine; choose another with --port or [server] port (0 takes a free one)"
        ) from error
    await server.start()
    for name in ("", SERVICE):
        await service.health.set(name, health_pb2.HealthCheckResponse.SERVING)
    return server, bound


def _gate(service: FederationService, security: SecuritySettings | None) -> Gate | None:
    if security is None or security.credentials is None:
        return None
    folder = Path(security.credentials)
    return Gate(folder, security.client_certificates, service.refuse_stranger)


def join_address(host: str, port: int) -> str:
    """Return HOST:PORT, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
