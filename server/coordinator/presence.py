"""Which clients and devices are there, by the time of their last call."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from featherfed.server.coordinator.state import LiveRun
from featherfed.server.rounds.transitions import Phase
from featherfed.server.storage.records import OTHERS

PRESENCE = 60.0
"""Seconds for which a client or device counts as present after a call; polls are shorter."""

SILENT_BEATS = 2.9
"""Heartbeats that a client may miss before it is lost: about three, with the loop's tick."""


class Presence:
    """Knows when each client that has joined made its last call."""

    def __init__(self, run: LiveRun, clients: Iterable[str]) -> None:
        """Begin with the clients of before a restart."""
        self._run = run
        # After the last round, they get time to fetch the final model.
        seen = run.began if run.phase is Phase.FINISHED else -math.inf
        self._last_seen = dict.fromkeys(clients, seen)

    def add(self, client: str) -> None:
        """Begin to follow a client that joins: not present until it asks for a task."""
        self._last_seen.setdefault(client, -math.inf)

    def hear(self, client: str) -> None:
        """Record that a client is alive; inference-only devices are ignored. Does not block."""
        if client in self._last_seen:
            self._last_seen[client] = self._run.clock()

    def present(self) -> frozenset[str]:
        """Return the clients that made a call within the last PRESENCE seconds."""
        now = self._run.clock()
        return frozenset(c for c, seen in self._last_seen.items() if now - seen <= PRESENCE)

    def silent(self, now: float) -> frozenset[str]:
        """Return the clients that have made no call for longer than a client in training may.

        Without heartbeats these are late clients only: the cohort has until the deadline.
        """
        state, beat = self._run.state, self._run.settings.clients.heartbeat
        limit = SILENT_BEATS * beat if beat else self._run.policy.deadline
        training = frozenset(state.cohort) - state.reported if beat else frozenset[str]()
        began = max(self._run.began, state.since)
        return frozenset(
            client
            for client in training | state.late
            if now - max(began, self._last_seen[client]) > limit
        )


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
