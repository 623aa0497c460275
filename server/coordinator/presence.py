"""Which clients and devices are there, by the time of their last call."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from featherfed.server.coordinator.state import LiveRun
from featherfed.server.rounds.transitions import Phase
from featherfed.server.storage.records import OTHERS

PRESENCE = 60.0
"""Seconds for which a client or device counts as present after a call; polls are shorter."""

SILENT_BEATS = 2.9
"""Heartbeats that a client may miss before it is lost: three, but for what a call takes."""


class Presence:
    """Knows when each client that has joined made its last call; safe in several threads."""

    def __init__(self, run: LiveRun, clients: Iterable[str]) -> None:
        """Begin with the clients of before a restart."""
        self._run = run
        self._lock = threading.Lock()
        # After the last round, they get time to fetch the final model.
        seen = run.began if run.phase is Phase.FINISHED else -math.inf
        self._last_seen = OrderedDict.fromkeys(clients, seen)  # the longest silent one first

    def add(self, client: str) -> None:
        """Begin to follow a client that joins: not present until it asks for a task."""
        with self._lock:
            if client not in self._last_seen:
                self._last_seen[client] = -math.inf
                self._last_seen.move_to_end(client, last=False)

    def hear(self, client: str) -> None:
        """Record that a client is alive; inference-only devices are ignored. Does not block."""
        with self._lock:
            if client in self._last_seen:
                self._last_seen[client] = self._run.clock()
                self._last_seen.move_to_end(client)

    def present(self) -> frozenset[str]:
        """Return the clients that made a call within the last PRESENCE seconds."""
        now, found = self._run.clock(), []
        with self._lock:
            for client, seen in reversed(self._last_seen.items()):
                if now - seen > PRESENCE:
                    break
                found.append(client)
        return frozenset(found)

    def last_calls(self) -> dict[str, float]:
        """Return when each client made its last call; -inf for none since the server's start."""
        with self._lock:
            return dict(self._last_seen)

    def silent(self, now: float) -> tuple[frozenset[str], float]:
        """Return the clients silent for longer than training allows, and when one may become so.

        Without heartbeats these are late clients only: the cohort has until the deadline.
        """
        run = self._run
        state, beat = run.state, run.settings.clients.heartbeat
        limit = SILENT_BEATS * beat if beat else run.policy.deadline
        began = max(run.began, state.since)
        if not state.late and not (beat and state.cohort):
            return frozenset(), math.inf
        if now - began <= limit:
            return frozenset(), began + limit
        found: set[str] = set()
        with self._lock:
            for client, seen in self._last_seen.items():
                if now - seen <= limit:
                    return frozenset(found), seen + limit
                training = beat and run.slot_of(client, state) is not None
                if client in state.late or (training and client not in state.reported):
                    found.add(client)
        return frozenset(found), math.inf


class _Device(NamedTuple):
    heard: float
    version: int


class Devices:
    """Knows the inference-only devices that called lately, and the version that each has."""

    def __init__(self, run: LiveRun) -> None:
        self._run = run
        self._devices: dict[str, _Device] = {}
        self._named = set(run.store.ledger.devices() - {OTHERS})

    def name(self, device: str) -> str:
        """Return the name that a device is known by: its own, or OTHERS if there are too many.

        Nobody can make it forget a device by calling under many names, nor grow the ledger.
        """
        if device not in self._named:
            if len(self._named) >= self._run.settings.limits.devices:
                return OTHERS
            self._named.add(device)
        return device

    def hear(self, device: str, version: int | None = None) -> None:
        """Record that a device is there, and its version if that is known anew; not for OTHERS."""
        if device == OTHERS:
            return
        if version is None:
            version = self._devices.get(device, _Device(0, 0)).version
        self._devices[device] = _Device(self._run.clock(), version)

    def all_have(self, version: int) -> bool:
        """Whether all devices that called within PRESENCE seconds have the file of a version."""
        now = self._run.clock()
        self._devices = {n: d for n, d in self._devices.items() if now - d.heard <= PRESENCE}
        return all(device.version >= version for device in self._devices.values())
