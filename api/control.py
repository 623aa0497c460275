"""What whoever starts a server hears of it, how it is stopped, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from featherfed.api.trackers.hook import Tracker


class Outcome(enum.IntEnum):
    """How a server ended; the number is the exit status of `featherfed serve`."""

    FINISHED = 0
    """After the run's end."""
    STOPPED = 3
    """Before the run's end, as it was told; started again, it goes on."""
    NO_PROGRESS = 4
    """After the end of a run of which every round was discarded: the final model is the first."""


class StopSwitch:
    """Tells a server to stop, from any thread, and also before it has started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pressed = False
        self._stop: Callable[[], object] | None = None

    def press(self) -> None:
        """Stop the server: uploads under way may end first. Does not wait for it."""
        with self._lock:
            self._pressed = True
            if self._stop is not None:
                self._stop()

    @property
    def pressed(self) -> bool:
        """Whether the server is to stop."""
        return self._pressed

    @contextlib.contextmanager
    def connected(self, stop: asyncio.Event) -> Iterator[None]:
        """Set `stop`, of the running loop, when the switch is pressed inside of this block."""
        loop = asyncio.get_running_loop()
        with self._lock:
            self._stop = lambda: loop.call_soon_threadsafe(stop.set)
            if self._pressed:
                self._stop()
        try:
            yield
        finally:
            with self._lock:
                self._stop = None


@dataclass(frozen=True)
class Observer:
    """What a caller of `serve_run` hears of the server, in any thread, and how it stops it."""

    on_listening: Callable[[str], None] = lambda address: None
    on_round: Callable[[int, Mapping[str, float]], None] = lambda round_, scores: None
    """Gets the newest version's number, and the newest scores by name."""
    switch: StopSwitch = field(default_factory=StopSwitch)
    trackers: Sequence[str | Tracker] = ()
    """Besides those of the run file."""
