"""Reads the four idx files of MNIST and its relatives, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featherfed.datasets.dataset import Dataset, DatasetError

_SPLITS = ("train", "t10k")
_KINDS = {"images-idx3-ubyte": 3, "labels-idx1-ubyte": 1}


def has_idx_files(folder: Path) -> bool:
    """Return whether ``folder`` holds all four idx files, each plain or as .gz."""
    return all(_find(folder, f"{split}-{kind}") for split in _SPLITS for kind in _KINDS)


def load_idx_folder(
    folder: Path, class_names: Sequence[str] | None = None
) -> tuple[Dataset, Dataset]:
    """Read the train and test sets of a folder for which `has_idx_files` is true.

    Without ``class_names`` the classes are "0" .. the largest label of either part. Raises
    `DatasetError` for a corrupted gzip, a wrong magic number, or a length that contradicts the
    header.
    """
    parts = [
        (_read(folder, f"{split}-images-idx3-ubyte"), _read(folder, f"{split}-labels-idx1-ubyte"))
        for split in _SPLITS
    ]
    if class_names is None:
        top = max(int(labels.max(initial=0)) for _, labels in parts)
        class_names = [str(index) for index in range(top + 1)]
    try:
        train, test = (Dataset.from_images(*part, class_names) for part in parts)
    except DatasetError as error:
        raise DatasetError(f"{folder}: {error}") from error
    return train, test


def _find(folder: Path, name: str) -> Path | None:
    candidates = (folder / f"{name}.gz", folder / name)
    return next((path for path in candidates if path.is_file()), None)


def _read(folder: Path, name: str) -> NDArray[np.uint8]:
    path = _find(folder, name)
    if path is None:
        raise DatasetError(f"{folder}: lacks {name}.gz")
    rank = _KINDS[name.partition("-")[2]]
    data = _read_bytes(path)
    header = np.frombuffer(data[: min(4 * (rank + 1), len(data) // 4 * 4)], dtype=">u4")
    # 0x08 means unsigned bytes; the last byte of the magic number is the rank.
    if len(header) != rank + 1 or int(header[0]) != 0x0800 + rank:
        raise DatasetError(f"{path}: not an idx file of {rank}-dimensional bytes; fetch it again")
    shape = [int(size) for size in header[1:]]
    expected = 4 * (rank + 1) + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise DatasetError(
            f"{path}: its header says {shape}, {expected} bytes in all, but it has {len(data)};"
            " fetch it again"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=4 * (rank + 1)).reshape(shape).copy()


def _read_bytes(path: Path) -> bytes:
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); fetch it again") from error
