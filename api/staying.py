"""Takes part in one run after the other, as the same server serves them."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from featherfed.edge_client.errors import Rejected, SessionLost, StaleTask, Unreachable
from featherfed.proto.peer_text import printable

log = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
"""How often, in the mean, a client looks for the next run."""
FINISHED = "finished"
"""The phase of a run that has ended, in StatusReply."""
_MAX_NAME = 100


class Found(NamedTuple):
    """A server's run: where it is, its name and its phase."""

    address: str
    run: str
    phase: str


class Stay:
    """Joins every new run, and one that goes on after its end."""

    def __init__(
        self,
        look: Callable[[], Found],
        take_part: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`look` raises ValueError, Rejected or Unreachable where there is no server.

        `take_part` gets the address, and returns at the run's end.
        """
        self._look = look
        self._take_part = take_part
        self._sleep = sleep
        self._draw = draw
        self._ended = ""
        """The name of the run that this client was in last, until its end."""
        self._left_out = ""
        """The name of a run that this client cannot take part in."""
        self._has_taken_part = False

    def forever(self) -> NoReturn:
        """Take part whenever there is something to take part in.

        Errors of the first run are raised; those of later runs are logged, and the client waits for
        another run.
        """
        quiet = False
        while True:
            try:
                quiet = self.once(quiet)
            except (Unreachable, SessionLost, StaleTask) as error:
                if not quiet:
                    log.warning("no server now, looking again every minute: %s", error)
                quiet = True
            self._sleep(self._draw(0.5, 1.5) * LOOK_SECONDS)

    def once(self, quiet: bool = False) -> bool:
        """Take part in the server's run if that makes sense; return whether there is none to join.

        Raises Unreachable, and errors of the first run.
        """
        try:
            found = self._look()
        except (ValueError, Rejected) as error:  # nobody announces a server
            raise Unreachable(str(error)) from error
        over = found.run == self._ended and found.phase == FINISHED
        if over or found.run == self._left_out:
            if not quiet:
                log.info("waiting for the next run")
            return True
        try:
            self._take_part(found.address)
        except (ValueError, Rejected) as error:
            if not self._has_taken_part:
                raise
            name = printable(found.run, _MAX_NAME)
            log.warning("this client cannot take part in run %s: %s", name, error)
            self._left_out = found.run
        else:
            self._ended, self._has_taken_part = found.run, True
        return False
