"""A live page of a run: a small HTTP server on this machine that sends what a test tells it."""

from __future__ import annotations

import copy
import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SNAPSHOT: dict[str, Any] = {
    "schema": 1,
    "run": "digits",
    "started": "2026-03-01T10:00:00+00:00",
    "now": "2026-03-01T10:01:00+00:00",
    "phase": "training",
    "round": 3,
    "rounds": 7,
    "version": 2,
    "deadline_in": 95.5,
    "waiting_for": 0,
    "join": "featherfed join 127.0.0.1:8765 --data FILE",
    "metric": {"name": "accuracy", "larger_is_better": True},
    "best": {"version": 2, "score": 0.9333},
    "bytes": {"up": 12_000, "down": 34_500, "wasted": 321, "float32": 9_000_000},
    "points": [
        {"round": 1, "score": 0.71, "loss": 0.9, "seconds": 4.2, "up": 6000, "down": 0,
         "discarded": None},
        {"round": 2, "score": 0.9333, "loss": 0.3, "seconds": 3.9, "up": 6000, "down": 34_500,
         "discarded": None},
    ],
    "clients": [
        {"name": "kitchen", "state": "training", "heard_ago": 2.5, "examples": 287,
         "seconds": 1.25, "runtime": "litert", "temperature": 61.4, "battery": 80.0,
         "score": 0.91},
        {"name": "garden", "state": "reported", "heard_ago": 71.0, "examples": 290,
         "seconds": 1.5, "runtime": "keras", "temperature": None, "battery": None, "score": None},
    ],
    "refusals": [
        {"time": "2026-03-01T10:00:58+00:00", "client": "attic", "reason": "LATE",
         "text": "the round is closed"},
    ],
    "versions": [{"version": 2, "digest": "ab", "size": 900}],
    "log": [{"time": "2026-03-01T10:00:59+00:00", "level": "INFO", "text": "round 3: open"}],
}  # fmt: skip


def snapshot(**changes: Any) -> dict[str, Any]:
    """Return SNAPSHOT with other values."""
    return {**copy.deepcopy(SNAPSHOT), **changes}


class FakePage:
    """Answers /api/events with the events that `send` and `send_raw` give it; `port` 0: any."""

    def __init__(self, port: int = 0, token: str | None = None, redirects: bool = False) -> None:
        self.token = token
        self.redirects = redirects
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._events: queue.Queue[bytes | None] = queue.Queue()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.address = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def send(self, data: Any) -> None:
        self.send_raw(b": alive\n\nevent: run\ndata: " + json.dumps(data).encode() + b"\n\n")
        if data.get("phase") == "finished":
            self.break_off()

    def send_raw(self, data: bytes) -> None:
        self._events.put(data)

    def break_off(self) -> None:
        """End the connection after what was sent before."""
        self._events.put(None)

    def close(self) -> None:
        self.break_off()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _allows(self, handler: BaseHTTPRequestHandler) -> bool:
        if self.token is None:
            return True
        if self.redirects:
            return handler.headers["Cookie"] == f"page={self.token}"
        return f"?token={self.token}" in handler.path

    def _handler(page) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                page.requests.append((self.path, dict(self.headers)))
                if page.redirects and f"?token={page.token}" in self.path:
                    self.send_response(303)
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                    self.send_header("Set-Cookie", f"page={page.token}; HttpOnly; SameSite=Strict")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                known = self.path.split("?")[0] == "/api/events"
                allowed = known and page._allows(self)
                self.send_response(200 if allowed else 401 if known else 404)
                self.send_header("Content-Type", "text/event-stream; charset=utf-8")
                self.end_headers()
                while allowed and (data := page._events.get()) is not None:
                    self.wfile.write(data)
                    self.wfile.flush()

        return Handler
