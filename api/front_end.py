"""Accepts calls in a thread while this server waits as a standby, and passes them on."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

from featherfed.server.errors import CannotListen
from featherfed.server.rpc.front_end import FrontEnd
from featherfed.server.rpc.server import join_address
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.postgres_address import Leader

log = logging.getLogger(__name__)

START_SECONDS = 30.0
"""How long it may take until the port is had."""


class StandbyCalls:
    """A front end from the moment that it is known who leads until `close`.

    There is none where clients have credentials: only the connection to a client itself proves its
    name. And none where the port is in use, as by the server that leads, on the same machine.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._front: FrontEnd | None = None
        self._tried = False
        self.port = settings.server.port
        """Where it listens, or did."""

    def follow(self, leader: Leader | None) -> None:
        """Pass calls on to this server from now on; begin to listen the first time."""
        if not self._tried:
            self._tried = True
            self._start()
        if self._front is not None:
            self._call(self._front.follow(leader))

    def close(self) -> None:
        """End all calls, and give the port back."""
        self._tried = True
        if self._front is not None:
            self._call(self._front.stop())
            self._front = None
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None

    def _start(self) -> None:
        server = self._settings.server
        if self._settings.security.credentials is not None:
            log.warning(
                "this standby passes no calls on: with credentials, only a client's own connection "
                "proves its name", extra={"event": "no_front_end"},
            )  # fmt: skip
            return
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="front-end", daemon=True
        )
        self._thread.start()

        async def make() -> tuple[FrontEnd, int]:
            front = FrontEnd(2 * self._settings.limits.streams)
            return front, await front.start(join_address(server.host, server.port))

        try:
            self._front, self.port = self._call(make())
        except CannotListen as error:
            log.warning(
                "this standby passes no calls on: %s", error, extra={"event": "no_front_end"}
            )
            return
        log.info(
            "listening on %s, for the server that leads", join_address(server.host, self.port),
            extra={"event": "front_end"},
        )  # fmt: skip

    def _call(self, work: Any) -> Any:
        assert self._loop is not None, "it is started before"
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS)
