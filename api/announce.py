"""Announce a run's server in the local network by multicast DNS."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import platform
import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from featherfed.edge_client.discovery import (
    RUN_KEY,
    SERVICE_TYPE,
    IPAddress,
    open_zeroconf,
    own_addresses,
)
from featherfed.edge_client.errors import ClientError

if TYPE_CHECKING:
    from zeroconf import Zeroconf

log = logging.getLogger(__name__)

MAX_LABEL = 63
"""Most bytes of one part of a domain name."""


def is_local_only(host: str) -> bool:
    """Return whether only this machine can reach a server that listens on `host`.

    True also for a host that cannot be resolved: such a server cannot start.
    """
    return all(address.is_loopback for address in _resolve(host))


class Announcement:
    """Announces one server, in a thread, from `start` until `close`; errors are only logged."""

    def __init__(self, run: str, host: str, port: int) -> None:
        self._run = run
        self._host = host
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="announce", daemon=True)

    def start(self) -> None:
        """Start announcing; does not block."""
        self._thread.start()

    def close(self) -> None:
        """Withdraw the announcement."""
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            with contextlib.closing(open_zeroconf(is_local_only(self._host))) as zeroconf:
                self._announce(zeroconf, reachable(self._host))
        except ClientError as error:
            self._warn(error)

    def _announce(self, zeroconf: Zeroconf, addresses: Sequence[IPAddress]) -> None:
        from zeroconf import Error, ServiceInfo

        if not addresses:
            raise ClientError("this machine has no address in a network")
        info = ServiceInfo(
            SERVICE_TYPE,
            f"{label(self._run, platform.node(), self._port)}.{SERVICE_TYPE}",
            addresses=[address.packed for address in addresses],
            port=self._port,
            properties={RUN_KEY: self._run},
        )
        try:
            zeroconf.register_service(info, allow_name_change=True)
        except (Error, OSError) as error:
            raise ClientError(f"it could not be announced: {error!r}") from error
        log.info("announced in the local network: clients find this run without an address")
        self._stop.wait()
        zeroconf.unregister_service(info)

    def _warn(self, error: Exception) -> None:
        log.warning(
            "clients cannot find this server by themselves, so give them its address (or set "
            "[server] announce = false): %s", error,
        )  # fmt: skip


def label(run: str, machine: str, port: int) -> str:
    """Return a name that is unique in the network; a long run name is cut to fit."""
    tail = f"-{machine.split('.')[0][:20] or 'server'}-{port}"
    return run[: MAX_LABEL - len(tail.encode())] + tail


def reachable(host: str) -> list[IPAddress]:
    """Return the addresses at which other machines reach a server that listens on `host`."""
    resolved = _resolve(host)
    if not any(address.is_unspecified for address in resolved):
        return resolved
    version = 6 if any(address.version == 6 for address in resolved) else 4
    own = [a for a in own_addresses() if a.version <= version]  # "::" takes IPv4 as well
    # A link-local address is useless to a machine that does not know the interface.
    return [a for a in own if not a.is_loopback and not a.is_link_local]


def _resolve(host: str) -> list[IPAddress]:
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return []  # the server itself reports it when it listens
    return list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0])) for entry in found))
