"""Save and load one file of a client's state: an .npz followed by its SHA-256.

numpy reads such a file like any other .npz. The digest is needed because zip's own checksums cover
neither names nor the end of the file. Also read: format 2, whose unsent updates have an accuracy
and no evaluations, format 1, whose fields are a text of numpy's and
hold no bytes, and format 0, of before there was a digest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from featherfed.compression.arrays import Array
from featherfed.compression.files import replacing
from featherfed.edge_client.errors import ClientError

log = logging.getLogger(__name__)

Groups = dict[str, Sequence[Array]]
"""Group name (e.g. "weights") -> tensors."""

Content = tuple[dict[str, Any], dict[str, list[Array]]]
"""The file's fields, each of bytes or what JSON can hold, and the tensors of each group."""

FORMAT = 3
"""Number of the format written here; it is in each file."""

_BYTES = "bytes"
"""The group of the fields that are bytes."""
_DIGEST_BYTES = 32
_ZIP_END, _ZIP_END_BYTES = b"PK\5\6", 22
"""How the last record of a zip file begins, and its size: format 0 ends with it."""


class Damaged(Exception):
    """The file's digest or format is wrong; none of its content is used."""


def save(path: Path, fields: dict[str, Any], groups: Groups, *, sync_name: bool = True) -> None:
    """Replace the file atomically; raises OSError. `sync_name`: see `replacing`."""
    with replacing(path, sync_name=sync_name) as file:
        digesting = _DigestingWriter(file)
        with zipfile.ZipFile(digesting, "w") as archive:
            for name, array in _arrays(fields, groups):
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        file.write(digesting.sha.digest())


def load(path: Path) -> Content:
    """Return fields and tensors.

    Raises FileNotFoundError, PermissionError, Damaged, or ClientError for a newer format.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if not _is_format_0(file, size) and not _digest_fits(file, size):
                raise Damaged("its checksum does not fit")
        with np.load(path, allow_pickle=False) as archive:
            number = int(archive["format"]) if "format" in archive.files else 0
            _check_format(path, number)
            facts = archive["facts"]
            fields = json.loads(str(facts) if number < 2 else facts.tobytes())
            groups: dict[str, list[Array]] = {}
            for key in sorted(set(archive.files) - {"facts", "format"}):
                group, name = key.split("/")
                if group == _BYTES:
                    fields[name] = archive[key].tobytes()
                else:
                    groups.setdefault(group, []).append(archive[key])
            return fields, groups
    except (FileNotFoundError, PermissionError, ClientError):
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


class _DigestingWriter:
    """Writes to a file from its beginning to its end, and digests what it writes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Leave the file open: the digest follows."""


def _arrays(fields: dict[str, Any], groups: Groups) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield a file's arrays in its order, with their names."""
    plain = {name: value for name, value in fields.items() if not isinstance(value, bytes)}
    yield "format", np.array(FORMAT)
    yield "facts", np.frombuffer(json.dumps(plain).encode(), np.uint8)
    for name, value in fields.items():
        if isinstance(value, bytes):
            yield f"{_BYTES}/{name}", np.frombuffer(value, np.uint8)
    for group, tensors in groups.items():
        for i, tensor in enumerate(tensors):
            yield f"{group}/{i:05}", np.asarray(tensor)


def _check_format(path: Path, number: int) -> None:
    if number > FORMAT:
        raise ClientError(
            f"{path} was written by a newer featherfed: it has format {number}, this version knows "
            f"{FORMAT}. Update featherfed on this device, or choose another --state-dir"
        )


def _is_format_0(file: IO[bytes], size: int) -> bool:
    """Whether a file ends as a zip file does, with no digest behind it."""
    file.seek(max(0, size - _ZIP_END_BYTES))
    return file.read().startswith(_ZIP_END)


def _digest_fits(file: IO[bytes], size: int) -> bool:
    return _digest(file, max(0, size - _DIGEST_BYTES)) == file.read()


def _digest(file: IO[bytes], size: int) -> bytes:
    """Return the SHA-256 of the first `size` bytes, and leave the file's position behind them."""
    digest = hashlib.sha256()
    file.seek(0)
    while size and (piece := file.read(min(size, 2**20))):
        digest.update(piece)
        size -= len(piece)
    return digest.digest()
