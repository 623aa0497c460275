"""Reads pictures.npz, and makes its images into pictures of a page."""

from __future__ import annotations

import base64
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featherfed.report.schema import ReportError, printable

_SAMPLES_PER_CLASS = 5
_MAX_SAMPLE_CLASSES = 40


@dataclass(frozen=True)
class Pictures:
    """What pictures.npz holds.

    ``samples`` uint8 [classes, m, H, W, C]; ``image`` uint8 [H, W, C]; ``predictions`` float32
    [K + 1, classes], the clients and then the global model.
    """

    samples: NDArray[np.uint8]
    class_names: tuple[str, ...]
    image: NDArray[np.uint8]
    image_label: int
    predictor_names: tuple[str, ...]
    predictions: NDArray[np.float32]


_RANKS = {
    "samples": 5,
    "class_names": 1,
    "image": 3,
    "image_label": 0,
    "predictor_names": 1,
    "predictions": 2,
}


def read_pictures(path: Path) -> Pictures:
    """Read and check a pictures.npz; nothing is unpickled. Raises `ReportError`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in _RANKS}
    except KeyError as error:
        raise _broken(path, str(error.args[0])) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, TypeError) as error:
        raise _broken(path, str(error)) from error
    for key, rank in _RANKS.items():
        if arrays[key].ndim != rank:
            raise _broken(path, f"{key} has shape {arrays[key].shape}, not {rank} dimensions")
    _check_shapes(path, arrays)
    return Pictures(
        samples=arrays["samples"],
        class_names=tuple(printable(str(name)) for name in arrays["class_names"]),
        image=arrays["image"],
        image_label=int(arrays["image_label"]),
        predictor_names=tuple(printable(str(name)) for name in arrays["predictor_names"]),
        predictions=np.nan_to_num(arrays["predictions"].astype(np.float32)),
    )


def _broken(path: Path, why: str) -> ReportError:
    return ReportError(f"{path}: {why}; run again, or remove the file for a report without it")


def _check_shapes(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    classes = len(arrays["class_names"])
    wanted = (len(arrays["predictor_names"]), classes)
    if arrays["predictions"].shape != wanted or 0 in wanted:
        raise _broken(path, f"predictions has shape {arrays['predictions'].shape}, not {wanted}")
    if not 0 <= int(arrays["image_label"]) < classes:
        raise _broken(path, f"image_label {int(arrays['image_label'])} is not a class")
    if len(arrays["samples"]) != classes:
        raise _broken(path, f"samples holds {len(arrays['samples'])} classes of {classes}")
    for key in ("samples", "image"):
        array = arrays[key]
        if array.dtype != np.uint8 or array.shape[-1] not in (1, 3) or 0 in array.shape:
            raise _broken(path, f"{key} is {array.dtype} {array.shape}; uint8 with 1 or 3 channels")


def sample_columns(pictures: Pictures) -> list[tuple[str, str]]:
    """Return the first 40 classes: the name, and a data URI of a few images, one below another."""
    shown = pictures.samples[:_MAX_SAMPLE_CLASSES, :_SAMPLES_PER_CLASS]
    names = pictures.class_names[:_MAX_SAMPLE_CLASSES]
    return [(name, png_uri(_column(images))) for name, images in zip(names, shown, strict=True)]


def png_uri(image: NDArray[np.uint8]) -> str:
    """Return an image [H, W, C] with 1 or 3 channels as a data URI."""
    buffer = io.BytesIO()
    grey = image.shape[-1] == 1
    Image.fromarray(image[..., 0] if grey else image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _column(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Stack images [m, H, W, C] vertically on square white tiles with a margin."""
    count, height, width, channels = images.shape
    side = max(height, width)
    margin = max(1, side // 20)
    tile = side + 2 * margin
    canvas = np.full((count * tile, tile, channels), 255, dtype=np.uint8)
    top, left = (tile - height) // 2, (tile - width) // 2
    for index, image in enumerate(images):
        row = index * tile + top
        canvas[row : row + height, left : left + width] = image
    return canvas
