"""`featherfed predict`: classify pictures, arrays and camera frames by an exported model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from featherfed.edge_client.errors import ClientError
from featherfed.models.images import Source
from featherfed.models.tflite import Classifier


def predict_images(model: Path, images: list[Path]) -> None:
    """Print the most probable class of every image; without images, of the run's samples."""
    classifier = Classifier(model)
    sources = [(str(path), path) for path in images] if images else _samples(model)
    rows = [("image", "prediction", "probability")]
    for label, source in sources:
        for found in classifier.classify_all(source):
            name, probability = found[0]
            rows.append((label, name, f"{probability:.3f}"))
    width, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    for label, name, text in rows:
        print(f"{label:{width}}  {name:{second}}  {text}")


def _samples(model: Path) -> Iterator[tuple[str, Source]]:
    """Yield a label and an image for every class, from pictures.npz beside the model."""
    path = model.parent / "pictures.npz"
    if not path.is_file():
        raise ClientError(f"no pictures.npz beside {model}; name the images to classify")
    with np.load(path, allow_pickle=False) as archive:
        for name, images in zip(archive["class_names"], archive["samples"], strict=True):
            yield f"a sample of {name}", images[:1]
