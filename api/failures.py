"""Lists what could not be made of a finished run; the rest is made all the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

_MAX_WHY = 500


class Failures:
    """Collects `final.failed` of metrics.json: files, and why they could not be made."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []

    @contextmanager
    def noted(self, file: str) -> Iterator[None]:
        """Note and log an exception of the block, which makes `file`, and go on after the block.

        What the disk does not take now is raised: the caller tries all of it again.
        """
        try:
            yield
        except Exception as error:  # Keras, the converter and matplotlib raise whatever they like
            if isinstance(error, OSError):
                raise
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from None
            known = isinstance(error, ValueError)
            why = " ".join(str(error).split())[:_MAX_WHY]
            log.warning("%s could not be made: %s", file, why, exc_info=not known)
            self.rows.append({"file": file, "why": why or type(error).__name__})
