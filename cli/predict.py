"""`featherfed predict`: what an exported model sees in images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featherfed.edge_client.errors import ClientError
from featherfed.models.tflite import TfliteModel

Images = npt.NDArray[np.uint8]


def predict_images(model: Path, images: list[Path]) -> None:
    """Print the likeliest class of every image and its probability."""
    if not model.is_file():
        raise ClientError(f"no model file {model}; a run's output directory holds model_*.tflite")
    beside = _pictures(model.parent)
    names = [] if beside is None else [str(name) for name in beside["class_names"]]
    rows = _given(images) if images else _samples(beside, model)
    classifier = TfliteModel(model)
    lines = [("image", "prediction", "probability")]
    for label, batch in rows:
        for probabilities in classifier.predict(batch):
            best = int(probabilities.argmax())
            name = names[best] if best < len(names) else str(best)
            lines.append((label, name, f"{probabilities[best]:.3f}"))
    width, second = (max(len(line[column]) for line in lines) for column in (0, 1))
    for label, name, text in lines:
        print(f"{label:{width}}  {name:{second}}  {text}")


def _pictures(directory: Path) -> dict[str, Any] | None:
    path = directory / "pictures.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _samples(pictures: dict[str, Any] | None, model: Path) -> list[tuple[str, Images]]:
    if pictures is None:
        raise ClientError(f"no pictures.npz beside {model}; name the images to classify")
    names = [f"a sample of {name}" for name in pictures["class_names"]]
    return [(name, images[:1]) for name, images in zip(names, pictures["samples"], strict=True)]


def _given(paths: list[Path]) -> list[tuple[str, Images]]:
    return [(str(path), _read(path)) for path in paths]


def _read(path: Path) -> Images:
    """Return uint8 [N, H, W, C]."""
    try:
        if path.suffix in (".npy", ".npz"):
            loaded = np.load(path, allow_pickle=False)
            array = loaded if path.suffix == ".npy" else loaded["images"]
        else:
            from PIL import Image

            with Image.open(path) as picture:
                array = np.asarray(picture.convert("L" if picture.mode in "1LI;16" else "RGB"))
            array = array[None]
    except (OSError, ValueError, KeyError) as error:
        raise ClientError(f"cannot read {path} as images: {error}") from error
    if array.dtype != np.uint8:
        raise ClientError(f"{path}: images must be uint8, not {array.dtype}")
    images: Images = array[..., None] if array.ndim == 3 else array
    return images
