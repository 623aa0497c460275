"""Logging a lasting problem once instead of at every call."""

from __future__ import annotations

import logging


class LogOnce:
    """Logs an error unless it is the same as the last one."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._last = ""

    def error(self, message: str) -> None:
        """Log an error that differs from the last."""
        if message != self._last:
            self._log.error("%s", message)
        self._last = message
