"""Find a run's server on the local network by multicast DNS, if no address was given."""

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
from featherfed.proto.peer_text import printable

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, Zeroconf

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

log = logging.getLogger(__name__)

SERVICE_TYPE = "_featherfed._tcp.local."
RUN_KEY = "run"
"""Key of the run's name in the TXT record."""

FIND_SECONDS = 10.0
_SETTLE_SECONDS = 2.0  # to wait for a second server after the first, as the user must choose then
_RESOLVE_MILLISECONDS = 3000
_CONNECT_SECONDS = 2.0
MAX_SERVERS = 16
"""Most servers that are asked who they are, and most addresses of one that are tried."""
_MAX_RUN = 64  # characters of a run's name
_HINT = "give the server's address (HOST:PORT)"


@dataclass(frozen=True)
class AnnouncedServer:
    """A server that announces itself: its run and its addresses (HOST:PORT, best first)."""

    run: str
    addresses: tuple[str, ...]


def find_server(timeout: float = FIND_SECONDS, loopback_only: bool = False) -> str:
    """Return the address of the only server that announces itself within `timeout` seconds.

    Raises ClientError if there are none or several, or if it cannot be reached.
    """
    return choose_server(browse(timeout, loopback_only), timeout, answers)


def choose_server(
    servers: Sequence[AnnouncedServer], waited: float, answers: Callable[[str], bool]
) -> str:
    """Return the only server's first address that answers; raise ClientError if there is none."""
    if not servers:
        raise ClientError(
            f"no server announced itself on this network within {waited:.0f} s; is it running, "
            'with [server] host = "0.0.0.0" in its run file, in the same network (a guest Wi-Fi '
            f"often keeps its devices apart)? Or {_HINT}"
        )
    if len(servers) > 1:
        lines = [f"  {server.run} at {' or '.join(server.addresses)}" for server in servers]
        raise ClientError("\n".join([f"several servers announce themselves; {_HINT}", *lines]))
    (server,) = servers
    for address in server.addresses:
        if answers(address):
            log.info("found run %s at %s", server.run, address)
            return address
    raise ClientError(
        f"run {server.run} announces itself at {' and '.join(server.addresses)}, but nothing "
        f"answers there; let TCP through the server's firewall, or {_HINT}"
    )


def answers(address: str) -> bool:
    """Return whether `address` accepts TCP connections."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def browse(timeout: float, loopback_only: bool = False) -> list[AnnouncedServer]:
    """Return the servers that announce themselves within `timeout` seconds, sorted by run."""
    try:
        opened = open_zeroconf(loopback_only)
    except ClientError as error:
        raise ClientError(f"{error}; or {_HINT}") from error
    with contextlib.closing(opened) as zeroconf:
        names = _listen(zeroconf, timeout)
        infos = [
            zeroconf.get_service_info(SERVICE_TYPE, name, _RESOLVE_MILLISECONDS) for name in names
        ]
    servers = [_announced_server(info) for info in infos if info is not None]
    return sorted((s for s in servers if s.addresses), key=lambda s: (s.run, s.addresses))


def open_zeroconf(loopback_only: bool = False) -> Zeroconf:
    """Open multicast DNS on all interfaces of this machine, or on the loopback interface only.

    Raises ClientError if the library is not installed or the network cannot be used.
    """
    try:
        from zeroconf import Zeroconf
    except ModuleNotFoundError as error:
        raise ClientError("to use the local network's names, pip install zeroconf") from error
    loopback = ["127.0.0.1"]  # ::1 does not support multicast
    others = [str(address) for address in own_addresses() if not address.is_loopback]
    try:
        return Zeroconf(loopback if loopback_only else loopback + others)
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
    """Return the names of the services heard until shortly after the first one."""
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
    return sorted(names)[:MAX_SERVERS]


def _announced_server(info: ServiceInfo) -> AnnouncedServer:
    run = (info.properties.get(RUN_KEY.encode()) or b"").decode("utf-8", "replace")
    found = [ipaddress.ip_address(address) for address in info.parsed_addresses()]
    # IPv4 first: a home network without IPv6 still gives every machine some IPv6 address.
    found.sort(key=lambda a: (a.version, a.is_loopback))
    texts = [str(a) if a.version == 4 else f"[{a}]" for a in found]
    name = info.name.removesuffix(f".{SERVICE_TYPE}")
    addresses = tuple(f"{text}:{info.port}" for text in texts[:MAX_SERVERS])
    return AnnouncedServer(printable(run or name, _MAX_RUN), addresses)
