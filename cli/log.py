"""Logging: lines for people, or JSON lines for programs (docs/observability.md)."""

from __future__ import annotations

import logging
import os
import sys

from featherfed.proto.peer_text import escape


def set_up(verbose: bool, format_: str = "text") -> None:
    """Log to standard error, one line an event, as `format_`: text or json."""
    # Before TensorFlow is imported: silences its start-up messages.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_json() if format_ == "json" else TextFormatter())
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])
    for noisy in ("absl", "tensorflow", "h5py", "matplotlib", "asyncio", "PIL"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


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
