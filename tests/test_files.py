"""Files that are replaced whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.disk import fill

from featherfed.compression.files import replacing, scratch_of, write_whole


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")

    def fail_in_the_middle() -> None:
        with replacing(path) as file:
            file.write(b"ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in_the_middle()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text("utf-8") == "old"
    scratch_of(path).write_bytes(b"of a process that was killed, and longer than what comes")
    write_whole(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"new"


def test_a_full_disk_leaves_the_old_file(small_disk: Path) -> None:
    path = small_disk / "metrics.json"
    write_whole(path, "old")
    fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, bytes(10**7))
    assert path.read_text("utf-8") == "old"
    assert not scratch_of(path).exists()
