"""Signs of life while a client is busy with a round."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from types import TracebackType

from featherfed.edge_client.errors import Rejected, SessionLost, StaleTask, Unreachable

log = logging.getLogger(__name__)


class Heart:
    """Calls `beat` every `seconds` from a thread of its own, for as long as the caller's lives.

    `beat` gets the seconds that it may take. What it raises of the link and the server is only
    logged: the round's own calls will meet it. With 0 seconds it does nothing.
    """

    def __init__(self, beat: Callable[[float], None], seconds: float) -> None:
        self._beat = beat
        self._seconds = seconds
        self._stop = threading.Event()

    def __enter__(self) -> Heart:
        """Begin, for the calling thread."""
        if self._seconds:
            owner = threading.current_thread()
            threading.Thread(target=self._run, args=(owner,), name="heart", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop; a call under way may still end by itself."""
        self._stop.set()

    def _run(self, owner: threading.Thread) -> None:
        # The clients of a round start at the same moment: their beats shall not stay together.
        wait = random.uniform(0, self._seconds)
        while not self._stop.wait(wait) and owner.is_alive():
            try:
                self._beat(self._seconds)
            except (Unreachable, SessionLost, Rejected, StaleTask) as error:
                log.debug("no heartbeat: %s", error)
            wait = random.uniform(0.8, 1) * self._seconds
