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


def mobile(input_shape: tuple[int, int, int], num_classes: int) -> Any:
    """Return a small MobileNet (Howard et al. 2017): depthwise convolutions, batch normalisation.

    50,698 parameters for (28, 28, 1) and 10 classes, of which 1,408 are statistics.
    """
    layers = tf_keras.layers

    def normalized(name: str, convolution: Any) -> list[Any]:
        # Clients see few batches: statistics of Keras' default momentum would not settle.
        norm = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")
        return [convolution, norm, layers.ReLU(name=f"{name}_relu")]

    shared: dict[str, Any] = {"padding": "same", "use_bias": False}
    stack = [layers.InputLayer(input_shape, name="image")]
    stack += normalized("conv", layers.Conv2D(32, 3, strides=2, name="conv", **shared))
    for number, (filters, strides) in enumerate([(64, 1), (128, 2), (256, 1)], 1):
        depth, point = f"depth{number}", f"point{number}"
        stack += normalized(depth, layers.DepthwiseConv2D(3, strides=strides, name=depth, **shared))
        stack += normalized(point, layers.Conv2D(filters, 1, name=point, **shared))
    stack.append(layers.GlobalAveragePooling2D(name="mean"))
    stack.append(layers.Dense(num_classes, activation="softmax", name="classes"))
    return tf_keras.Sequential(stack, name="mobile")


def gru(input_shape: tuple[int, int, int], num_classes: int) -> Any:
    """Return a recurrent network that reads an image row by row; 61,962 parameters for 28x28."""
    height, width, channels = input_shape
    layers = tf_keras.layers
    # Unrolled it needs no control flow in TFLite. Keras would start the recurrent kernel
    # orthogonal, which no seed gives bit for bit on every platform.
    reader = layers.GRU(128, unroll=True, recurrent_initializer="glorot_uniform", name="rows")
    return tf_keras.Sequential(
        [
            layers.InputLayer(input_shape, name="image"),
            layers.Reshape((height, width * channels), name="sequence"),
            reader,
            layers.Dense(num_classes, activation="softmax", name="classes"),
        ],
        name="gru",
    )


def _head(num_classes: int) -> list[Any]:
    layers = tf_keras.layers
    return [
        layers.Flatten(name="flatten"),
        layers.Dense(128, activation="relu", name="hidden"),
        layers.Dense(num_classes, activation="softmax", name="classes"),
    ]


ARCHITECTURES: dict[str, Architecture] = {"cnn": cnn, "mlp": mlp, "mobile": mobile, "gru": gru}
"""By the name that a run's configuration uses."""


def build(name: str, input_shape: tuple[int, int, int], num_classes: int) -> Any:
    """Return the built-in model `name`; raises ModelError with the known names if there is none."""
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(
            f"no model {name!r}; choose {known}, or your own: a function (module:function), a "
            ".keras or .h5 file, a SavedModel folder or a Keras configuration (.json)"
        )
    return ARCHITECTURES[name](input_shape, num_classes)
