"""A live page around a run without TensorFlow, and readers of what it sends."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from support.federation import Federation

from featherfed.api.live_page import ADDRESS_FILE, TOKEN_FILE, LivePage
from featherfed.page.access import Access
from featherfed.page.server import PageServer, PageSocket
from featherfed.page.source import Action, Snapshot
from featherfed.report.sections import shell
from featherfed.server.observability.snapshot import steady

FACTS = {"featherfed": "0", "num_test_examples": 1}
PAGE = {"port": 0, "linger": 60, "page": "127.0.0.1:0"}
"""[server] of a run with a page at any port."""


class Page:
    """A page as its readers see it."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token
        self.end: Callable[[], None] = lambda: None
        """Ends the page, if it is one of `served`."""
        self.http = httpx.Client(base_url=url, timeout=20)

    def close(self) -> None:
        """Close the connections to it."""
        self.http.close()

    def run(self) -> Any:
        """Return the snapshot."""
        answer = self.http.get("api/run")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def act(self, name: str, **values: Any) -> httpx.Response:
        """Do something with the token."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return self.http.post(f"api/actions/{name}", json=values, headers=headers)

    @contextlib.contextmanager
    def events(self, path: str = "api/events", **options: Any) -> Iterator[Iterator[Any]]:
        """Yield an iterator over (event, JSON) pairs; comments are ("", None)."""
        with self.http.stream("GET", path, **options) as answer:
            assert answer.status_code == 200, answer.status_code
            assert answer.headers["content-type"] == "text/event-stream"
            yield events_in(answer.iter_lines())


def events_in(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Yield the events of a stream's lines."""
    name, data = "", ""
    for line in lines:
        if line.startswith(":"):
            yield "", None
        elif line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
        elif not line and name:
            yield name, json.loads(data)
            name = ""


@contextlib.contextmanager
def page_of(server: Federation, export: Callable[[], Path] = Path) -> Iterator[Page]:
    """Serve a federation's page, whose settings ask for one."""
    with (
        LivePage(server.settings).prepared() as live,
        live.served(server.coordinator, server.address, FACTS, export),
    ):
        folder = Path(server.settings.output)
        page = Page((folder / ADDRESS_FILE).read_text(), (folder / TOKEN_FILE).read_text())
        with page.http:
            yield page


class Shown:
    """A source whose snapshot a test sets; parts are made of it without a run."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.now = snapshot
        self.made = 0
        self.slow = threading.Event()

    def snapshot(self) -> Snapshot:
        self.made += 1
        return self.now

    def sections(self, snapshot: Snapshot) -> dict[str, str]:
        return {"header": f"<h1>{snapshot['run']}</h1>", "nav": "", "log": str(snapshot["log"])}


@contextlib.contextmanager
def served(
    source: Any, access: Access | None = None, actions: dict[str, Action] | None = None, **more: Any
) -> Iterator[Page]:
    """Serve a page of a source."""
    access = access or Access.of(True, ())
    where = PageSocket("127.0.0.1:0")
    server = PageServer(where, access, source, actions or {}, shell, steady, **more)
    server.start()
    try:
        page = Page(server.url, access.token)
        page.end = server.close
        with page.http:
            yield page
    finally:
        server.close()


def empty(run: str = "test", **changes: Any) -> Snapshot:
    """Return the snapshot of a run that has not begun."""
    return {
        "schema": 1, "run": run, "started": "2026-01-01T00:00:00+00:00",
        "now": "2026-01-01T00:00:01+00:00", "phase": "waiting", "paused": False, "round": 1,
        "rounds": 3, "version": 0, "deadline_in": None, "waiting_for": 2,
        "join": "featherfed join 127.0.0.1:1 --data DATA",
        "metric": {"name": "accuracy", "larger_is_better": True}, "best": None,
        "bytes": {"up": 0, "down": 0, "wasted": 0, "float32": 0}, "points": [], "clients": [],
        "refusals": [], "versions": [], "log": [], **changes,
    }  # fmt: skip
