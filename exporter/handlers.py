"""The table of layer handlers, and how a layer is run by its own.

A handler makes a Keras layer's output in training from its inputs. The modules that hold them
register them here by `handles`; `layers.py` imports all of these modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from featherfed.exporter.errors import ExportError
from featherfed.exporter.forward import ForwardPass
from featherfed.exporter.masks import pass_mask
from featherfed.exporter.ops import Tensor

Handler = Callable[[Any, list[Tensor], ForwardPass], Tensor]
"""Layer, its inputs and the forward pass -> its output in training."""

_HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register a function for Keras layer classes."""

    def register(handler: Handler) -> Handler:
        _HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def known_layers() -> list[str]:
    """Return the names of the Keras layer classes that have a handler, in order."""
    return sorted(_HANDLERS)


def run_layer(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    """Return the output of a Keras layer in training.

    Raises ExportError, naming the layer and the remedy, if it cannot be exported.
    """
    kind = type(layer).__name__
    if kind not in _HANDLERS:
        raise cannot(layer, kind, f"use one of {', '.join(known_layers())}")
    if getattr(layer, "data_format", None) == "channels_first":
        raise cannot(layer, "channels_first", "use channels_last")
    check_constraints(layer, layer)
    forward.penalize(layer, layer.name)
    y = _HANDLERS[kind](layer, inputs, forward)
    pass_mask(layer, inputs, y, forward)
    return y


def run_inner(wrapper: Any, layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    """Return the output of a layer inside another; errors name both."""
    try:
        return run_layer(layer, inputs, forward)
    except ExportError as error:
        raise ExportError(f"layer {wrapper.name!r}: its {error}") from None


def cannot(layer: Any, what: str, instead: str) -> ExportError:
    """Return the error that something of a layer cannot be exported, and what to do instead."""
    return ExportError(
        f"layer {layer.name!r}: {what} has no training step for LiteRT; {instead}, or Keras "
        "clients (--runtime keras)"
    )


def check_constraints(layer: Any, holder: Any) -> None:
    """Raise ExportError if `holder` (the layer itself or its cell) constrains a weight."""
    for name in [name for name in vars(holder) if name.endswith("_constraint")]:
        if getattr(holder, name) is not None:
            raise cannot(layer, f"a {name}", "leave it out")
