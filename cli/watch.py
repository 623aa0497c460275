"""`featherfed watch`: show what a run is doing until it has finished."""

from __future__ import annotations

import io
import queue
import sys
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import click
from rich.console import Console

from featherfed.cli.page_source import Away, PageSource
from featherfed.cli.snapshot import Line, Snapshot
from featherfed.cli.watch_view import (
    TerminalView,
    bytes_line,
    score_line,
    short_time,
    waiting_line,
)
from featherfed.edge_client.errors import Unreachable

WAITING_MESSAGES = 8
"""Messages of the page that wait at most to be shown; the page waits for more."""


class View(Protocol):
    """Shows what comes of a page."""

    def show(self, message: Snapshot | Away) -> None:
        """Show a snapshot, or that the page is away."""


def watch_run(address: str, token: str | None, give_up_after: float | None) -> None:
    """Show the run whose live page is at `address` until it has finished.

    `give_up_after`: seconds without the page, None for never. Raises Unreachable after them, and
    PageError if the page cannot be used.
    """
    ended = threading.Event()
    source = PageSource(address, token, sleep=ended.wait)
    try:
        with _view(address) as view:
            _show_until_finished(_Reader(source, ended), view, give_up_after)
    finally:
        ended.set()


def _view(address: str) -> AbstractContextManager[View]:
    if _can_draw():
        return TerminalView(address)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may have any letters
    return nullcontext(PlainView())


def _can_draw() -> bool:
    """Whether the output is a terminal that can be drawn on, with the letters of bars."""
    console = Console()
    return console.is_terminal and not console.is_dumb_terminal and not console.options.ascii_only


class _Reader:
    """Reads a page in a thread of its own, so that Ctrl-C and the screen wait for nothing."""

    def __init__(self, source: PageSource, ended: threading.Event) -> None:
        self._source = source
        self._ended = ended
        self._messages: queue.Queue[Snapshot | Away | Exception] = queue.Queue(WAITING_MESSAGES)
        threading.Thread(target=self._read, name="page", daemon=True).start()

    def next(self) -> Snapshot | Away:
        """Return the next message, once there is one; raise what reading the page raised."""
        message = self._messages.get()
        if isinstance(message, Exception):
            raise message
        return message

    def _read(self) -> None:
        try:
            for message in self._source.messages():
                if self._ended.is_set():
                    return
                self._messages.put(message)
                if isinstance(message, Snapshot) and message.finished:
                    return
        except Exception as error:  # raised where somebody sees it
            self._messages.put(error)


def _show_until_finished(reader: _Reader, view: View, give_up_after: float | None) -> None:
    newest: Snapshot | None = None
    heard = time.monotonic()
    while newest is None or not newest.finished:
        message = reader.next()  # a page that is away says so again and again
        view.show(message)
        if isinstance(message, Snapshot):
            newest, heard = message, time.monotonic()
        elif newest is not None and newest.version >= newest.rounds > 0:
            return  # the server ended between two snapshots
        elif give_up_after is not None and time.monotonic() - heard >= give_up_after:
            raise Unreachable(f"no live page for {give_up_after:.0f} seconds: {message.why}")


class PlainView:
    """Prints a line for each change: for logs, pipes and terminals that cannot be drawn on."""

    def __init__(self) -> None:
        self._status = ""
        self._why_away: str | None = None
        self._refusals: Counter[Line] | None = None

    def show(self, message: Snapshot | Away) -> None:
        """Print what has changed, if anything has."""
        if isinstance(message, Away):
            if message.why != self._why_away:
                click.echo(f"no answer from the page ({message.why}); looking for it again")
            self._why_away = message.why
            return
        self._why_away = None
        if (status := _status(message)) != self._status:
            self._status = status
            click.echo(f"{status}; {bytes_line(message)}")
        self._show_refusals(message)

    def _show_refusals(self, snapshot: Snapshot) -> None:
        there = Counter(snapshot.refusals)
        if self._refusals is not None:
            for line in reversed(list((there - self._refusals).elements())):
                click.echo(f"refused at {short_time(line.time)}: {line.who} {line.text}")
        self._refusals = there


def _status(snapshot: Snapshot) -> str:
    """Return a line that changes when something happened in the run."""
    counts = Counter(client.state for client in snapshot.clients)
    parts = [
        f"{snapshot.run}: round {snapshot.round} of {snapshot.rounds}, {snapshot.phase}",
        score_line(snapshot),
    ]
    if counts:
        parts.append(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    if snapshot.waiting_for:
        parts.append(f"{waiting_line(snapshot)}, by: {snapshot.join}")
    return "; ".join(parts)
