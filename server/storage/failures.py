"""Failures to write: what they mean to callers, and logging them once instead of at every call.

A database that cannot be written now is `CannotStore`: the caller tries again. One that is damaged
is `ServerError`: only a person can mend that.
"""

from __future__ import annotations

import logging
import sqlite3
import threading

from featherfed.server.errors import CannotStore, ServerError

log = logging.getLogger(__name__)

_NOT_WRITABLE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def translate(error: sqlite3.Error, path: object) -> Exception:
    """Return the CannotStore or ServerError that an error of the disk means, or `error` itself."""
    if is_of_the_disk(error):
        return CannotStore(str(error))
    if _code(error) in _DAMAGED:
        return damaged(path, str(error))
    return error


def is_of_the_disk(error: Exception) -> bool:
    """Whether a failure is the disk's, and not one of what stands on it."""
    return _code(error) in _NOT_WRITABLE


def _code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # without the extended part


def damaged(path: object, what: str) -> ServerError:
    """Return the error for a database that must not be used any more."""
    return ServerError(
        f"the run database {path} is damaged ({what}); nothing was changed. Move run.db* away "
        "and put a backup (`featherfed backup`) in its place, or choose another output directory "
        "to start anew"
    )


class WriteFailures:
    """Logs the first failure to write, and the first success after it; safe in several threads."""

    def __init__(self, what: str, remedy: str = "make room") -> None:
        """`what`: the name of what is written, for the log; `remedy`: what a person should do."""
        self._what = what
        self._remedy = remedy
        self._lock = threading.Lock()
        self.failing = False

    def failed(self, error: Exception) -> None:
        """Record a failure; log it if the last attempt succeeded."""
        with self._lock:
            if not self.failing:
                log.error(
                    "cannot write %s: %s; %s. Trying again until it works",
                    self._what, error, self._remedy,
                    extra={"event": "storage_failing", "what": self._what},
                )  # fmt: skip
            self.failing = True

    def succeeded(self) -> None:
        """Record a success; log it if the last attempt failed."""
        if not self.failing:
            return
        with self._lock:
            self.failing = False
            log.warning(
                "%s can be written again", self._what,
                extra={"event": "storage_working", "what": self._what},
            )  # fmt: skip
