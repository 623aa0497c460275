"""What every model takes one test image for: a bar a class, and a row a client."""

from __future__ import annotations

import numpy as np

from featherfed.report.metric import value_text
from featherfed.report.pictures import Pictures

_MAX_CLASSES = 12
_MAX_ROWS = 100


def class_bars(pictures: Pictures) -> list[dict[str, object]]:
    """Return the classes that the global model finds likeliest, the true one always: 12 at most.

    Each with its `name`, `text` and `width` of its probability in percent, and `kind`: true for the
    true class, wrong for another that the model takes it for, else empty.
    """
    values = pictures.predictions[-1]
    return [
        {
            "name": pictures.class_names[c],
            "text": value_text("accuracy", float(values[c])),
            "width": _percent(values[c]),
            "kind": _kind(pictures, c, int(values.argmax())),
        }
        for c in _chosen_classes(pictures)
    ]


def answer_rows(pictures: Pictures) -> list[dict[str, object]]:
    """Return what each model takes the image for, the global one first; 100 rows at most."""
    models = len(pictures.predictor_names)
    order = [models - 1, *range(models - 1)][:_MAX_ROWS]
    return [_answer_row(pictures, index) for index in order]


def _answer_row(pictures: Pictures, index: int) -> dict[str, object]:
    values = pictures.predictions[index]
    best = int(values.argmax())
    is_global = index == len(pictures.predictor_names) - 1
    return {
        "name": "global model" if is_global else pictures.predictor_names[index],
        "answer": pictures.class_names[best],
        "right": best == pictures.image_label,
        "probability": value_text("accuracy", float(values[best])),
        "true": value_text("accuracy", float(values[pictures.image_label])),
        "width": _percent(values[pictures.image_label]),
    }


def _chosen_classes(pictures: Pictures) -> list[int]:
    if len(pictures.class_names) <= _MAX_CLASSES:
        return list(range(len(pictures.class_names)))
    likely = np.argsort(-pictures.predictions[-1])[: _MAX_CLASSES - 1].tolist()
    return sorted({*likely, pictures.image_label})


def _kind(pictures: Pictures, index: int, best: int) -> str:
    if index == pictures.image_label:
        return "true"
    return "wrong" if index == best else ""


def _percent(value: np.float32) -> str:
    return f"{100 * min(1.0, max(0.0, float(value))):.1f}"
