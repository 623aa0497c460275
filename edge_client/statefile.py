"""Save and load one file of a client's state: an .npz followed by its SHA-256.

numpy reads such a file like any other .npz. The digest is needed because zip's own checksums cover
neither names nor the end of the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.files import replacing

log = logging.getLogger(__name__)

Groups = dict[str, Sequence[Array]]
"""Group name (e.g. "weights") -> tensors."""

Content = tuple[dict[str, Any], dict[str, list[Array]]]
"""The file's fields that JSON can hold, and the tensors of each group."""

_DIGEST_BYTES = 32


class Damaged(Exception):
    """The file's digest or format is wrong; none of its content is used."""


def save(path: Path, fields: dict[str, Any], groups: Groups) -> None:
    """Replace the file atomically; raises OSError."""
    arrays = {f"{g}/{i:05}": t for g, tensors in groups.items() for i, t in enumerate(tensors)}
    with replacing(path) as file:
        np.savez(file, facts=np.array(json.dumps(fields)), **arrays)  # type: ignore[arg-type]
        file.write(_digest(file, file.tell()))


def load(path: Path) -> Content:
    """Return fields and tensors. Raises FileNotFoundError, PermissionError or Damaged."""
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


def warn_unwritable(path: Path, error: OSError, kept: str, loss: str) -> None:
    """Log that `path` cannot be written: `kept` goes on in memory; `loss` is what a crash costs."""
    log.warning(
        "cannot write %s: %s; make room or allow writing there. %s goes on in memory; should this "
        "process end before that, %s",
        path, error.strerror, kept, loss, extra={"event": "state_unsaved", "file": path.name},
    )  # fmt: skip


def _digest(file: IO[bytes], size: int) -> bytes:
    """Return the SHA-256 of the first `size` bytes, and leave the file's position behind them."""
    digest = hashlib.sha256()
    file.seek(0)
    while size and (piece := file.read(min(size, 2**20))):
        digest.update(piece)
        size -= len(piece)
    return digest.digest()
