"""Tell the server regularly that a client works on its round."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from types import TracebackType

from featherfed.edge_client.errors import Rejected, SessionLost, StaleTask, Unreachable

log = logging.getLogger(__name__)


class Heartbeat:
    """Calls `beat` every `seconds` from a background thread, inside a `with` block.

    It stops at the end of the block, or when the thread that entered it ends. `beat` gets its
    timeout in seconds. Errors of link and server are only logged, since the round's own calls raise
    them too. With 0 seconds nothing is called.
    """

    def __init__(self, beat: Callable[[float], None], seconds: float) -> None:
        self._beat = beat
        self._seconds = seconds
        self._stop = threading.Event()

    def __enter__(self) -> Heartbeat:
        """Start the background thread."""
        if self._seconds:
            owner = threading.current_thread()
            threading.Thread(target=self._run, args=(owner,), name="heartbeat", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Start no further call, without waiting for one under way."""
        self._stop.set()

    def _run(self, owner: threading.Thread) -> None:
        # The clients of a round start at the same moment: the first wait spreads their calls.
        wait = random.uniform(0, self._seconds)
        while not self._stop.wait(wait) and owner.is_alive():
            try:
                self._beat(self._seconds)
            except (Unreachable, SessionLost, Rejected, StaleTask) as error:
                log.debug("no heartbeat: %s", error)
            wait = random.uniform(0.8, 1) * self._seconds
