"""How hot the clients' devices are and how full their batteries, as each said last; in memory."""

from __future__ import annotations

from typing import NamedTuple

from featherfed.proto import federation_pb2 as pb

COLDEST, HOTTEST = -60, 200
"""Degrees Celsius between which a temperature is believed."""
FULL = 100
"""Percent."""


class Health(NamedTuple):
    """A client's device; None is unknown."""

    temperature: int | None = None
    """Degrees Celsius of its hottest part."""
    battery: int | None = None
    """Percent."""


class ClientHealth:
    """Knows the health that each client said last; safe in several threads."""

    def __init__(self) -> None:
        self._known: dict[str, Health] = {}

    def hear(self, client: str, request: pb.NextTaskRequest | pb.HeartbeatRequest) -> None:
        """Take up what a client that has joined says of its device; ignore what cannot be.

        Does not block.
        """
        if not request.HasField("health"):
            return
        said = request.health
        temperature = battery = None
        if said.HasField("temperature") and COLDEST <= said.temperature <= HOTTEST:
            temperature = said.temperature
        if said.HasField("battery") and said.battery <= FULL:
            battery = said.battery
        self._known[client] = Health(temperature, battery)

    def of(self, client: str) -> Health:
        """Return what a client said last of its device."""
        return self._known.get(client, Health())

    def all(self) -> dict[str, Health]:
        """Return what every client said last."""
        return dict(self._known)
