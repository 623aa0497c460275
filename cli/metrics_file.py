"""metrics.json, whole at any moment, and extended at the price of its newest round."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from featherfed.compression.files import put_in_place, replacing


class _Spare(NamedTuple):
    """The file of one round before: its rounds end at byte `end`, and it lacks the text `lacks`."""

    end: int
    lacks: bytes


class MetricsFile:
    """Writes a JSON object whose list `rounds` grows.

    Two files take turns: a round is written into the one that readers do not see, after the round
    that it lacks, and then it takes the other's place. Whoever reads for longer than a round takes
    may find it changed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spare_path = path.with_name(f".spare-{path.name}")
        self._second_name = path.with_name(f".second-{path.name}")
        self._spare: _Spare | None = None
        self._end = 0
        self.num_rounds = 0
        """Rounds that this process has written; 0 before `replace`."""

    def replace(self, head: dict[str, Any], rounds: Iterable[Any], tail: dict[str, Any]) -> None:
        """Write all anew, one round in memory at a time; entries of `tail` come after the rounds.

        Raises OSError.
        """
        self._forget_spare()
        self.num_rounds = count = 0
        with replacing(self._path) as file:
            file.write(json.dumps(head, indent=1).removesuffix("\n}").encode())
            file.write(b',\n "rounds": [')
            for round_ in rounds:
                file.write(_text(round_, first=not count))
                count += 1
            self._end = file.tell()
            file.write(_after_rounds(tail))
        self.num_rounds = count

    def append(self, round_: Any, tail: dict[str, Any]) -> None:
        """Add a round to those of `replace`, of which there is one at least; raise OSError.

        If that fails, the file is as before, and the next `replace` writes it again.
        """
        before, self._spare = self._spare or self._copy(), None
        text = _text(round_, first=False)
        with self._spare_path.open("r+b") as file:
            file.seek(before.end)
            file.truncate()
            file.write(before.lacks + text)
            end = file.tell()
            file.write(_after_rounds(tail))
        if self._swap():
            self._spare = _Spare(self._end, text)
        self._end = end
        self.num_rounds += 1

    def _copy(self) -> _Spare:
        shutil.copyfile(self._path, self._spare_path)
        return _Spare(self._end, b"")

    def _swap(self) -> bool:
        """Let the two files change places; return False if there is only one of them now."""
        self._second_name.unlink(missing_ok=True)
        with suppress(OSError):  # a file system without hard links
            os.link(self._path, self._second_name)
        put_in_place(self._spare_path, self._path)
        if not self._second_name.exists():
            return False
        self._second_name.replace(self._spare_path)
        return True

    def _forget_spare(self) -> None:
        self._spare = None
        for path in (self._spare_path, self._second_name):  # the second only if it was killed
            path.unlink(missing_ok=True)


def _text(round_: Any, first: bool) -> bytes:
    return ("\n  " if first else ",\n  ").encode() + json.dumps(round_).encode()


def _after_rounds(tail: dict[str, Any]) -> bytes:
    return ("\n ],\n" + json.dumps(tail, indent=1).removeprefix("{\n")).encode()
