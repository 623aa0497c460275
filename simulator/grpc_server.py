"""The server's side of simulated gRPC: what `grpc.aio.server` would return."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import grpc
import grpc.aio

from featherfed.simulator.network import Call, Network, Status
from featherfed.simulator.scheduler import Process

OnError = Callable[[str], None]
"""Told of calls that ended by an exception that nobody expects."""


class _Details(NamedTuple):
    method: str
    invocation_metadata: tuple[Any, ...] = ()


class SimulatedServer:
    """A server of one simulated process; real interceptors and handlers answer its calls."""

    def __init__(
        self,
        network: Network,
        process: Process,
        number: int,
        on_error: OnError,
        interceptors: Sequence[Any] = (),
        maximum_concurrent_rpcs: int | None = None,
    ) -> None:
        self._network = network
        self._process = process
        self._number = number
        self._on_error = on_error
        self._interceptors = tuple(interceptors)
        self._most = maximum_concurrent_rpcs
        self._handlers: dict[str, Any] = {}
        self._tasks: dict[asyncio.Task[None], Call] = {}
        self._stopped = False

    @property
    def open_calls(self) -> int:
        """How many calls are being answered."""
        return len(self._tasks)

    def callers(self) -> list[str]:
        """Return the client of each open call."""
        return [call.connection.client for call in self._tasks.values()]

    @property
    def service(self) -> Any:
        """The federation's service, None before it is added."""
        handler = self._handlers.get("/featherfed.v1.Federation/SubmitUpdate")
        return None if handler is None else handler.stream_unary.__self__

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Do nothing: the registered handlers are the same."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Add a service's methods."""
        for name, handler in handlers.items():
            self._handlers[f"/{service}/{name}"] = handler

    def add_insecure_port(self, address: str) -> int:
        """Return a port."""
        return 1

    async def start(self) -> None:
        """Listen."""
        self._network.server = self._process
        self._network.on_call = self._accept

    async def stop(self, grace: float | None) -> None:
        """Take no new calls, and end those that take longer than `grace` seconds."""
        self._stopped = True
        self._network.on_call = None
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for call in list(self._tasks.values()):
            call.end(Status(grpc.StatusCode.UNAVAILABLE, "the server has stopped"))
            call.cancel_on_server()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, call: Call) -> None:
        self._network.records.append(call.record)
        call.record.server = self._number
        if self._stopped or (self._most is not None and len(self._tasks) >= self._most):
            call.record.ended = "refused"
            call.end(Status(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls"))
            return
        loop = self._process.loop  # type: ignore[attr-defined]
        task = loop.create_task(self._answer(call))
        self._tasks[task] = call
        task.add_done_callback(self._tasks.pop)
        call.cancel_server = lambda: loop.call_soon(task.cancel)

    async def _answer(self, call: Call) -> None:
        scheduler = self._network.scheduler
        context = SimulatedContext(call)
        try:
            await self._handle(call, context)
            call.end(Status(grpc.StatusCode.OK))
            call.record.ended = "ok"
        except grpc.aio.AbortError:
            call.record.ended = "refused"
        except asyncio.CancelledError:
            call.record.ended = "cancelled"
            if self._process.alive:  # gRPC resets the stream of a call that is dropped unanswered
                call.end(Status(grpc.StatusCode.CANCELLED, "dropped by the server"))
            raise
        except Exception as error:
            call.record.ended = "failed"
            call.end(Status(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}"))
            if self._process.alive:
                self._on_error(f"{call.method}: {type(error).__name__}: {error}")
        finally:
            call.record.ended_at = scheduler.now
            context.hang_up()
            scheduler.trace("served", call.connection.client, call.method, call.record.ended,
                            call.record.up, call.record.down)  # fmt: skip

    async def _handle(self, call: Call, context: SimulatedContext) -> None:
        handler = await self._find(_Details(call.method), self._interceptors)
        if handler is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        context.deserialize = handler.request_deserializer
        context.serialize = handler.response_serializer
        if handler.response_streaming:
            await handler.stream_stream(context.requests(), context)
        else:
            await context.write(await handler.stream_unary(context.requests(), context))

    async def _find(self, details: _Details, interceptors: tuple[Any, ...]) -> Any:
        if not interceptors:
            return self._handlers.get(details.method)

        async def go_on(details: Any) -> Any:
            return await self._find(details, interceptors[1:])

        return await interceptors[0].intercept_service(go_on, details)


class SimulatedContext:
    """What our handlers use of a `grpc.aio.ServicerContext`."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._changed = asyncio.Event()
        self._over = False
        self._writing = 0
        self.serialize: Callable[[Any], bytes] | None = None
        self.deserialize: Callable[[bytes], Any] | None = None
        call.on_server = self._changed.set

    async def requests(self) -> AsyncIterator[Any]:
        """Yield the request's messages."""
        while (message := await self.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            yield message

    async def read(self) -> Any:
        """Return the request's next message, grpc.aio.EOF at its end."""
        call = self._call
        while not call.requests:
            if call.requests_end or self._over:
                return grpc.aio.EOF  # type: ignore[attr-defined]
            self._changed.clear()
            await self._changed.wait()
        message = call.take()
        if not call.record.request:
            call.record.request = message
        return self.deserialize(message) if self.deserialize else message

    async def write(self, message: Any) -> None:
        """Send a message once there is room for it."""
        self._writing += 1
        try:
            while self._call.full and not self._over:
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._writing -= 1
        if self._over:
            raise grpc.aio.UsageError("RPC already finished.")
        self._call.reply(self.serialize(message) if self.serialize else message)

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: tuple[tuple[str, str], ...] = (),
    ) -> NoReturn:
        """End the call with a status, which gRPC cannot send while a message is on its way."""
        if self._writing:
            raise grpc.aio.InternalError("Failed grpc_call_start_batch: 8")
        self._call.end(Status(code, details, tuple(trailing_metadata)))
        raise grpc.aio.AbortError

    def peer(self) -> str:
        """Return the caller's address, one for every client."""
        return f"ipv4:10.0.0.{sum(self._call.connection.client.encode()) % 250}:4000"

    def peer_identities(self) -> None:
        """Return None: nobody proves a name."""

    def hang_up(self) -> None:
        """End what still waits to be written."""
        self._over = True
        self._changed.set()
