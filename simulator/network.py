"""The simulated network: connections that are slow, cut or silent, and the calls on them.

Messages travel as bytes. Each link has a delay, a bandwidth and a window of unread bytes; messages
of one connection arrive in order, those of an older connection perhaps after those of a newer one.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from featherfed.simulator.scheduler import Process, Scheduler, Waiter

FRAME_BYTES = 5
"""gRPC's prefix of every message."""
NOTICED_BY_CLIENT = 50.0
"""Seconds after which a client's keepalive notices a silent connection."""
NOTICED_BY_SERVER = 80.0
"""The same for the server's."""
CONNECT_SECONDS = 5.0
"""How long a client tries to connect through a network that is away."""

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@dataclass
class Status:
    """How a call ended."""

    code: grpc.StatusCode
    details: str = ""
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass
class CallRecord:
    """What the network carried for one call, as the server's side saw it.

    `up`: bytes of messages that the server took; `down`: of those that it gave away. `ended`: how
    the server's side ended: ok, refused, cancelled, killed or failed.
    """

    method: str
    client: str
    request: bytes = b""
    up: int = 0
    down: int = 0
    begun: float = 0.0
    ended: str = ""
    ended_at: float = 0.0
    server: int = 0


@dataclass
class Link:
    """The way between one client and the server: seconds, and bytes a second."""

    delay: float = 0.02
    jitter: float = 0.02
    bandwidth: float = 1e6
    silent_until: float = 0.0


@dataclass
class Connection:
    """One TCP connection of a client."""

    client: str
    number: int
    process: Process
    calls: list[Call] = field(default_factory=list)
    arrived: dict[str, float] = field(default_factory=lambda: {"up": 0.0, "down": 0.0})
    busy: dict[str, float] = field(default_factory=lambda: {"up": 0.0, "down": 0.0})
    under_way: dict[str, deque[Callable[[], None]]] = field(
        default_factory=lambda: {"up": deque(), "down": deque()}
    )
    client_cut: bool = False
    server_cut: bool = False


class Call:
    """One call, seen from both sides: what is on its way, and how it ends."""

    def __init__(self, network: Network, connection: Connection, method: str) -> None:
        self.network = network
        self.connection = connection
        self.method = method
        self.record = CallRecord(method, connection.client, begun=network.scheduler.now)
        # the client's side
        self.replies: deque[bytes] = deque()
        self.status: Status | None = None
        self.waiter: Waiter | None = None
        self.unread_up = 0
        # the server's side
        self.requests: deque[bytes] = deque()
        self.requests_end = False
        self.unread_down = 0
        self.on_server: Callable[[], None] = lambda: None
        """Called when something arrived at the server, or room for replies."""
        self.cancel_server: Callable[[], None] = lambda: None
        self.cancelled = False
        connection.calls.append(self)

    # ---- the client's side

    def send(self, message: bytes, until: float) -> None:
        """Send a request's message, waiting for room; nothing is sent once the call has ended."""
        network = self.network
        while self.status is None and self.unread_up > network.window:
            self._wait_until(until)
        if self.status is None:
            self.unread_up += len(message)
            network.carry(self.connection, "up", len(message), self._arrive_up, message)

    def finish_sending(self) -> None:
        """Say that no message follows."""
        self.network.carry(self.connection, "up", 0, self._end_up)

    def _wait_until(self, until: float) -> None:
        """Wait for anything to happen to the call; end it at its deadline."""
        scheduler = self.network.scheduler
        self.waiter = Waiter(scheduler)
        try:
            in_time = self.waiter.wait(max(0.0, until - scheduler.now))
        finally:
            self.waiter = None
        if not in_time:
            self.cancel(Status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))

    def receive(self, until: float) -> bytes | None:
        """Return the next reply, None at the call's end; the status is there then."""
        while not self.replies and self.status is None:
            self._wait_until(until)
        if not self.replies:
            return None
        reply = self.replies.popleft()
        self.network.carry(self.connection, "up", 0, self._read_down, len(reply), free=True)
        return reply

    def cancel(self, status: Status) -> None:
        """End the call on the client's side, and tell the server."""
        if self.status is None:
            self._end_client(status)
            self.network.carry(self.connection, "up", 0, self.cancel_on_server)

    def _end_client(self, status: Status) -> None:
        if self.status is None:
            self.status = status
            if self.waiter is not None:
                self.waiter.set()

    def lose_client(self) -> None:
        """The connection broke on the client's side."""
        self._end_client(Status(UNAVAILABLE, "Socket closed"))

    # ---- the server's side

    def _arrive_up(self, message: bytes) -> None:
        self.requests.append(message)
        self.on_server()

    def _end_up(self) -> None:
        self.requests_end = True
        self.on_server()

    def take(self) -> bytes:
        """Take the next message of the request."""
        message = self.requests.popleft()
        self.record.up += len(message) + FRAME_BYTES
        self.network.carry(self.connection, "down", 0, self._read_up, len(message), free=True)
        return message

    def _read_up(self, size: int) -> None:
        self.unread_up -= size
        if self.waiter is not None:
            self.waiter.set()

    def _read_down(self, size: int) -> None:
        self.unread_down -= size
        self.on_server()

    def reply(self, message: bytes) -> None:
        """Send a reply's message."""
        self.record.down += len(message) + FRAME_BYTES
        self.unread_down += len(message)
        self.network.on_reply(self, message)
        self.network.carry(self.connection, "down", len(message), self._arrive_down, message)

    @property
    def full(self) -> bool:
        """Whether the client has so much to read that the next reply must wait."""
        return self.unread_down > self.network.window

    def _arrive_down(self, message: bytes) -> None:
        if self.status is None:
            self.replies.append(message)
            if self.waiter is not None:
                self.waiter.set()

    def end(self, status: Status) -> None:
        """Send the status, which ends the call."""
        self.network.carry(self.connection, "down", 0, self._end_client, status)

    def cancel_on_server(self) -> None:
        """The client has gone: cancel what answers the call."""
        if not self.cancelled:
            self.cancelled = True
            self.cancel_server()
            self.on_server()


class Network:
    """Connects clients to the server that listens now, if one does."""

    def __init__(self, scheduler: Scheduler, draw: random.Random, window: int) -> None:
        """`window`: bytes that may be on their way to a side that does not read."""
        self.scheduler = scheduler
        self.window = window
        self.records: list[CallRecord] = []
        """All calls that reached a server."""
        self.on_call: Callable[[Call], None] | None = None
        """Takes over a call that arrives; None while no server listens."""
        self.server: Process | None = None
        self.on_message: Callable[[Connection], None] = lambda connection: None
        """Called for every message that is sent, so that a fault may hit it."""
        self.on_request: Callable[[Call, bytes], None] = lambda call, message: None
        """Called for every call with one request, so that a fault may repeat it."""
        self.on_reply: Callable[[Call, bytes], None] = lambda call, message: None
        """Called for every message that leaves the server."""
        self._draw = draw
        self._links: dict[str, Link] = {}
        self._connections: dict[str, Connection] = {}
        self._number = 0

    def link(self, client: str) -> Link:
        """Return the way between a client and the server."""
        return self._links.setdefault(client, Link())

    def connection(self, client: str) -> Connection | None:
        """Return a client's connection, if it has one."""
        return self._connections.get(client)

    def connections_of(self, target: str) -> list[Connection]:
        """Return the living connections of a client, or all of them."""
        return [
            connection
            for client, connection in sorted(self._connections.items())
            if target in (client, "server") and not connection.client_cut
        ]

    def repeat(self, call: Call, message: bytes, after: float) -> None:
        """Send a call's only request a second time; nobody waits for the reply."""
        ghost = Call(
            self, Connection(call.connection.client, 0, call.connection.process), call.method
        )
        ghost.requests.append(message)
        ghost.requests_end = True
        self.scheduler.after(after, None, self._open, ghost)

    def start(self, client: str, method: str, process: Process) -> Call:
        """Start a call, over a new connection if there is none; it may have failed at once."""
        connection = self._connections.get(client)
        if connection is None or connection.client_cut or connection.process is not process:
            self._number += 1
            connection = Connection(client, self._number, process)
            self._connections[client] = connection
            process.on_death.append(lambda: self.reset(connection))
        call = Call(self, connection, method)
        link = self.link(client)
        now = self.scheduler.now
        if link.silent_until > now + CONNECT_SECONDS:
            self.scheduler.after(CONNECT_SECONDS, process, call.lose_client)
        else:
            delay = max(0.0, link.silent_until - now) + self._delay(link)
            self.scheduler.after(delay, None, self._open, call)
        return call

    def _open(self, call: Call) -> None:
        if call.connection.client_cut or call.connection.server_cut:
            return
        if self.on_call is None or (self.server is not None and not self.server.alive):
            call.connection.server_cut = True
            self._cut_client(call.connection)
            return
        if self.server is not None and self.server.frozen:
            self.scheduler.after(0, self.server, self._open, call)
            return
        self.on_call(call)

    def _delay(self, link: Link) -> float:
        return link.delay + self._draw.random() * link.jitter

    def carry(
        self,
        connection: Connection,
        way: str,
        size: int,
        deliver: Callable[..., None],
        *args: object,
        free: bool = False,
    ) -> None:
        """Deliver a message after what the link takes; it is lost if the connection is cut before.

        `free`: it is no message but an acknowledgement below them.
        """
        if connection.client_cut if way == "up" else connection.server_cut:
            return
        link, now = self.link(connection.client), self.scheduler.now
        begin = max(now, connection.busy[way], link.silent_until)
        connection.busy[way] = begin + size / link.bandwidth
        arrival = max(connection.busy[way] + self._delay(link), connection.arrived[way])
        connection.arrived[way] = arrival
        under_way = connection.under_way[way]
        under_way.append(lambda: deliver(*args))

        def arrive() -> None:
            process = self.server if way == "up" else connection.process
            if link.silent_until > self.scheduler.now:  # the network went away meanwhile
                self.scheduler.at(link.silent_until + link.delay, None, arrive)
            elif process is not None and process.frozen:
                self.scheduler.after(0, process, arrive)
            elif not (connection.server_cut if way == "up" else connection.client_cut):
                under_way.popleft()()  # the oldest one, whatever delayed which

        self.scheduler.at(arrival, None, arrive)
        if not free:
            self.on_message(connection)

    def cut(self, connection: Connection, client_after: float, server_after: float) -> None:
        """Break a connection; each side notices after its own time."""
        self.scheduler.trace("cut", connection.client)
        self.scheduler.after(client_after, None, self._cut_client, connection)
        self.scheduler.after(server_after, None, self._cut_server, connection)

    def reset(self, connection: Connection) -> None:
        """Break a connection of a process that has ended."""
        self._cut_client(connection)
        self.scheduler.after(self._delay(self.link(connection.client)), None,
                             self._cut_server, connection)  # fmt: skip

    def _cut_client(self, connection: Connection) -> None:
        connection.client_cut = True
        for call in list(connection.calls):
            call.lose_client()

    def _cut_server(self, connection: Connection) -> None:
        """The server's side may see the end of a stream before the call is cancelled."""
        connection.server_cut = True
        for call in list(connection.calls):
            if call.record.ended or call.cancelled:
                continue
            if self._draw.random() < 0.5:
                call._end_up()
                self.scheduler.after(self._draw.random() * 0.9, self.server, call.cancel_on_server)
            else:
                self.scheduler.after(0, self.server, call.cancel_on_server)

    def silence(self, client: str, seconds: float) -> None:
        """Let nothing through for a while; a connection does not survive a long one."""
        self.scheduler.trace("silence", client, f"{seconds:.3f}")
        link = self.link(client)
        link.silent_until = max(link.silent_until, self.scheduler.now + seconds)
        connection = self._connections.get(client)
        if connection is not None and not connection.client_cut:
            if seconds > NOTICED_BY_CLIENT:
                self.scheduler.after(NOTICED_BY_CLIENT, None, self._cut_client, connection)
            if seconds > NOTICED_BY_SERVER:
                self.scheduler.after(NOTICED_BY_SERVER, None, self._cut_server, connection)

    def server_died(self, noticed_after: float) -> None:
        """The server's machine or process is gone: clients notice after a while."""
        self.on_call = None
        for connection in list(self._connections.values()):
            if not connection.client_cut:
                connection.server_cut = True
                self.scheduler.after(
                    noticed_after + self._delay(self.link(connection.client)),
                    None, self._cut_client, connection,
                )  # fmt: skip
        for record in self.records:
            if not record.ended:
                record.ended, record.ended_at = "killed", self.scheduler.now
