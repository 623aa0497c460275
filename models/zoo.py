"""Built-in architectures: functions from input shape and number of classes to a Keras model.

All return an uncompiled tf_keras Sequential model, float32 [N, *input_shape] (values 0 to 1) to
float32 [N, num_classes] probabilities. Layers are named, so that two machines get equal JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tf_keras

from featherfed.models.errors import ModelError

Architecture = Callable[[tuple[int, int, int], int], Any]
"""(height, width, channels), number of classes -> an uncompiled tf_keras model."""


def cnn(input_shape: tuple[int, int, int], num_classes: int) -> Any:
    """Return the two-convolution network: 225,034 parameters for (28, 28, 1) and 10 classes.

    A pool that does not fit any more is left out. Raises ModelError if the image is too small
    for two 3x3 convolutions.
    """
    layers = tf_keras.layers
    stack = [layers.InputLayer(input_shape, name="image")]
    side = min(input_shape[:2])
    for number, filters in ((1, 32), (2, 64)):
        if side < 3:
            raise ModelError(f"cnn needs images of at least 8x8 pixels, got {input_shape}")
        stack.append(layers.Conv2D(filters, 3, activation="relu", name=f"conv{number}"))
        side -= 2
        if side >= 2:
            stack.append(layers.MaxPool2D(name=f"pool{number}"))
            side //= 2
    return tf_keras.Sequential([*stack, *_head(num_classes)], name="cnn")


def mlp(input_shape: tuple[int, int, int], num_classes: int) -> Any:
    """Return the network with one hidden layer of 128 units."""
    image = tf_keras.layers.InputLayer(input_shape, name="image")
    return tf_keras.Sequential([image, *_head(num_classes)], name="mlp")


def _head(num_classes: int) -> list[Any]:
    layers = tf_keras.layers
    return [
        layers.Flatten(name="flatten"),
        layers.Dense(128, activation="relu", name="hidden"),
        layers.Dense(num_classes, activation="softmax", name="classes"),
    ]


ARCHITECTURES: dict[str, Architecture] = {"cnn": cnn, "mlp": mlp}
"""By the name that a run's configuration uses."""


def build(name: str, input_shape: tuple[int, int, int], num_classes: int) -> Any:
    """Return the built-in model `name`; raises ModelError with the known names if there is none."""
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"no model {name!r}; choose {known}, or a Keras configuration (.json)")
    return ARCHITECTURES[name](input_shape, num_classes)
