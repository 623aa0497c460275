"""Finding a run's server on the local network by multicast DNS, when no address was given."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featherfed.edge_client.errors import ClientError

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, Zeroconf

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

log = logging.getLogger(__name__)

SERVICE_TYPE = "_featherfed._tcp.local."
RUN_KEY = "run"
"""The key of the TXT record that holds the run's name."""

FIND_SECONDS = 10.0
_SETTLE_SECONDS = 2.0  # after the first server was heard: a second one makes the choice unclear
_RESOLVE_MILLISECONDS = 3000
_CONNECT_SECONDS = 2.0
_GIVE_IT = "give the server's address (HOST:PORT)"


@dataclass(frozen=True)
class Offer:
    """A server that announces itself: its run, and where it listens (HOST:PORT, best first)."""

    run: str
    addresses: tuple[str, ...]


def find(timeout: float = FIND_SECONDS, only_here: bool = False) -> str:
    """Return the address of the one server on the local network, heard within `timeout` seconds.

    Raises ClientError if there is none, more than one, or if it cannot be reached.
    """
    return choose(browse(timeout, only_here), timeout, answers)


def choose(offers: Sequence[Offer], waited: float, answers: Callable[[str], bool]) -> str:
    """Return the first address that answers of the only offer; raise ClientError otherwise."""
    if not offers:
        raise ClientError(
            f"no server announced itself on this network within {waited:.0f} s; is it running, "
            'with [server] host = "0.0.0.0" in its run file, in the same network (a guest Wi-Fi '
            f"often keeps its devices apart)? Or {_GIVE_IT}"
        )
    if len(offers) > 1:
        lines = [f"  {offer.run} at {' or '.join(offer.addresses)}" for offer in offers]
        raise ClientError("\n".join([f"several servers announce themselves; {_GIVE_IT}", *lines]))
    (offer,) = offers
    for address in offer.addresses:
        if answers(address):
            log.info("found run %s at %s", offer.run, address)
            return address
    raise ClientError(
        f"run {offer.run} announces itself at {' and '.join(offer.addresses)}, but nothing answers "
        f"there; let TCP through the server's firewall, or {_GIVE_IT}"
    )


def answers(address: str) -> bool:
    """Return whether something accepts connections at `address`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def browse(timeout: float, only_here: bool = False) -> list[Offer]:
    """Return what announces itself, sorted by run; listen in all networks or only here."""
    try:
        opened = open_zeroconf(only_here)
    except ClientError as error:
        raise ClientError(f"{error}; or {_GIVE_IT}") from error
    with contextlib.closing(opened) as zeroconf:
        names = _listen(zeroconf, timeout)
        infos = [
            zeroconf.get_service_info(SERVICE_TYPE, name, _RESOLVE_MILLISECONDS) for name in names
        ]
    offers = [_offer(info) for info in infos if info is not None]
    return sorted((o for o in offers if o.addresses), key=lambda o: (o.run, o.addresses))


def open_zeroconf(only_here: bool = False) -> Zeroconf:
    """Return multicast DNS on all of this machine's networks, or on its loopback interface alone.

    Raises ClientError where the library or the network is missing.
    """
    try:
        from zeroconf import Zeroconf
    except ModuleNotFoundError as error:
        raise ClientError("to use the local network's names, pip install zeroconf") from error
    loopback = ["127.0.0.1"]  # ::1 takes no multicast
    own = [str(address) for address in own_addresses() if not address.is_loopback]
    try:
        return Zeroconf(loopback if only_here else loopback + own)
    except OSError as error:
        raise ClientError(f"this machine cannot send to the local network: {error}") from error


def own_addresses() -> list[IPAddress]:
    """Return the addresses of this machine's interfaces."""
    import ifaddr  # comes with zeroconf

    texts = [
        ip.ip if isinstance(ip.ip, str) else ip.ip[0]
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
    ]
    return list(dict.fromkeys(ipaddress.ip_address(text) for text in texts))


def _listen(zeroconf: Zeroconf, timeout: float) -> list[str]:
    """Return the names of the services that are there, a little after the first was heard."""
    from zeroconf import ServiceBrowser, ServiceStateChange

    names: set[str] = set()
    heard = threading.Event()

    def on_change(
        zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is ServiceStateChange.Removed:
            names.discard(name)
        else:
            names.add(name)
            heard.set()

    browser = ServiceBrowser(zeroconf, SERVICE_TYPE, handlers=[on_change])
    try:
        if heard.wait(timeout):
            time.sleep(min(timeout, _SETTLE_SECONDS))
    finally:
        browser.cancel()
    return sorted(names)


def _offer(info: ServiceInfo) -> Offer:
    run = (info.properties.get(RUN_KEY.encode()) or b"").decode("utf-8", "replace")
    found = [ipaddress.ip_address(address) for address in info.parsed_addresses()]
    # IPv4 first: a home network without IPv6 still gives every machine some IPv6 address.
    found.sort(key=lambda a: (a.version, a.is_loopback))
    texts = [str(a) if a.version == 4 else f"[{a}]" for a in found]
    name = info.name.removesuffix(f".{SERVICE_TYPE}")
    return Offer(run or name, tuple(f"{text}:{info.port}" for text in texts))
