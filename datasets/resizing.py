"""Brings pictures to the size and channels that a model takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featherfed.datasets.dataset import DatasetError

_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow has it


def resized(images: npt.NDArray[np.uint8], shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return uint8 [N, H, W, 1, 3 or 4] as [N, *shape], which is height, width, channels.

    Images of another size are cropped around the middle to the aspect ratio of `shape` and
    resized; colour becomes grey, or grey three equal channels; transparency is dropped. Raises
    DatasetError for other channels.
    """
    height, width, channels = shape
    if images.shape[1:] == (height, width, channels):
        return images
    cropped = _cropped(_with_channels(images, channels), height, width)
    return np.rint(_interpolated(cropped, height, width)).astype(np.uint8)


def _with_channels(images: npt.NDArray[np.uint8], channels: int) -> npt.NDArray[np.float64]:
    """Return float64 [N, H, W, channels] from 0 to 255."""
    pixels = images[..., :3].astype(np.float64)
    if channels == pixels.shape[-1]:
        return pixels
    if channels == 1:
        grey: npt.NDArray[np.float64] = pixels @ _GREY[:, None]
        return grey
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    raise DatasetError(f"pictures cannot be given {channels} channels, only 1 or 3")


def _cropped(pixels: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.float64]:
    """Return the largest part around the middle with the aspect ratio of height to width."""
    rows, columns = pixels.shape[1:3]
    tall = min(rows, max(1, round(columns * height / width)))
    wide = min(columns, max(1, round(rows * width / height)))
    top, left = (rows - tall) // 2, (columns - wide) // 2
    return pixels[:, top : top + tall, left : left + wide]


def _interpolated(
    pixels: npt.NDArray[np.float64], height: int, width: int
) -> npt.NDArray[np.float64]:
    down = _interpolation_weights(pixels.shape[1], height)
    across = _interpolation_weights(pixels.shape[2], width)
    scaled: npt.NDArray[np.float64] = np.einsum(
        "hr,nrcx,wc->nhwx", down, pixels, across, optimize=True
    )
    return scaled


def _interpolation_weights(old: int, new: int) -> npt.NDArray[np.float64]:
    """Return [new, old] weights of linear interpolation, which averages when an image shrinks."""
    ratio = old / new
    reach = max(1.0, ratio)
    middles = (np.arange(new) + 0.5) * ratio
    distance = np.abs(np.arange(old) + 0.5 - middles[:, None]) / reach
    weights = np.maximum(0.0, 1.0 - distance)
    scaled: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return scaled
