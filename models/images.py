"""Turns pictures, arrays and camera frames into the images a model takes; files need Pillow."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featherfed.datasets.dataset import DatasetError
from featherfed.datasets.resizing import resized
from featherfed.models.errors import ModelError

Images = npt.NDArray[np.uint8]
Source = str | Path | npt.NDArray[Any]
"""A file (.npy, .npz, or a picture that Pillow reads) or an array."""


def load_images(source: Source, input_shape: tuple[int, ...]) -> Images:
    """Return a file or an array as uint8 [N, *input_shape], which is height, width, channels.

    An array is one image [H, W] or [H, W, 1, 3 or 4], or several: [N, H, W] or [N, H, W, C]. It is
    uint8, or float within 0 and 1. An .npz holds it as `images`. Images of another size are cropped
    around the middle to the model's aspect ratio and resized; colour becomes grey, or grey three
    equal channels; transparency is dropped. Raises ModelError for what cannot be read as images.
    """
    if len(input_shape) != 3:
        raise ModelError(
            f"the model takes {list(input_shape)}, not images [height, width, channels]"
        )
    try:
        images = _stacked(_read(Path(source)) if isinstance(source, str | Path) else source)
    except ModelError as error:
        what = "the array" if isinstance(source, np.ndarray) else source
        raise ModelError(f"{what}: {error}") from error.__cause__
    try:
        return resized(images, input_shape)
    except DatasetError as error:
        raise ModelError(f"{error}; give arrays of the model's own shape") from error


def _read(path: Path) -> npt.NDArray[Any]:
    try:
        if path.suffix == ".npy":
            array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
            return array
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                stored: npt.NDArray[Any] = archive["images"]
                return stored
        return _picture(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"cannot be read as images ({error}); give a picture, .npy, or .npz with `images`"
        ) from error


def _picture(path: Path) -> npt.NDArray[Any]:
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        if opened.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
            return (np.asarray(opened).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        # A camera held upright only notes the turn.
        picture = ImageOps.exif_transpose(opened)
        return np.asarray(picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB"))


def _stacked(array: npt.NDArray[Any]) -> Images:
    """Return uint8 [N, H, W, C]."""
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating) or not array.size:
            raise ModelError(f"images must be uint8 or float within 0 and 1, not {array.dtype}")
        if not (array.min() >= 0 and array.max() <= 1):
            raise ModelError(
                f"float images must lie within 0 and 1, not {array.min():g} and {array.max():g}; "
                "divide by the largest possible value, or give uint8"
            )
        array = np.rint(array * 255).astype(np.uint8)
    if array.ndim == 2:
        array = array[None, ..., None]
    elif array.ndim == 3:
        # Nobody has pictures one, three or four pixels wide; frames of a camera end like that.
        array = array[None] if array.shape[-1] in (1, 3, 4) else array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape[1:]:
        raise ModelError(
            f"images must be [H, W], [H, W, C], [N, H, W] or [N, H, W, C] with 1, 3 or 4 channels, "
            f"not {list(array.shape)}"
        )
    return array
