"""Logging: lines for people, or JSON lines for programs (docs/observability.md)."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext, suppress
from typing import TextIO

from featherfed.proto.peer_text import cut, escape

MAX_CHARACTERS = 4000
"""How much of an event's message is logged."""


def set_up(verbose: bool, format_: str = "text") -> None:
    """Log to standard error, one line an event, as `format_`: text or json."""
    # Before TensorFlow is imported: silences its start-up messages.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    handler = _AroundBars(sys.stderr)
    handler.setFormatter(_json() if format_ == "json" else TextFormatter())
    handler.addFilter(cut_texts)
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])
    for noisy in ("absl", "tensorflow", "h5py", "matplotlib", "asyncio", "PIL"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def say(text: str) -> None:
    """Log what a command does before any other part of it runs."""
    logging.getLogger("featherfed").info(text)


def cut_texts(record: logging.LogRecord) -> bool:
    """Cut the texts of an event after MAX_CHARACTERS each, since they may be a peer's."""
    with suppress(TypeError, ValueError):  # what does not fit its arguments; logging says so
        message = record.getMessage()
        if len(message) > MAX_CHARACTERS:
            record.msg, record.args = cut(message, MAX_CHARACTERS), None
    for name, value in record.__dict__.items():
        if isinstance(value, str) and name != "msg":
            setattr(record, name, cut(value, MAX_CHARACTERS))
    return True


class _AroundBars(logging.StreamHandler[TextIO]):
    """Writes lines above tqdm's progress bars, if any are shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        tqdm = sys.modules.get("tqdm")  # without it there is no bar
        with nullcontext() if tqdm is None else tqdm.tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class TextFormatter(logging.Formatter):
    """One line an event, even if it contains text from a peer; tracebacks are indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line."""
        record.message = escape(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        """Return the traceback, indented so that none of its lines looks like an event."""
        lines = super().formatException(ei).split("\n")  # type: ignore[arg-type]
        return "\n".join(f"    {escape(line)}" for line in lines)


def _json() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(
        "%(levelname)s %(name)s %(message)s",
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp=True,
        json_ensure_ascii=True,
    )
