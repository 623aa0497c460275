"""Reads a .keras archive as data: its configuration and its weights; runs none of its code."""

from __future__ import annotations

import json
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from featherfed.models.errors import ModelError
from featherfed.models.serialization import MAX_PARAMETERS

MAX_CONFIG_BYTES = 8 << 20
MAX_WEIGHTS_BYTES = 16 * MAX_PARAMETERS
"""Of model.weights.h5 when it is unpacked: an optimizer's state may lie beside the weights."""
_CHUNK = 1 << 20
_REMEDY = "save the model anew with model.save('model.keras')"


class KerasArchive:
    """A .keras file: a zip of config.json and model.weights.h5."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def config(self) -> dict[str, Any]:
        """Return the content of config.json; raise ModelError if there is none to use."""
        with self._member("config.json", MAX_CONFIG_BYTES) as file:
            text = file.read()
        try:
            config = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(
                f"{self._path}: config.json is not JSON ({error}); {_REMEDY}"
            ) from None
        if not isinstance(config, dict):
            raise ModelError(f"{self._path}: config.json is no object; {_REMEDY}")
        return config

    @contextmanager
    def weights(self) -> Iterator[Path]:
        """Yield model.weights.h5, unpacked into a folder that is deleted afterwards."""
        with (
            tempfile.TemporaryDirectory(prefix="featherfed-") as folder,
            self._member("model.weights.h5", MAX_WEIGHTS_BYTES) as file,
        ):
            unpacked = Path(folder) / "model.weights.h5"
            with unpacked.open("wb") as out:
                while chunk := file.read(_CHUNK):
                    out.write(chunk)
            yield unpacked

    @contextmanager
    def _member(self, name: str, most: int) -> Iterator[IO[bytes]]:
        """Yield a file of the archive that ends after `most` bytes at the latest."""
        try:
            with zipfile.ZipFile(self._path) as archive:
                if name not in archive.namelist():
                    raise ModelError(
                        f"{self._path} holds no {name}; {_REMEDY}, in one file and not in shards"
                    )
                # zipfile reads no more than this, whatever the compressed data would give.
                size = archive.getinfo(name).file_size
                if size > most:
                    raise ModelError(
                        f"{self._path}: {name} has {size} bytes; at most {most} are possible"
                    )
                with archive.open(name) as file:
                    yield file
        except ModelError:
            raise
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise self._unreadable(error) from error
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or an odd compression
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> ModelError:
        text = getattr(error, "strerror", None) or str(error)
        return ModelError(f"cannot read {self._path} as a .keras archive: {text}; {_REMEDY}")
