"""The gRPC adapter: the only module of the server that knows gRPC, status codes and wire sizes."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.server.admission import check_name
from featherfed.server.coordinator import PRESENCE, Coordinator
from featherfed.server.errors import Refused, ServerError
from featherfed.server.parsing import ParsingInterceptor
from featherfed.server.releases import Offer, Releases
from featherfed.server.sizes import framed_size
from featherfed.server.store import Entry
from featherfed.server.versions import Route

CHUNK_BYTES = 64 * 1024
MAX_WAIT_SECONDS = 25
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
    ("grpc.keepalive_permit_without_calls", 1),
]

T = TypeVar("T")
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
            return await method(self, request, context)
        except Refused as refusal:
            await context.abort(STATUS_OF_REASON[refusal.reason], str(refusal))
            raise

    return cast(Method, wrapper)


class FederationService(pb_grpc.FederationServicer):
    """Turns calls into calls of the coordinator, and counts their bytes."""

    def __init__(self, coordinator: Coordinator, releases: Releases | None = None) -> None:
        """Without `releases`, devices that only infer are refused."""
        self._coordinator = coordinator
        self._releases = releases
        self._changed = asyncio.Event()
        self._closing = False
        self._devices: dict[str, _Device] = {}
        self._chunked: tuple[Route, list[pb.ModelChunk]] | None = None

    def notify(self) -> None:
        """Wake the clients that wait for a task: there may be one."""
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """Let go of devices that wait for a release."""
        self._closing = True
        self.notify()

    def every_device_has(self, version: int) -> bool:
        """Whether all devices that were heard of lately have the release of a version."""
        now = asyncio.get_running_loop().time()
        self._devices = {n: d for n, d in self._devices.items() if now - d.heard <= PRESENCE}
        return all(device.version >= version for device in self._devices.values())

    async def _client(self, session: int) -> str:
        return await asyncio.to_thread(self._coordinator.client_of, session)

    async def _count(self, *entries: Entry) -> None:
        await asyncio.to_thread(self._coordinator.count, *entries)

    async def _count_control(self, client: str, request: Message, reply: Message) -> None:
        round_ = self._coordinator.ledger_round
        await self._count(
            Entry(round_, client, "uplink", "control", 0, framed_size(request)),
            Entry(round_, client, "downlink", "control", 0, framed_size(reply)),
        )

    @_refusals_to_status
    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinReply:  # noqa: D102
        reply = await asyncio.to_thread(self._coordinator.join, request)
        await self._count_control(request.client, request, reply)
        return reply

    @_refusals_to_status
    async def NextTask(  # noqa: D102
        self, request: pb.NextTaskRequest, context: Context
    ) -> pb.NextTaskReply:
        client = await self._client(request.session)
        loop = asyncio.get_running_loop()
        until = loop.time() + min(request.wait_seconds, MAX_WAIT_SECONDS)
        while True:
            changed = self._changed
            reply = await asyncio.to_thread(self._coordinator.next_task, client)
            left = until - loop.time()
            if not reply.HasField("wait") or left <= 0:
                break
            try:
                await asyncio.wait_for(changed.wait(), left)
            except TimeoutError:
                break
        await self._count_control(client, request, reply)
        return reply

    async def FetchModel(  # noqa: D102
        self, request: pb.FetchModelRequest, context: Context
    ) -> AsyncIterator[pb.ModelChunk]:
        try:
            client = await self._client(request.session)
            delivery = await asyncio.to_thread(self._coordinator.fetch, client, request)
        except Refused as refusal:
            await context.abort(STATUS_OF_REASON[refusal.reason], str(refusal))
            raise
        route, round_ = delivery.route, delivery.round
        payload = message = 0
        try:
            for chunk in self._model_chunks(route):
                yield chunk
                payload += len(chunk.data)
                message += framed_size(chunk)
        finally:
            whole = payload == len(route.data) and not delivery.again
            self._coordinator.count(
                Entry(round_, client, "uplink", "control", 0, framed_size(request)),
                Entry(
                    round_, client, "downlink", "transfer" if whole else "retry", payload, message
                ),
            )

    def _model_chunks(self, route: Route) -> list[pb.ModelChunk]:
        """Return a route in chunks; all who are under way on it share them."""
        if self._chunked is None or self._chunked[0] is not route:
            self._chunked = route, _model_chunks(route.links, route.data)
        return self._chunked[1]

    async def FetchStep(  # noqa: D102
        self, request: pb.FetchStepRequest, context: Context
    ) -> AsyncIterator[pb.FileChunk]:
        try:
            client = await self._client(request.session)
        except Refused as refusal:
            await context.abort(STATUS_OF_REASON[refusal.reason], str(refusal))
            raise
        round_, message = self._coordinator.ledger_round, 0
        data = self._coordinator.training_step
        try:
            for at in range(0, len(data), CHUNK_BYTES):
                chunk = pb.FileChunk(data=data[at : at + CHUNK_BYTES])
                yield chunk
                message += framed_size(chunk)
        finally:
            self._coordinator.count(
                Entry(round_, client, "uplink", "control", 0, framed_size(request)),
                Entry(round_, client, "downlink", "control", 0, message),
            )

    @_refusals_to_status
    async def SubmitUpdate(  # noqa: D102
        self, request_iterator: AsyncIterator[pb.UpdateChunk], context: Context
    ) -> pb.SubmitReply:
        upload = _Upload()
        header = await upload.read_header(request_iterator)
        client = await self._client(header.session)
        limit = await asyncio.to_thread(self._coordinator.max_update_bytes, client)
        round_ = min(header.round, self._coordinator.ledger_round)
        accepted = False
        try:
            payload = await upload.read_rest(request_iterator, limit)
            # Once begun it is seen through, also if the client hangs up: it may be journaled.
            submit = asyncio.to_thread(
                self._coordinator.submit, client, header, payload, upload.message_bytes
            )
            outcome = await _see_through(submit)
            accepted = outcome == pb.ACCEPTED
            reply = pb.SubmitReply(outcome=outcome)
        except Refused as refusal:
            await asyncio.to_thread(self._coordinator.record_refusal, client, refusal, round_)
            reply = pb.SubmitReply(outcome=pb.REFUSED, reason=refusal.reason, detail=refusal.detail)
        finally:
            if not accepted:  # an accepted update is counted in one transaction with its journal
                retry = Entry(round_, client, "uplink", "retry", upload.size, upload.message_bytes)
                self._coordinator.count(retry)
        await self._count(Entry(round_, client, "downlink", "control", 0, framed_size(reply)))
        return reply

    @_refusals_to_status
    async def ResumeUpload(  # noqa: D102
        self, request: pb.ResumeUploadRequest, context: Context
    ) -> pb.ResumeUploadReply:
        client = await self._client(request.header.session)
        reply = pb.ResumeUploadReply(offset=0)
        await self._count_control(client, request, reply)
        return reply

    @_refusals_to_status
    async def Heartbeat(  # noqa: D102
        self, request: pb.HeartbeatRequest, context: Context
    ) -> pb.HeartbeatReply:
        client = await self._client(request.session)
        reply = pb.HeartbeatReply()
        await self._count_control(client, request, reply)
        return reply

    async def FetchRelease(  # noqa: D102
        self, request: pb.FetchReleaseRequest, context: Context
    ) -> AsyncIterator[pb.ReleaseChunk]:
        try:
            offer = await self._next_release(request)
        except Refused as refusal:
            await context.abort(STATUS_OF_REASON[refusal.reason], str(refusal))
            raise
        round_, device = self._coordinator.ledger_round, request.device
        entries = [Entry(round_, device, "uplink", "release", 0, framed_size(request))]
        payload = message = 0
        try:
            for chunk in _release_chunks(offer) if offer else ():
                yield chunk
                payload += len(chunk.data)
                message += framed_size(chunk)
        finally:
            if offer:
                whole = payload == len(offer.data)
                kind = "release" if whole else "release_retry"
                entries.append(Entry(round_, device, "downlink", kind, payload, message))
                if whole:
                    now = asyncio.get_running_loop().time()
                    self._devices[device] = _Device(now, offer.release.version)
            self._coordinator.count(*entries)

    async def _next_release(self, request: pb.FetchReleaseRequest) -> Offer | None:
        """Return the newest release once it is not what the device has; None if it stays that."""
        check_name(request.device)
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
                await asyncio.wait_for(changed.wait(), left)

    async def GetStatus(  # noqa: D102
        self, request: pb.StatusRequest, context: Context
    ) -> pb.StatusReply:
        return await asyncio.to_thread(self._coordinator.status)


async def _see_through(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns, and let it end even if the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        return await task


class _Upload:
    """Collects one update's chunks, never more than announced."""

    def __init__(self) -> None:
        self._announced = 0
        self._parts: list[bytes] = []
        self.size = 0
        self.message_bytes = 0

    async def read_header(self, stream: AsyncIterator[pb.UpdateChunk]) -> pb.UpdateHeader:
        async for chunk in stream:
            self._add(chunk, first=True)
            if not chunk.HasField("header"):
                break
            self._announced = chunk.header.size
            return chunk.header
        raise Refused(pb.MALFORMED, "the first chunk must hold the header")

    async def read_rest(self, stream: AsyncIterator[pb.UpdateChunk], limit: int) -> bytes:
        if self._announced > limit:
            raise Refused(
                pb.TOO_LARGE, f"{self._announced} bytes; the round's codec needs {limit} at most"
            )
        async for chunk in stream:
            self._add(chunk)
        if self.size != self._announced:
            raise Refused(pb.MALFORMED, f"{self._announced} bytes announced, {self.size} sent")
        return b"".join(self._parts)

    def _add(self, chunk: pb.UpdateChunk, first: bool = False) -> None:
        if not first and not chunk.data:
            raise Refused(pb.MALFORMED, "a chunk without data")
        self.size += len(chunk.data)
        self.message_bytes += framed_size(chunk)
        if not first and self.size > self._announced:
            raise Refused(pb.MALFORMED, f"more than the {self._announced} bytes announced")
        self._parts.append(chunk.data)


def _model_chunks(links: list[pb.Link], data: bytes) -> list[pb.ModelChunk]:
    pieces = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)] or [b""]
    chunks = [pb.ModelChunk(data=piece) for piece in pieces]
    chunks[0].links.extend(links)
    return chunks


def _release_chunks(offer: Offer) -> list[pb.ReleaseChunk]:
    pieces = [offer.data[at : at + CHUNK_BYTES] for at in range(0, len(offer.data), CHUNK_BYTES)]
    chunks = [pb.ReleaseChunk(data=piece) for piece in pieces]
    chunks[0].release.CopyFrom(offer.release)
    return chunks


async def create_server(service: FederationService, host: str, port: int) -> tuple[Any, int]:
    """Return a started gRPC server with health checking and reflection, and its bound port.

    Raises ServerError if the address cannot be listened on.
    """
    server = grpc.aio.server(options=_OPTIONS, interceptors=[ParsingInterceptor(SERVICE)])
    pb_grpc.add_FederationServicer_to_server(service, server)
    checks = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection(
        (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    try:
        bound = server.add_insecure_port(join_address(host, port))
    except RuntimeError as error:
        raise ServerError(
            f"cannot listen on {join_address(host, port)}: it is in use or not an address of this "
            "machine; choose another with --port or [server] port (0 takes a free one)"
        ) from error
    await server.start()
    for name in ("", SERVICE):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    return server, bound


def join_address(host: str, port: int) -> str:
    """Return HOST:PORT, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
