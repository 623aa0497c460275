"""`featherfed predict`: answer for pictures or other data by an exported model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featherfed.datasets.sources import load_inputs
from featherfed.edge_client.errors import ClientError
from featherfed.models.images import Source
from featherfed.models.tflite import Classifier, Predictor, TfliteModel, read_model
from featherfed.models.trial import try_model
from featherfed.tasks.records import fields
from featherfed.tasks.scoring import both_classes
from featherfed.tasks.task import TargetKind, Task

Rows = Iterator[tuple[str, ...]]
_SHOWN = 8
"""Most numbers of an answer that are printed."""


def predict(model: Path, sources: list[Path]) -> None:
    """Print a model's answer to each example of `sources`.

    Without any, a model of pictures answers for the run's own samples.
    """
    content = read_model(model)
    try_model(content, str(model))
    if TfliteModel(content).task.is_images:
        _print(("image", "prediction", "probability"), _classified(model, sources))
        return
    if not sources:
        raise ClientError(
            f"name the data for {model} to answer to: an .npz with x, an .npy, or a table"
        )
    predictor = Predictor(model)
    _print(("example", "answer"), _answered(predictor, sources))


def _classified(model: Path, images: list[Path]) -> Rows:
    classifier = Classifier(model)
    sources: Sequence[tuple[str, Source]] | Iterator[tuple[str, Source]]
    sources = [(str(path), path) for path in images] if images else _samples(model)
    for label, source in sources:
        for found in classifier.classify_all(source):
            name, probability = found[0]
            yield label, name, f"{probability:.3f}"


def _samples(model: Path) -> Iterator[tuple[str, Source]]:
    """Yield a label and an image for every class, from pictures.npz beside the model."""
    path = model.parent / "pictures.npz"
    if not path.is_file():
        raise ClientError(f"no pictures.npz beside {model}; name the images to classify")
    with np.load(path, allow_pickle=False) as archive:
        for name, images in zip(archive["class_names"], archive["samples"], strict=True):
            yield f"a sample of {name}", images[:1]


def _answered(predictor: Predictor, sources: list[Path]) -> Rows:
    for path in sources:
        inputs = load_inputs(str(path), predictor.task)
        for number, answer in enumerate(predictor.predict(*inputs)):
            own = inputs[0][number]
            yield f"{path}[{number}]", _text(answer, predictor.task, own)


def _text(answer: Any, task: Task, own: Any) -> str:
    """Return an answer in the words of its task."""
    if names := task.target.names:
        parts = zip(names, fields(answer, names), task.parts, strict=True)
        return "; ".join(f"{name}: {_text(np.asarray(a), part, own)}" for name, a, part in parts)
    kind, names = task.target.kind, task.target.class_names
    if kind is TargetKind.INPUT:
        seen = task.inputs[0].seen(own)
        return f"off by {float(np.sqrt(np.mean(np.square(answer - seen)))):.4g} (root mean square)"
    if kind is TargetKind.LABELS:
        return ", ".join(n for n, p in zip(names, answer, strict=True) if p > 0.5) or "none"
    if kind is TargetKind.CLASS:
        rows = answer.reshape(-1, answer.shape[-1])
        if rows.shape[1] == 1:  # the probability of the second of two classes
            rows = both_classes(rows)
        said = [f"{names[row.argmax()]} ({row.max():.3f})" for row in rows[:_SHOWN]]
        return " ".join(said) + (" ..." if len(rows) > _SHOWN else "")
    numbers = answer.ravel()
    text = " ".join(f"{value:.5g}" for value in numbers[:_SHOWN])
    return text + (" ..." if len(numbers) > _SHOWN else "")


def _print(head: tuple[str, ...], rows: Rows) -> None:
    lines = [head, *rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    for line in lines:
        cells = (f"{text:{width}}" for text, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
