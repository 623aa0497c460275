"""Steps that all calls share: identify and limit the caller, count bytes, refuse.

The only module that turns the core's errors into gRPC status codes.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import Busy, CannotStore, Deposed, Refused
from featherfed.server.observability.prometheus import Telemetry
from featherfed.server.rpc.callers import Callers
from featherfed.server.rpc.context import Context
from featherfed.server.storage.records import LedgerEntry
from featherfed.server.transfers.framing import control_entries

RETRY_AFTER = "retry-after"
"""Trailing metadata of a call that was refused as Busy: seconds to wait."""

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
    pb.EXCLUDED: grpc.StatusCode.PERMISSION_DENIED,
}

Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])


class StalledWrite(Exception):
    """A peer does not read what it is sent; `write`: the message that is still on its way."""

    def __init__(self, refusal: Refused, write: asyncio.Future[Any]) -> None:
        self.refusal = refusal
        self.write = write
        super().__init__(str(refusal))


class ByteCounter:
    """Counts the bytes of calls in the ledger."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._run = coordinator.run
        self._ledger = coordinator.store.ledger
        self._commits = coordinator.commits

    async def count(self, *entries: LedgerEntry) -> None:
        """Add entries to the ledger; control bytes alone wait for no disk."""
        if all(entry.kind == "control" for entry in entries):
            self._ledger.count(*entries)
        else:
            await self._commits.run(self._ledger.count, *entries)

    async def count_control(self, client: str, request: Message, reply: Message) -> None:
        """Count a request and its reply as control bytes of the current round."""
        await self.count(*control_entries(self._run.ledger_round, client, request, reply))


class Refuser:
    """Ends refused calls with the status of their reason."""

    def __init__(self, coordinator: Coordinator, callers: Callers) -> None:
        self._refusals = coordinator.refusals
        self._callers = callers
        self._stall_seconds = coordinator.settings.limits.stall_seconds

    async def refuse(
        self, context: Context, name: str, refusal: Refused, write: Any = None
    ) -> NoReturn:
        """Record the refusal of a caller's request, and end its call; `write` as for `end`.

        `name`: empty if nobody knows it.
        """
        self._refusals.record(name, refusal)
        await self.end(context, refusal, write)

    async def refuse_stranger(self, context: Context, refusal: Refused) -> NoReturn:
        """Refuse a call whose request names nobody, and count it for its caller's rate."""
        try:
            self._callers.count_stranger(context)
        except Busy as busy:
            refusal = busy
        await self.refuse(context, self._callers.name_of(None), refusal)

    async def end(self, context: Context, refusal: Refused, write: Any = None) -> NoReturn:
        """End a call whose refusal is recorded.

        `write`: a message on its way, which must be out before a status can be sent.
        """
        wait = ((RETRY_AFTER, f"{refusal.wait:.3f}"),) if isinstance(refusal, Busy) else ()
        if write is not None:
            await asyncio.wait({write}, timeout=self._stall_seconds)
        try:
            await context.abort(STATUS_OF_REASON[refusal.reason], str(refusal), wait)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            # The peer did not read the message before, so no status can reach it.
            raise asyncio.CancelledError from error
        raise AssertionError("abort() always raises")


class CallHandler:
    """Base of a service whose methods the decorators below turn into calls."""

    def __init__(self, coordinator: Coordinator, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self.callers = Callers(
            coordinator.members,
            coordinator.presence,
            coordinator.settings.limits,
            coordinator.store.front_secret,
        )
        self.bytes = ByteCounter(coordinator)
        self.refuser = Refuser(coordinator, self.callers)


def call(method: Method) -> Method:
    """Make a method `(self, request, context)` a call: Refused ends it with a status."""

    @functools.wraps(method)
    async def wrapper(self: CallHandler, request: Any, context: Context) -> Any:
        write = None
        try:
            with self.telemetry.open_calls.track_inprogress():
                return await method(self, request, context)
        except StalledWrite as stalled:
            refused, write = stalled.refusal.with_traceback(None), stalled.write
        except Refused as refusal:
            refused = refusal.with_traceback(None)
        except Deposed:  # the loop ends this server; the client finds the other one
            refused = CannotStore("another server takes over")
        # Not in the handlers above: this waits for a peer that reads nothing, and meanwhile the
        # exception would keep all local variables of the method in memory.
        await self.refuser.refuse(context, self.callers.name_of(request), refused, write)

    return cast(Method, wrapper)


def stranger_call(method: Method) -> Method:
    """Make a method `(self, request, context)` a call for peers without a session."""

    @call
    @functools.wraps(method)
    async def wrapper(self: CallHandler, request: Any, context: Context) -> Any:
        self.callers.count_stranger(context)
        return await method(self, request, context)

    return cast(Method, wrapper)


def client_call(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Make a method `(self, request, client, context)` a call of clients that have joined.

    The request holds their session. If there is a reply, both count as control bytes; a method
    that streams its replies, and returns None, counts them itself.
    """

    @call
    @functools.wraps(method)
    async def wrapper(self: CallHandler, request: Any, context: Context) -> Any:
        client = self.callers.client(_session_of(request), context)
        reply = await method(self, request, client, context)
        if reply is not None:
            await self.bytes.count_control(client, request, reply)
        return reply

    return wrapper


def _session_of(request: Any) -> int:
    return int(request.header.session if hasattr(request, "header") else request.session)
