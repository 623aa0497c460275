"""The live page's parts: the report of the rounds so far, with the snapshot of now in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from featherfed.page.source import Snapshot
from featherfed.report.sections import RunPage

_CHANGING = 3
"""The newest rounds, whose figures may still change."""


class LiveSections:
    """Makes the parts; what follows from the rounds alone is made when one of them changes."""

    def __init__(
        self, snapshot: Callable[[], Snapshot], metrics: Callable[[], dict[str, Any]]
    ) -> None:
        """`metrics`: returns what metrics.json holds, without `final`."""
        self._snapshot = snapshot
        self._metrics = metrics
        self._page: tuple[Any, RunPage] | None = None

    def snapshot(self) -> Snapshot:
        """Return the snapshot of now."""
        return self._snapshot()

    def sections(self, snapshot: Snapshot) -> dict[str, str]:
        """Return the page's parts as HTML by name, in order."""
        rounds = [dict(point) for point in snapshot["points"][-_CHANGING:]]
        for point in rounds:  # bytes alone are no reason to draw all anew
            del point["up"], point["down"]
        key = snapshot["version"], snapshot["rounds"], rounds
        if self._page is None or self._page[0] != key:
            self._page = key, RunPage.of(self._metrics())
        return self._page[1].sections(snapshot)
