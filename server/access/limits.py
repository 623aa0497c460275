"""How much a peer may ask for: a rate per key, in memory that does not grow with the peers.

Own code, since the library `limits` counts by the machine's clock: put back an hour, it would lock
everybody out for an hour.
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
"""A peer that was quiet may ask for so many seconds' worth at once."""
_OF_ADDRESS = 10  # times one client's rate: many clients may share an address
_IN_ALL = 20
_KEYS = 20_000
_POLLS = 8  # a client has one; those of broken connections are noticed late


class Rate:
    """So many requests a second for each key, by the generic cell rate algorithm.

    (ITU-T I.371: a time per key up to which its requests are paid for.) Not safe to use from
    several threads.
    """

    def __init__(
        self,
        per_second: float,
        keys: int = _KEYS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Remember the `keys` that asked last."""
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
    """The limits of a server's calls."""

    def __init__(self, limits: LimitSettings) -> None:
        rate = limits.requests_per_second
        self._clients = Rate(rate)
        self._addresses = Rate(_OF_ADDRESS * rate)
        self._strangers = Rate(_IN_ALL * rate)
        self._polls: dict[str, int] = {}

    def client(self, client: str) -> None:
        """Let a client's call in, or raise Busy."""
        self._clients.check(client)

    def stranger(self, peer: str) -> None:
        """Let a call without a session in, or raise Busy; `peer` is an address or an identity."""
        self._addresses.check(peer)
        self._strangers.check("")

    def begin_poll(self, client: str) -> None:
        """Let a client wait for a task, or raise Busy if it does so too many times already."""
        if self._polls.get(client, 0) >= _POLLS:
            raise Busy(f"{_POLLS} polls of one client are open", BURST_SECONDS)
        self._polls[client] = self._polls.get(client, 0) + 1

    def end_poll(self, client: str) -> None:
        """A poll that had begun is over."""
        self._polls[client] -= 1
        if not self._polls[client]:
            del self._polls[client]


def network(peer: str) -> str:
    """Return what stands for a gRPC peer such as `ipv4:10.0.0.7:5000`: its address.

    Of IPv6 it is the network of 64 bits, which one device can have all addresses of.
    """
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    address = ipaddress.ip_address(host)
    return host if address.version == 4 else str(ipaddress.ip_network((host, 64), strict=False))
