"""`featherfed predict`: what an exported model sees in pictures, arrays and camera frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from featherfed.edge_client.errors import ClientError
from featherfed.models.images import Source
from featherfed.models.tflite import Classifier


def predict_images(model: Path, images: list[Path]) -> None:
    """Print the likeliest class of every image and its probability."""
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
    """Yield an image of every class that the run left beside its models."""
    path = model.parent / "pictures.npz"
    if not path.is_file():
        raise ClientError(f"no pictures.npz beside {model}; name the images to classify")
    with np.load(path, allow_pickle=False) as archive:
        for name, images in zip(archive["class_names"], archive["samples"], strict=True):
            yield f"a sample of {name}", images[:1]
