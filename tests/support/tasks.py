"""Small models of every kind of task, and random data for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras

from featherfed.datasets.dataset import Dataset
from featherfed.proto.plan_terms import Loss
from featherfed.tasks.records import records
from featherfed.tasks.task import Input, Target, TargetKind, Task

layers = tf_keras.layers
FLOATS = Input("x", "float32", (6, 2))
TOKENS = Input("tokens", "int32", (6,), vocabulary=11)


def random_data(task: Task, count: int = 11) -> Dataset:
    rng = np.random.default_rng(3)
    made = {
        "uint8": lambda i: rng.integers(0, 256, (count, *i.shape), np.uint8),
        "float32": lambda i: rng.normal(0, 1, (count, *i.shape)).astype(np.float32),
        "int32": lambda i: rng.integers(0, i.vocabulary, (count, *i.shape)).astype(np.int32),
    }
    inputs = tuple(made[given.dtype](given) for given in task.inputs)
    made_targets = [random_targets(target, count, rng) for target in task.target.each]
    if task.target.parts:
        return Dataset(inputs, records(dict(zip(task.target.names, made_targets, strict=True))))
    return Dataset(inputs, made_targets[0])


def random_targets(target: Target, count: int, rng: np.random.Generator) -> Any:
    shape = (count, *target.shape)
    return {
        TargetKind.CLASS: lambda: rng.integers(0, len(target.class_names), shape),
        TargetKind.LABELS: lambda: rng.integers(0, 2, shape).astype(np.uint8),
        TargetKind.VALUES: lambda: rng.normal(0, 3, shape).astype(np.float32),
        TargetKind.INPUT: lambda: None,
    }[target.kind]()


def on_floats(*stack: Any) -> Any:
    return tf_keras.Sequential([layers.InputLayer(FLOATS.shape, name="x"), *stack])


def flat(*stack: Any) -> Any:
    return on_floats(layers.Flatten(), layers.Dense(4, "tanh", name="hidden"), *stack)


def on_tokens() -> Any:
    return tf_keras.Sequential(
        [
            layers.InputLayer(TOKENS.shape, name="tokens"),
            layers.Embedding(11, 4, name="codes"),
            layers.GRU(5, return_sequences=True, name="gru"),
            layers.Dense(11, "softmax", name="next"),
        ]
    )


def on_both() -> Any:
    x = tf_keras.Input(FLOATS.shape, name="x")
    tokens = tf_keras.Input(TOKENS.shape, name="tokens")
    codes = layers.Embedding(11, 3, name="codes")(tokens)
    both = layers.Concatenate()([layers.Flatten()(x), layers.Flatten()(codes)])
    return tf_keras.Model([x, tokens], layers.Dense(3, name="out")(both))


def on_several() -> Any:
    """Return a model whose outputs stand in another order than their layers' names sort in."""
    x = tf_keras.Input(FLOATS.shape, name="x")
    body = layers.Dense(4, "tanh", name="hidden")(layers.Flatten()(x))
    state = layers.Dense(3, "softmax", name="c_state")(body)
    signs = layers.Dense(2, "sigmoid", name="a_signs")(body)
    return tf_keras.Model(x, [state, signs, layers.Dense(2, name="b_pulse")(body)])


SEVERAL = Target.several(
    Target(TargetKind.CLASS, (), ("a", "b", "c"), name="state"),
    Target(TargetKind.LABELS, (2,), ("left", "right"), name="signs", weight=2.0),
    Target(TargetKind.VALUES, (2,), name="pulse", loss=Loss.HUBER, weight=0.3),
)
LETTERS = tuple("abcdefghijk")
TASKS: dict[str, tuple[Callable[[], Any], Task]] = {
    "classes of windows": (
        lambda: flat(layers.Dense(3, "softmax")),
        Task((FLOATS,), Target(TargetKind.CLASS, (), ("a", "b", "c"))),
    ),
    "two classes, one output": (
        lambda: flat(layers.Dense(1, "sigmoid")),
        Task((FLOATS,), Target(TargetKind.CLASS, (), ("no", "yes")), Loss.BINARY_CROSSENTROPY),
    ),
    "labels": (
        lambda: flat(layers.Dense(3, "sigmoid")),
        Task((FLOATS,), Target(TargetKind.LABELS, (3,), ("a", "b", "c"))),
    ),
    "one number": (
        lambda: flat(layers.Dense(1)),
        Task((FLOATS,), Target(TargetKind.VALUES), Loss.MEAN_ABSOLUTE_ERROR),
    ),
    "a vector": (
        lambda: flat(layers.Dense(4)),
        Task((FLOATS,), Target(TargetKind.VALUES, (4,)), Loss.HUBER),
    ),
    "a sequence": (
        lambda: on_floats(layers.Dense(3, name="each")),
        Task((FLOATS,), Target(TargetKind.VALUES, (6, 3))),
    ),
    "the input": (
        lambda: flat(layers.Dense(12), layers.Reshape((6, 2))),
        Task((FLOATS,), Target(TargetKind.INPUT)),
    ),
    "the next tokens": (
        on_tokens,
        Task((TOKENS,), Target(TargetKind.CLASS, (6,), LETTERS), metrics=("perplexity", "top2")),
    ),
    "several outputs": (on_several, Task((FLOATS,), SEVERAL)),
    "two inputs": (on_both, Task((FLOATS, TOKENS), Target(TargetKind.VALUES, (3,)))),
}
