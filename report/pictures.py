"""Reads pictures.npz and draws the sample images."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from featherfed.report.schema import ReportError, printable
from featherfed.report.style import WIDTH, short

_SAMPLES_PER_CLASS = 5
_CLASSES_PER_ROW = 10
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


def samples_figure(pictures: Pictures) -> Figure:
    """A few images of every class, one column per class (the first 40 classes)."""
    classes = min(len(pictures.class_names), _MAX_SAMPLE_CLASSES)
    shown = min(pictures.samples.shape[1], _SAMPLES_PER_CLASS)
    columns = min(classes, _CLASSES_PER_ROW)
    blocks = -(-classes // columns)
    side = WIDTH / _CLASSES_PER_ROW
    figure = Figure(figsize=(WIDTH, blocks * (shown * side + 0.45)))
    figure.set_layout_engine("none")
    height = 1 / blocks
    for index in range(classes):
        block, column = divmod(index, columns)
        label_share = 0.45 / (shown * side + 0.45)
        box = (
            column * side / WIDTH,
            1 - (block + 1) * height,
            side / WIDTH,
            height * (1 - label_share),
        )
        axes = figure.add_axes(box)
        show_image(axes, _column(pictures.samples[index, :shown]))
        axes.set_title(
            short(pictures.class_names[index], 13), fontsize=9, loc="center", pad=5, weight="normal"
        )
    return figure


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


def show_image(axes: Axes, image: NDArray[np.uint8]) -> None:
    """Draw an image [H, W, C] with 1 or 3 channels, pixels kept sharp."""
    grey = image.shape[-1] == 1
    axes.imshow(
        image[..., 0] if grey else image, cmap="gray", vmin=0, vmax=255, interpolation="nearest"
    )
    axes.set_axis_off()
