"""How a model calls a layer: the arguments besides its input, such as use_causal_mask."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from featherfed.exporter.errors import ExportError
from featherfed.exporter.forward import ForwardPass
from featherfed.exporter.ops import Tensor


@contextmanager
def called(node: Any, inputs: Sequence[Tensor], forward: ForwardPass) -> Iterator[None]:
    """Let `forward` know in this block how `node` of a Keras model calls its layer.

    `inputs`: the tensors for `node.keras_inputs`. Raises ExportError for a mask given by hand.
    """
    arguments = _arguments(node, inputs)
    if arguments.get("mask") is not None:
        raise ExportError(
            f"layer {node.layer.name!r}: a call with mask=... has no training step for LiteRT; use "
            "a Masking layer or mask_zero=True of Embedding, or Keras clients (--runtime keras)"
        )
    before = forward.arguments, forward.training
    given = arguments.get("training")
    forward.arguments = arguments
    forward.training = forward.training if given is None else bool(given)
    try:
        yield
    finally:
        forward.arguments, forward.training = before


def _arguments(node: Any, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """Return the arguments of a call by name, tensors in place of Keras' own."""
    given = iter(inputs)
    symbols = {id(keras) for keras in node.keras_inputs}

    def tensor(value: Any) -> Any:
        return next(given) if id(value) in symbols else value

    # In the order in which Keras counts the inputs of a node.
    args = [tf.nest.map_structure(tensor, value) for value in node.call_args]
    named = {name: tf.nest.map_structure(tensor, value) for name, value in node.call_kwargs.items()}
    names = inspect.signature(node.layer.call).parameters
    return {**dict(zip(names, args, strict=False)), **named}
