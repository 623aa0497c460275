"""A labelled set of images in memory: checked when it is made, saved and loaded as .npz."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class DatasetError(ValueError):
    """Data that cannot be used; the message says what, where, and what to do."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and their labels.

    ``images`` is uint8 ``[N, H, W, C]`` (``[N, H, W]`` gets a channel axis), ``labels`` is int64
    ``[N]`` with values in ``0 .. len(class_names) - 1``. Raises `DatasetError` otherwise, and when
    there is no example at all.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim == 3:
            object.__setattr__(self, "images", self.images[..., np.newaxis])
        object.__setattr__(self, "class_names", tuple(self.class_names))
        _check_images(self.images)
        _check_labels(self.labels, len(self.images), len(self.class_names))

    @classmethod
    def from_arrays(
        cls,
        images: ArrayLike,
        labels: ArrayLike,
        class_names: Sequence[str] | None = None,
    ) -> Dataset:
        """Make a data set from looser arrays.

        ``images``: uint8, or float within [0, 1] (scaled to 0..255 and rounded; any other float
        range is refused, as its scale is unknown). ``labels``: any integer type, ``[N]`` or
        ``[N, 1]``. Without ``class_names`` the classes are named "0", "1", ... up to the largest
        label. Raises `DatasetError`.
        """
        label_array = _as_int64(np.asarray(labels))
        if class_names is None:
            top = int(label_array.max()) if label_array.size else 0
            class_names = [str(index) for index in range(top + 1)]
        return cls(_as_uint8(np.asarray(images)), label_array, tuple(map(str, class_names)))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    @property
    def num_classes(self) -> int:
        """How many classes there are, also those without an example here."""
        return len(self.class_names)

    @property
    def has_class_names(self) -> bool:
        """Whether the classes have names of their own, not just their numbers."""
        return self.class_names != tuple(str(i) for i in range(self.num_classes))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: ArrayLike) -> Dataset:
        """Return the examples at ``indices`` (integers ``[M]``, or a bool mask ``[N]``), copied."""
        chosen = np.asarray(indices)
        if chosen.size == 0:
            raise DatasetError("cannot take zero examples: a data set needs at least one")
        try:
            return Dataset(self.images[chosen], self.labels[chosen], self.class_names)
        except IndexError as error:
            raise DatasetError(f"cannot take these of {len(self)} examples: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write a compressed .npz with the arrays images, labels and class_names."""
        with Path(path).open("wb") as file:
            np.savez_compressed(
                file,
                images=self.images,
                labels=self.labels,
                class_names=np.array(self.class_names, dtype=np.str_),
            )

    @classmethod
    def load(cls, path: str | Path) -> Dataset:
        """Read what `save` wrote; float images within [0, 1] are accepted and become uint8.

        Nothing is unpickled. Raises `DatasetError` when the file is missing, not an .npz, lacks
        an array, or holds arrays that `from_arrays` refuses.
        """
        arrays = _read_npz(Path(path))
        try:
            return cls.from_arrays(
                arrays["images"], arrays["labels"], [str(name) for name in arrays["class_names"]]
            )
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}") from error


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    keys = ("images", "labels", "class_names")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DatasetError(f"{path}: one bare array; save images, labels and class_names")
        with archive:
            missing = [key for key in keys if key not in archive]
            if missing:
                raise DatasetError(
                    f"{path}: lacks {', '.join(missing)}; it holds"
                    f" {', '.join(archive) or 'nothing'}. Write it with Dataset.save,"
                    " or np.savez(path, images=, labels=, class_names=)"
                )
            arrays = {key: archive[key] for key in keys}
    except DatasetError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{path}: not a readable .npz file ({error})") from error
    if arrays["class_names"].ndim != 1:
        raise DatasetError(f"{path}: class_names must be a list of names")
    return arrays


def _as_uint8(images: NDArray[Any]) -> NDArray[np.uint8]:
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise DatasetError(f"images are {images.dtype}; give uint8, or float within [0, 1]")
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        raise DatasetError(
            f"float images span {images.min():g} to {images.max():g}; give floats within [0, 1],"
            " or uint8"
        )
    scaled: NDArray[np.uint8] = np.rint(images * 255).astype(np.uint8)
    return scaled


def _as_int64(labels: NDArray[Any]) -> NDArray[np.int64]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if not np.issubdtype(labels.dtype, np.integer):
        raise DatasetError(f"labels are {labels.dtype}; give integers, one class index per image")
    return labels.astype(np.int64)


def _check_images(images: NDArray[np.uint8]) -> None:
    if images.dtype != np.uint8:
        raise DatasetError(f"images are {images.dtype}; uint8 is needed (see Dataset.from_arrays)")
    if images.ndim != 4:
        raise DatasetError(f"images have shape {images.shape}; [N, H, W, C] or [N, H, W] is needed")
    if 0 in images.shape:
        raise DatasetError(f"images have shape {images.shape}: the data set is empty")


def _check_labels(labels: NDArray[np.int64], num_images: int, num_classes: int) -> None:
    if labels.dtype != np.int64 or labels.ndim != 1:
        raise DatasetError(f"labels are {labels.dtype} {labels.shape}; int64 [N] is needed")
    if len(labels) != num_images:
        raise DatasetError(f"{num_images} images but {len(labels)} labels")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        at = int(wrong[0])
        raise DatasetError(
            f"label {labels[at]} of example {at} is outside 0..{num_classes - 1}"
            f" ({num_classes} class names)"
        )
