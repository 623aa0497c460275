"""Checks that a simulated run's rounds wait for all clients, whichever of them is fastest."""

from __future__ import annotations

import math

from featherfed.server.errors import ServerError
from featherfed.server.settings.settings import Settings


def check_waits_for_all(settings: Settings, clients: int) -> None:
    """Raise ServerError if a round of so many clients would depend on which of them is fastest."""
    given = settings.clients
    enough = given.minimum if given.patience else math.ceil(given.quorum * given.minimum)
    if min(enough, given.minimum) < clients or given.over_selection > 1:
        raise ServerError(
            f"workers: rounds may go on without some of the {clients} clients (minimum "
            f"{given.minimum}, quorum {given.quorum}, patience {given.patience}, over_selection "
            f"{given.over_selection} in [clients]), so the result would depend on which is "
            "fastest; let rounds wait for all, or train in one process"
        )
