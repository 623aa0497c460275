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
    """The file of one round before: it is right up to byte `end`, where `lacks` belongs."""

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
        self._last = 0
        """Where the newest round begins."""
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
                self._last = file.tell()
                file.write(_text(round_, first=not count))
                count += 1
            self._end = file.tell()
            file.write(_after_rounds(tail))
        self.num_rounds = count

    def append(self, round_: Any, tail: dict[str, Any], before: Any = None) -> None:
        """Add a round to those of `replace`, of which there is one at least; raise OSError.

        `before`: the round before it, written anew; None if it is as it was. If that fails, the
        file is as it was, and the next `replace` writes it again.
        """
        spare, self._spare = self._spare or self._copy(), None
        # Both files hold the same up to here; the text is what the other one lacks then.
        begin, text = self._end, b""
        if before is not None:
            begin, text = self._last, _text(before, first=self.num_rounds == 1)
        last = begin + len(text)
        text += _text(round_, first=False)
        with self._spare_path.open("r+b") as file:
            file.seek(spare.end)
            file.truncate()
            file.write(spare.lacks[: max(0, begin - spare.end)])
            file.seek(min(begin, file.tell()))
            file.truncate()
            file.write(text)
            end = file.tell()
            file.write(_after_rounds(tail))
        if self._swap():
            self._spare = _Spare(begin, text)
        self._last, self._end = last, end
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
