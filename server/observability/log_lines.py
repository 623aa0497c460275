"""The newest lines of the log, for whoever watches a run."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from featherfed.proto.peer_text import printable

MOST_LINES = 200
MAX_CHARACTERS = 500
"""How much of a line is kept: it may hold a peer's text."""


class LogLines(logging.Handler):
    """Keeps the newest lines from the level INFO on."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[dict[str, str]] = deque(maxlen=MOST_LINES)
        self.count = 0
        """How many lines there were."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text = f"{text}: {record.exc_info[1]!r}"
        except (TypeError, ValueError):  # arguments that do not fit, which logging itself reports
            text = str(record.msg)
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname, "text": printable(text, MAX_CHARACTERS)}
        self._lines.append(line)
        self.count += 1

    def newest_first(self) -> list[dict[str, str]]:
        """Return the lines that are kept; nobody changes them."""
        self.acquire()
        try:
            return list(reversed(self._lines))
        finally:
            self.release()

    @contextmanager
    def collecting(self, logger: logging.Logger | None = None) -> Iterator[None]:
        """Keep the lines of a logger, the root by default, inside of this block."""
        logger = logger or logging.getLogger()
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
