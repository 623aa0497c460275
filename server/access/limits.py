"""Limits of callers: calls in a second and calls at a time, in memory that does not grow with them.

Not with the library `limits`, which counts by the machine's clock: put back by an hour, it would
lock everybody out for an hour.
"""

from __future__ import annotations

import functools
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
_MAX_WATCHES = 8  # health checks and reflections of one proven name
_WATCHES = 16  # of all calls, one in so many may be a health check or reflection
_GREED = 3  # a key may hold so many times what is left for keys of its kind
_FEW = 8  # calls that a key may hold while there is room at all
_RESERVED = 8  # of all calls, one in so many is for keys that hold few


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
    Hahne, 1998), those not counted that are reserved for keys with few. So one gets two thirds of
    all at most, and however many some greedy ones take, hundreds of others have room.
    """

    def __init__(self, what: str, in_all: float = 1e9) -> None:
        """`what`: the calls' name in errors; `in_all`: how many may be open."""
        self._what = what
        self._in_all = in_all
        self._held: dict[Hashable, int] = {}
        self.open = 0

    @contextmanager
    def hold(self, key: Hashable, of_one: float = math.inf) -> Iterator[None]:
        """Count an open call; raise Busy if its key has `of_one`, or more than its share."""
        self.begin(key, of_one)
        try:
            yield
        finally:
            self.end(key)

    def begin(self, key: Hashable, of_one: float = math.inf) -> None:
        """Count a call that begins, as `hold` does; `end` must follow."""
        mine, free = self._held.get(key, 0), self._in_all - self.open
        if mine >= _FEW:
            of_one = min(of_one, _GREED * (free - self._in_all / _RESERVED))
        if free < 1 or mine >= of_one:
            raise Busy(f"{mine} {self._what} are open", BURST_SECONDS)
        self._held[key] = mine + 1
        self.open += 1

    def end(self, key: Hashable) -> None:
        """Count the end of a call."""
        self.open -= 1
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]


class Peer(NamedTuple):
    """Who makes a call: a proven name, or the network that the call comes from."""

    key: str
    proven: bool


class PeerQuota:
    """Limits all calls of a peer, to every method of the port."""

    def __init__(self, per_second: float, in_all: int, of_one: float, watches: int) -> None:
        """`in_all`, `of_one`: calls open at a time; `watches`: how many of these of one may be."""
        self._rate = Rate(per_second)
        self._calls = OpenCalls("calls of one peer", in_all)
        self._watches = OpenCalls("health checks and reflections of one peer", in_all / _WATCHES)
        self._of_one = of_one, watches

    @contextmanager
    def hold(self, key: str, watch: bool) -> Iterator[None]:
        """Count a call; raise Busy if its peer makes too many or has too many open.

        `watch`: it is one of health checking or reflection.
        """
        self._rate.check(key)
        calls, watches = self._of_one
        self._calls.begin(key, calls)
        try:
            with self._watches.hold(key, watches) if watch else nullcontext():
                yield
        finally:
            self._calls.end(key)

    def count(self, key: str) -> None:
        """Count a call without regard to how many are open."""
        self._rate.check(key)


class Quotas:
    """Limits the calls of each peer, of each client, and of all callers without a session."""

    def __init__(self, limits: LimitSettings) -> None:
        rate, streams = limits.requests_per_second, limits.streams
        self._names = PeerQuota(rate, streams, _MAX_CALLS, _MAX_WATCHES)
        self._networks = PeerQuota(
            _NETWORK_FACTOR * rate, streams, math.inf, _ADDRESS_FACTOR * _MAX_WATCHES
        )
        self._addresses = Rate(_ADDRESS_FACTOR * rate)
        self._strangers = Rate(_STRANGERS_FACTOR * rate)
        self._polls = OpenCalls("polls of one client")

    def call(self, peer: Peer, watch: bool) -> AbstractContextManager[None]:
        """Count a call of any method, as `PeerQuota.hold` does."""
        return (self._names if peer.proven else self._networks).hold(peer.key, watch)

    def count_client(self, client: str) -> None:
        """Count the call of a client that has proven no name; raise Busy if it makes too many."""
        self._names.count(client)

    def count_stranger(self, network: str) -> None:
        """Count a call of somebody without session or proven name; raise Busy if many make them."""
        self._addresses.check(network)
        self._strangers.check("")

    def poll(self, client: str) -> AbstractContextManager[None]:
        """Count an open poll of a client; raise Busy if it has too many."""
        return self._polls.hold(client, _MAX_POLLS)


def network(peer: str) -> str:
    """Return the address of a gRPC peer such as `ipv4:10.0.0.7:5000`.

    For IPv6 it is the /64 network, since one device can use all addresses of it.
    """
    kind, _, rest = peer.partition(":")
    return _network_of(unquote(rest).rpartition(":")[0]) if kind in ("ipv4", "ipv6") else kind


@functools.lru_cache(1024)
def _network_of(host: str) -> str:
    host = host.strip("[]").partition("%")[0]
    address = ipaddress.ip_address(host)
    return host if address.version == 4 else str(ipaddress.ip_network((host, 64), strict=False))
