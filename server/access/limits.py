"""Limits of callers: calls in a second and calls at a time, in memory that does not grow with them.

Not with the library `limits`, which counts by the machine's clock: put back by an hour, it would
lock everybody out for an hour.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from urllib.parse import unquote

from featherfed.server.errors import Busy
from featherfed.server.settings.settings import LimitSettings

BURST_SECONDS = 5.0
"""Seconds' worth of requests that a peer may make at once after a quiet time."""
_NETWORK_FACTOR = 100  # times one client's rate: many clients may share an address
_ADDRESS_FACTOR = 10  # the same for calls without a session
_STRANGERS_FACTOR = 20  # times one client's rate, for all calls without a session together
_KEYS = 20_000
_MAX_POLLS = 8  # a client needs one; polls of broken connections end late
_MAX_CALLS = 64  # of one proven name, which needs four; those of broken connections end late
_MAX_WATCHES = 8  # health checks and reflection of one peer
_WATCHES_SHARE = 16  # of all streams, one in so many may be a health check or reflection
_GREED = 3  # a peer may hold so many times what it leaves free


class Rate:
    """Limits each key to `per_second` requests, by the generic cell rate algorithm (ITU-T I.371).

    For each key it keeps the time up to which its requests are paid for. Not safe to use from
    several threads.
    """

    def __init__(
        self,
        per_second: float,
        keys: int = _KEYS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Remember at most `keys` keys, those with the newest requests."""
        self._per_second = per_second
        self._burst = max(BURST_SECONDS, 1 / per_second)
        self._keys = keys
        self._clock = clock
        self._paid: OrderedDict[str, float] = OrderedDict()

    def check(self, key: str) -> None:
        """Count a request; raise Busy, with the seconds to wait, if it is one too many."""
        now = self._clock()
        paid = max(self._paid.get(key, now), now) + 1 / self._per_second
        if (wait := paid - now - self._burst) > 1e-9:
            raise Busy(f"more than {self._per_second:g} requests a second", wait)
        self._paid[key] = paid
        self._paid.move_to_end(key)
        if len(self._paid) > self._keys:
            self._paid.popitem(last=False)


class OpenCalls:
    """Limits how many calls each key has open, so that there is always room for another key.

    A key may hold `_GREED` times as many as are still free (dynamic thresholds of Choudhury and
    Hahne, 1998): alone it gets three quarters of all, and n greedy keys leave 1 of 3n + 1.
    """

    def __init__(self, what: str, in_all: float = math.inf) -> None:
        """`what`: the calls' name in errors; `in_all`: how many may be open."""
        self._what = what
        self._in_all = in_all
        self._held: dict[Hashable, int] = {}
        self.open = 0

    @contextmanager
    def hold(self, key: Hashable, of_one: float = math.inf) -> Iterator[None]:
        """Count an open call; raise Busy if its key has `of_one`, or more than its share."""
        mine = self._held.get(key, 0)
        if mine >= of_one or mine >= _GREED * (self._in_all - self.open):
            raise Busy(f"{mine} {self._what} are open", BURST_SECONDS)
        self._held[key] = mine + 1
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]


class Peer(NamedTuple):
    """Who makes a call: a proven name, or the network that the call comes from."""

    key: str
    proven: bool


class Quotas:
    """Limits the calls of each peer, of each client, and of all callers without a session."""

    def __init__(self, limits: LimitSettings) -> None:
        rate = limits.requests_per_second
        self._clients = Rate(rate)
        self._networks = Rate(_NETWORK_FACTOR * rate)
        self._addresses = Rate(_ADDRESS_FACTOR * rate)
        self._strangers = Rate(_STRANGERS_FACTOR * rate)
        self._calls = OpenCalls("calls of one peer", limits.streams)
        self._watches = OpenCalls(
            "health checks and reflections of one peer", limits.streams / _WATCHES_SHARE
        )
        self._polls = OpenCalls("polls of one client")

    @contextmanager
    def call(self, peer: Peer, watch: bool) -> Iterator[None]:
        """Count a call of any method; raise Busy if its peer makes too many or has too many open.

        `watch`: it is one of health checking or reflection.
        """
        (self._clients if peer.proven else self._networks).check(peer.key)
        with ExitStack() as held:
            held.enter_context(self._calls.hold(peer, _MAX_CALLS if peer.proven else math.inf))
            if watch:
                held.enter_context(self._watches.hold(peer, _MAX_WATCHES))
            yield

    def count_client(self, client: str) -> None:
        """Count the call of a client that has proven no name; raise Busy if it makes too many."""
        self._clients.check(client)

    def count_stranger(self, network: str) -> None:
        """Count a call of somebody without session or proven name; raise Busy if many make them."""
        self._addresses.check(network)
        self._strangers.check("")

    @contextmanager
    def poll(self, client: str) -> Iterator[None]:
        """Count an open poll of a client; raise Busy if it has too many."""
        with self._polls.hold(client, _MAX_POLLS):
            yield


def network(peer: str) -> str:
    """Return the address of a gRPC peer such as `ipv4:10.0.0.7:5000`.

    For IPv6 it is the /64 network, since one device can use all addresses of it.
    """
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    address = ipaddress.ip_address(host)
    return host if address.version == 4 else str(ipaddress.ip_network((host, 64), strict=False))
