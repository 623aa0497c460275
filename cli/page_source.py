"""Reads the snapshots that a run's live page sends, and looks for the page again when it is away.

The page sends them as Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

from __future__ import annotations

import http.client
import random
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from featherfed.cli.snapshot import PageError, Snapshot, parse

SILENCE_SECONDS = 45.0
"""A page that sends nothing for so long is away: it sends a comment every 15 seconds."""
MAX_EVENT_BYTES = 8_000_000
"""The longest event that is read; a snapshot of 10,000 clients has about 2,000,000."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds before the page is looked for again; they double with each try."""
_EVENTS = "/api/events"


@dataclass(frozen=True)
class Away:
    """The page does not answer now, and why; it is looked for again."""

    why: str


class PageSource:
    """Yields what a live page sends, and that it is away, until nobody asks any more."""

    def __init__(
        self, address: str, token: str | None, *, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        """Read the page at `address`, HOST:PORT or its URL, with its token if it asks for one.

        `sleep` gets seconds, and returns True if nobody asks any more. Raises PageError for an
        address or token that can be none.
        """
        self._url = _page_url(address)
        given = urllib.parse.parse_qs(self._url.query).get("token", [None])[0]
        self._token = token or given
        if self._token is not None and not (self._token.isascii() and self._token.isprintable()):
            raise PageError("the token has characters that no token has; copy page.token again")
        self._sleep = sleep

    def messages(self) -> Iterator[Snapshot | Away]:
        """Yield snapshots as they come; raise PageError if the page can never be read."""
        pause = FIRST_PAUSE
        while True:
            try:
                for snapshot in self._snapshots():
                    pause = FIRST_PAUSE
                    yield snapshot
                why = "it ended the connection"
            except (OSError, http.client.HTTPException) as error:
                why = str(error) or type(error).__name__
            yield Away(why)
            if self._sleep(pause * random.uniform(0.5, 1.0)):
                return
            pause = min(2 * pause, LONGEST_PAUSE)

    def _snapshots(self) -> Iterator[Snapshot]:
        with (
            closing(self._connection()) as connection,
            closing(self._ask(connection)) as answer,
        ):
            _check(answer)
            yield from map(parse, run_events(answer.readline))

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme == "https":  # behind a proxy that encrypts
            return http.client.HTTPSConnection(host, port, timeout=SILENCE_SECONDS)
        return http.client.HTTPConnection(host, port, timeout=SILENCE_SECONDS)

    def _ask(self, connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
        """Return the answer whose body is the events, if the page gives any."""
        headers = {"Accept": "text/event-stream"}
        path = _EVENTS
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
            path += "?" + urllib.parse.urlencode({"token": self._token})
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        if answer.status in (302, 303, 307) and (cookie := answer.getheader("Set-Cookie")):
            # The page took the token and gives a cookie for it. Where it points to does not matter.
            answer.close()
            connection.close()
            headers["Cookie"] = cookie.split(";")[0]
            connection.request("GET", _EVENTS, headers=headers)
            answer = connection.getresponse()
        return answer


def run_events(readline: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield the data of each event `run` of a stream; raise PageError for one that is too long."""
    name, data, size = b"", list[bytes](), 0
    while line := readline(MAX_EVENT_BYTES + 1):
        size += len(line)
        if size > MAX_EVENT_BYTES:
            raise PageError(f"the page sends an event of more than {MAX_EVENT_BYTES:,} bytes")
        field, _, value = line.rstrip(b"\r\n").partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value
        elif field == b"data":
            data.append(value)
        elif not line.strip(b"\r\n"):
            if name == b"run" and data:
                yield b"\n".join(data)
            name, data, size = b"", [], 0
        elif not field:  # a comment, which keeps the connection alive
            size -= len(line)


def _page_url(address: str) -> urllib.parse.SplitResult:
    url = urllib.parse.urlsplit(address if "://" in address else f"http://{address}")
    try:
        (url.hostname or "").encode("idna")
        complete = url.scheme in ("http", "https") and url.hostname and url.port
    except ValueError:  # no port, or no name of a host
        complete = False
    if not complete:
        raise PageError(f"{address!r} is no HOST:PORT of a live page; the server logs the page's")
    return url


def _check(answer: http.client.HTTPResponse) -> None:
    """Raise PageError if an answer is not a live page's, OSError if it may be one later."""
    if answer.status in (401, 403):
        raise PageError(
            "the page asks for its token: --token or FEATHERFED_PAGE_TOKEN; it is in page.token of "
            "the run's output folder, and another one after each start of the server"
        )
    if answer.status in (429, 500, 502, 503, 504):
        raise OSError(f"it answers with status {answer.status}")
    kind = answer.headers.get_content_type()
    if answer.status != 200 or kind != "text/event-stream":
        raise PageError(
            f"no live page of a run answers there (status {answer.status}); is it the port of the "
            "page, not that of the clients?"
        )
