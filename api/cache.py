"""Files that are made again if they are lost, in the user's cache."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from featherfed.compression.files import write_whole

log = logging.getLogger(__name__)


class Cache:
    """Keeps contents of one kind under keys; a file's name ends in its content's digest."""

    def __init__(self, kind: str) -> None:
        """`kind`: a word that names the folder."""
        self._folder = cache_folder() / f"{kind}s"
        self._kind = kind

    def load(self, key: str) -> bytes | None:
        """Return the undamaged content under a key, None if there is none."""
        for path in self._folder.glob(f"{key}-*.{self._kind}"):
            try:
                content = path.read_bytes()
            except OSError:
                continue
            if path.stem == f"{key}-{_digest(content)}":
                return content
        return None

    def save(self, key: str, content: bytes) -> None:
        """Keep a content under a key; log if that cannot be."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._folder / f"{key}-{_digest(content)}.{self._kind}", content)
        except OSError as error:
            log.warning("a %s is made anew at every start: %s", self._kind, error)


def cache_key(*parts: object) -> str:
    """Return a key for what follows from these parts, by their texts."""
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:32]


def cache_folder() -> Path:
    """Return the package's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featherfed"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
