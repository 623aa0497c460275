"""One file of a client's state: an .npz, and after it the SHA-256 of all of it.

numpy reads such a file as any other. zip's own checksums cover less: not the names, not the ends.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.files import replacing

Groups = dict[str, Sequence[Array]]
"""Tensors by what they are, e.g. "weights"."""

Content = tuple[dict[str, Any], dict[str, list[Array]]]
"""Facts, and the tensors of each group."""

_DIGEST_BYTES = 32


class Damaged(Exception):
    """A file that is not what was written; nothing of it can be trusted."""


def save(path: Path, facts: dict[str, Any], groups: Groups) -> None:
    """Replace a file, whole or not at all; raises OSError."""
    arrays = {f"{g}/{i:05}": t for g, tensors in groups.items() for i, t in enumerate(tensors)}
    with replacing(path) as file:
        np.savez(file, facts=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]
        file.write(_digest(file, file.tell()))


def load(path: Path) -> Content:
    """Return what was saved. Raises FileNotFoundError, PermissionError, or Damaged."""
    try:
        with path.open("rb") as file:
            size = max(0, path.stat().st_size - _DIGEST_BYTES)
            if _digest(file, size) != file.read():
                raise Damaged("its checksum does not fit")
        with np.load(path, allow_pickle=False) as archive:
            groups: dict[str, list[Array]] = {}
            for key in sorted(set(archive.files) - {"facts"}):
                groups.setdefault(key.split("/")[0], []).append(archive[key])
            return json.loads(str(archive["facts"])), groups
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise Damaged(str(error)) from error


def _digest(file: IO[bytes], size: int) -> bytes:
    """Return the SHA-256 of the first `size` bytes, and leave the file at their end."""
    digest = hashlib.sha256()
    file.seek(0)
    while size and (piece := file.read(min(size, 2**20))):
        digest.update(piece)
        size -= len(piece)
    return digest.digest()
