"""Serves a live page in a thread and an event loop of its own, so that it holds up no round."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn

from featherfed.page.access import Access
from featherfed.page.app import PageApp
from featherfed.page.feed import MOST_WATCHERS, Feed, monotonic
from featherfed.page.source import Action, Snapshot, Source
from featherfed.server.errors import ServerError

_STOP_SECONDS = 2
"""Time that answers under way get when the page ends."""


class Keys(NamedTuple):
    """Files of a certificate chain and its key (PEM)."""

    chain: Path
    key: Path


class PageSocket:
    """The address of a page: taken early, and refusing connections until the page is there."""

    def __init__(self, address: str) -> None:
        """Take HOST:PORT (0: any port); raise ServerError if that cannot be."""
        host, _, port = address.rpartition(":")
        self.host = host.strip("[]")
        try:
            kind, *_, where = socket.getaddrinfo(
                self.host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self.socket = socket.socket(kind, socket.SOCK_STREAM)
            try:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.socket.bind(where)
            except OSError:
                self.socket.close()
                raise
        except (OSError, OverflowError) as error:
            raise ServerError(
                f"cannot serve the live page at {address}: {error}; choose another [server] page"
            ) from error
        self.port = int(self.socket.getsockname()[1])

    def close(self) -> None:
        """Give the address back."""
        self.socket.close()


class PageServer:
    """Serves one page from `start` until `close`."""

    def __init__(
        self,
        where: PageSocket,
        access: Access,
        source: Source,
        actions: Mapping[str, Action],
        shell: Callable[[str, Mapping[str, str], str], str],
        steady: Callable[[Snapshot], Any],
        keys: Keys | None = None,
    ) -> None:
        """`steady`, `shell`: see `Feed` and `PageApp`. `keys`: of TLS; None: without.

        Raises ServerError if the keys cannot be used.
        """
        self._where = where
        self._thread = threading.Thread(target=self._serve, name="page", daemon=True)
        self._source = source
        self._steady = steady
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._feed: Feed | None = None
        cookie = f"featherfed-{where.port}"

        def app(feed: Feed) -> Any:
            return PageApp(feed, access, actions, shell, cookie).asgi()

        self._app = app
        self._keys = keys
        host = "127.0.0.1" if where.host in ("", "0.0.0.0", "::") else where.host
        host = f"[{host}]" if ":" in host else host
        self.url = f"{'http' if keys is None else 'https'}://{host}:{where.port}/"

    def start(self) -> None:
        """Serve from now on; who connects before the loop runs waits for it."""
        self._where.socket.listen()
        self._thread.start()
        self._started.wait()

    def close(self) -> None:
        """End all streams and stop; waits a few seconds at the most."""
        if self._loop is not None and self._feed is not None:
            with suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._stop)
        self._thread.join(3 * _STOP_SECONDS)
        self._where.close()

    def _stop(self) -> None:
        assert self._feed is not None, "the loop runs"
        self._feed.close()
        self._server.should_exit = True

    def _serve(self) -> None:
        try:
            asyncio.run(self._until_stopped())
        finally:
            self._started.set()

    async def _until_stopped(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._feed = Feed(self._source, self._steady, monotonic)
        keys = self._keys
        config = uvicorn.Config(
            self._app(self._feed),
            log_config=None,
            log_level="critical",  # the guard logs failures; nobody needs those of peers
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=_STOP_SECONDS,
            limit_concurrency=2 * MOST_WATCHERS,
            h11_max_incomplete_event_size=16_384,
            http="h11",
            ws="none",
            ssl_certfile=None if keys is None else keys.chain,
            ssl_keyfile=None if keys is None else keys.key,
            ssl_version=ssl.PROTOCOL_TLS_SERVER,
        )
        self._server = uvicorn.Server(config)
        making = asyncio.create_task(self._feed.run())
        self._started.set()
        try:
            await self._server.serve(sockets=[self._where.socket])
        finally:
            making.cancel()
