"""Rate limits of callers, in memory that does not grow with their number.

Not with the library `limits`, which counts by the machine's clock: put back by an hour, it would
lock everybody out for an hour.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import unquote

from featherfed.server.errors import Busy
from featherfed.server.settings.settings import LimitSettings

BURST_SECONDS = 5.0
"""Seconds' worth of requests that a peer may make at once after a quiet time."""
_ADDRESS_FACTOR = 10  # times one client's rate: many clients may share an address
_STRANGERS_FACTOR = 20  # times one client's rate, for all calls without a session together
_KEYS = 20_000
_MAX_POLLS = 8  # a client needs one; polls of broken connections end late


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


class Quotas:
    """Limits the calls of each client, of each address, and of all callers without a session."""

    def __init__(self, limits: LimitSettings) -> None:
        rate = limits.requests_per_second
        self._clients = Rate(rate)
        self._addresses = Rate(_ADDRESS_FACTOR * rate)
        self._strangers = Rate(_STRANGERS_FACTOR * rate)
        self._polls: dict[str, int] = {}

    def count_client(self, client: str) -> None:
        """Count a client's call; raise Busy if it makes too many."""
        self._clients.check(client)

    def count_stranger(self, peer: str) -> None:
        """Count a call without a session; raise Busy if there are too many.

        `peer`: the caller's network address or proven identity.
        """
        self._addresses.check(peer)
        self._strangers.check("")

    def begin_poll(self, client: str) -> None:
        """Count a poll that a client opens; raise Busy if it has too many open."""
        if self._polls.get(client, 0) >= _MAX_POLLS:
            raise Busy(f"{_MAX_POLLS} polls of one client are open", BURST_SECONDS)
        self._polls[client] = self._polls.get(client, 0) + 1

    def end_poll(self, client: str) -> None:
        """Count a poll that a client closes."""
        self._polls[client] -= 1
        if not self._polls[client]:
            del self._polls[client]


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
