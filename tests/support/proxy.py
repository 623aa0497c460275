"""A thin, long and lossy link as a TCP proxy: what packet loss looks like from above TCP.

Every connection has its own bandwidth and delay each way, and carries segments of at most 1,460
bytes in their order. A segment is lost with probability `loss`; TCP sends it again after its
timeout, which doubles every time: the segment and all behind it arrive later, and its bandwidth is
lost. One lost segment in CUT takes the connection with it, as a link does that is gone for
longer than its ends will wait. (Segments that overtake each other reach nobody above TCP.)
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass

SEGMENT = 1460
TIMEOUT = 0.6
"""Seconds until TCP sends a lost segment again: round trip and its spread, at these delays."""
CUT = 20


@dataclass
class Link:
    """Bytes per second each way, seconds of delay each way, and the share of lost segments."""

    bytes_per_second: float = 8000.0
    delay: tuple[float, float] = (0.05, 0.25)
    loss: float = 0.0


@dataclass
class Traffic:
    """What went over the link, both ways together."""

    connections: int = 0
    cuts: int = 0
    segments: int = 0
    lost: int = 0
    bytes: int = 0
    """Of TCP payload, lost segments included."""


class Proxy:
    """Listens on `address` and carries what comes to `target` (host, port), from a thread."""

    def __init__(self, target: tuple[str, int], link: Link, seed: int = 0) -> None:
        self.traffic = Traffic()
        self._target, self._link = target, link
        self._rng = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        self._ready.wait()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        listener = _socket()
        listener.bind(("127.0.0.1", 0))
        server = await asyncio.start_server(self._carry, sock=listener, limit=2 * SEGMENT)
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _carry(self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        self.traffic.connections += 1
        far_socket = _socket()
        far_socket.setblocking(False)
        try:
            await self._loop.sock_connect(far_socket, self._target)
        except OSError:  # the server is away
            far_socket.close()
            near_out.transport.abort()
            return
        far, far_out = await asyncio.open_connection(sock=far_socket, limit=2 * SEGMENT)
        ways = [
            asyncio.ensure_future(self._way(near, far_out)),
            asyncio.ensure_future(self._way(far, near_out)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            near_out.transport.abort()
            far_out.transport.abort()

    async def _way(self, source: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        """Carry one direction until its end or a cut; the delay runs beside the bandwidth."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)
        arriving = asyncio.ensure_future(_arrive(under_way, out))
        try:
            with suppress(ConnectionError):
                while data := await source.read(SEGMENT):
                    late = await self._send(len(data))
                    if late is None:
                        return
                    at = self._loop.time() + self._rng.uniform(*self._link.delay) + late
                    await under_way.put((at, data))
        finally:
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)

    async def _send(self, size: int) -> float | None:
        """Take up the link for a segment; return the seconds its losses cost, None for a cut."""
        late, timeout = 0.0, TIMEOUT
        while True:
            self.traffic.segments += 1
            self.traffic.bytes += size
            await asyncio.sleep(size / self._link.bytes_per_second)
            if self._rng.random() >= self._link.loss:
                return late
            self.traffic.lost += 1
            if self._rng.random() < 1 / CUT:
                self.traffic.cuts += 1
                return None
            late += timeout
            timeout *= 2


async def _arrive(under_way: asyncio.Queue[tuple[float, bytes]], out: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    with suppress(ConnectionError):
        while True:
            at, data = await under_way.get()
            await asyncio.sleep(max(0.0, at - loop.time()))  # later than all before it
            out.write(data)
            await out.drain()


def _socket() -> socket.socket:
    """Return a socket with room for an upload, as a modem has.

    A window that is closed by the receiver for as long as the link takes would be another fault:
    gRPC lets the kernel give up (TCP_USER_TIMEOUT) what cannot be sent for its keepalive timeout.
    """
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
    return found
