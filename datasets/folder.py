"""Reads a folder of images sorted by class: FOLDER/CLASS/*.png or *.jpg."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featherfed.datasets.dataset import Dataset, DatasetError
from featherfed.datasets.resizing import resized

if TYPE_CHECKING:
    from PIL import Image

_SUFFIXES = {".png", ".jpg", ".jpeg"}
_GREY_MODES = {"1", "L", "LA"}
_DEEP_MODES = ("I", "F")


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the class folders in ``folder``, hidden ones left out."""
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def load_image_folder(
    folder: Path,
    class_names: Sequence[str] | None = None,
    shape: Sequence[int] | None = None,
) -> Dataset:
    """Read FOLDER/CLASS/*.png|jpg|jpeg into a `Dataset`.

    A label is the position of its folder in ``class_names``, or without that in the sorted folder
    names; so a device that lacks a class keeps an empty folder for it. All grey gives one
    channel, otherwise three. With a ``shape``, which is height, width, channels, images of any size
    are brought to it (see resizing.py). Raises `DatasetError` when there is no image, an image is
    unreadable, without a ``shape`` of another size than the first, a folder is not in
    ``class_names``, or Pillow is missing.
    """
    found = class_folders(folder)
    names = found if class_names is None else list(class_names)
    unknown = [name for name in found if name not in names]
    if unknown:
        raise DatasetError(f"{folder / unknown[0]}: not one of the classes {', '.join(names)}")
    paths = [(path, names.index(name)) for name in found for path in _images_in(folder / name)]
    if not paths:
        raise DatasetError(f"{folder}: no images; it must hold CLASS/*.png (or .jpg), by class")
    files = [path for path, _ in paths]
    images = _read_all(files) if shape is None else _read_resized(files, shape)
    return Dataset.from_images(images, [label for _, label in paths], names)


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    )


def _read_all(paths: list[Path]) -> NDArray[np.uint8]:
    first = _read(paths[0])
    images = [first]
    for path in paths[1:]:
        image = _read(path)
        if image.shape[:2] != first.shape[:2]:
            raise DatasetError(
                f"{path}: {_size(image)} pixels, but {paths[0]} is {_size(first)};"
                " all images must have one size"
            )
        images.append(image)
    channels = max(image.shape[2] for image in images)
    # A grey image among coloured ones repeats its channel.
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])


def _read_resized(paths: list[Path], shape: Sequence[int]) -> NDArray[np.uint8]:
    return np.concatenate([resized(_read(path)[None], shape) for path in paths])


def _size(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DatasetError("reading images needs Pillow: pip install featherfed[images]") from error
    try:
        with Image.open(path) as opened:
            # A camera held upright only notes the turn.
            return _to_array(ImageOps.exif_transpose(opened), path)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: not a readable image ({error})") from error


def _to_array(picture: Image.Image, path: Path) -> NDArray[np.uint8]:
    if picture.mode.startswith(_DEEP_MODES):
        raise DatasetError(f"{path}: {picture.mode} pixels; convert the image to 8 bits a channel")
    pixels = np.asarray(picture.convert("L" if picture.mode in _GREY_MODES else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1)
