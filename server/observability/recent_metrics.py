"""The content of metrics.json for a live page: each round that is done is read once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from featherfed.compression.exchange.manifest import Manifest
from featherfed.server.observability import metrics_json as metrics
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.store import Store
from featherfed.tasks.task import Task

MOST_UPDATES = 10_000
"""Of so many updates the rounds are kept, the newest: about 20 MB."""
_UNSETTLED = 2
"""The newest rounds, whose scores may come later."""


class RecentMetrics:
    """Reads a run's metrics again and again, all of its rounds or the newest."""

    def __init__(
        self, store: Store, settings: Callable[[], Settings], task: Task, manifest: Manifest,
        extra: dict[str, Any],
    ) -> None:  # fmt: skip
        """`settings`: called each time, as the number of rounds may change; `extra`: entries."""
        self._store = store
        self._settings = settings
        self._task = task
        self._manifest = manifest
        self._extra = extra
        self._rounds: list[dict[str, Any]] = []
        """Entries of rounds in order, the last of them before the unsettled ones."""

    def collect(self) -> dict[str, Any]:
        """Return what metrics.json holds, without `final`; nobody changes it."""
        store, settings, task = self._store, self._settings(), self._task
        newest = store.versions.newest_scores().version
        known = self._rounds
        first = known[-1]["round"] + 1 if known else self._first(newest)
        rounds = [
            *known,
            *(metrics.round_entry(store, settings, task, n) for n in range(first, newest + 1)),
        ]
        self._rounds = _newest([each for each in rounds if each["round"] <= newest - _UNSETTLED])
        return {
            **metrics.head(store, settings, task, self._manifest, self._extra),
            "rounds": rounds,
            **metrics.tail(store),
        }

    def _first(self, newest: int) -> int:
        """Return the first round whose updates, and those of all later ones, are few enough."""
        updates, number = 0, newest
        while number > 0:
            updates += self._store.journal.num_updates_of(number)
            if updates > MOST_UPDATES and number < newest:
                break
            number -= 1
        return number + 1


def _newest(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the newest of some rounds, with at most MOST_UPDATES updates, or one."""
    updates, kept = 0, 0
    for entry in reversed(rounds):
        updates += len(entry["clients"])
        if updates > MOST_UPDATES and kept:
            break
        kept += 1
    return rounds[len(rounds) - kept :]
