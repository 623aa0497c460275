"""The client's side of simulated gRPC: a channel for the generated stub."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

from featherfed.simulator.network import Call, Network, Status
from featherfed.simulator.scheduler import Process


class SimulatedError(grpc.RpcError):
    """A call that ended with another status than OK."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"{status.code.name}: {status.details}")
        self._status = status

    def code(self) -> grpc.StatusCode:
        """Return the status code."""
        return self._status.code

    def details(self) -> str:
        """Return the status' text."""
        return self._status.details

    def trailing_metadata(self) -> Any:
        """Return the metadata that came with the status."""
        return tuple(_Item(key, value) for key, value in self._status.metadata)


class _Item:
    def __init__(self, key: str, value: str) -> None:
        self.key, self.value = key, value


class SimulatedChannel:
    """What the generated stub needs of a `grpc.Channel`, over the simulated network."""

    def __init__(self, network: Network, client: str, process: Process) -> None:
        self._network = network
        self._client = client
        self._process = process

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: object,
    ) -> Callable[..., Any]:
        """Return a function that makes a call with one request and one reply."""

        def call(request: Any, timeout: float) -> Any:
            return self._one_reply(method, (request,), timeout, request_serializer,
                                   response_deserializer)  # fmt: skip

        return call

    def stream_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: object,
    ) -> Callable[..., Any]:
        """Return a function that makes a call with many requests and one reply."""

        def call(requests: Iterable[Any], timeout: float) -> Any:
            return self._one_reply(method, requests, timeout, request_serializer,
                                   response_deserializer)  # fmt: skip

        return call

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: object,
    ) -> Callable[..., Any]:
        """Return a function that makes a call with one request and many replies."""

        def call(request: Any, timeout: float) -> Iterator[Any]:
            begun, until = self._begin(method, timeout)
            begun.send(request_serializer(request), until)
            begun.finish_sending()
            try:
                while (reply := begun.receive(until)) is not None:
                    yield response_deserializer(reply)
            finally:  # also if the caller wants no more of it
                begun.cancel(Status(grpc.StatusCode.CANCELLED))
            self._check(begun)

        return call

    def close(self) -> None:
        """Close the connection."""
        connection = self._network.connection(self._client)
        if connection is not None and connection.process is self._process:
            self._network.reset(connection)

    def _begin(self, method: str, timeout: float) -> tuple[Call, float]:
        self._process.point(f"call {method.rpartition('/')[2]}")
        call = self._network.start(self._client, method, self._process)
        return call, self._network.scheduler.now + timeout

    def _one_reply(
        self,
        method: str,
        requests: Iterable[Any],
        timeout: float,
        serialize: Callable[[Any], bytes],
        deserialize: Callable[[bytes], Any],
    ) -> Any:
        call, until = self._begin(method, timeout)
        single = isinstance(requests, tuple)
        for request in requests:
            if call.status is not None:
                break
            message = serialize(request)
            if single:
                self._network.on_request(call, message)
            call.send(message, until)
        call.finish_sending()
        reply = call.receive(until)
        while call.receive(until) is not None:
            pass
        self._check(call)
        assert reply is not None, "a call without a reply has a status that says why"
        return deserialize(reply)

    @staticmethod
    def _check(call: Call) -> None:
        call.connection.calls.remove(call)
        assert call.status is not None
        if call.status.code is not grpc.StatusCode.OK:
            raise SimulatedError(call.status)
