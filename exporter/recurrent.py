"""GRU, LSTM and SimpleRNN, unrolled in time: TFLite has no gradient of a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from featherfed.exporter import ops
from featherfed.exporter.forward import ForwardPass
from featherfed.exporter.ops import Tensor

State = tuple[Tensor, ...]
"""Output [B, U] and, for an LSTM, its memory [B, U]."""


def unroll(layer: Any, x: Tensor, mask: Tensor | None, forward: ForwardPass) -> Tensor:
    """Return the last output [B, U] of a recurrent layer on x [B, T, I], or all [B, T, U].

    `mask`, float32 [B, T]: where it is 0, a step leaves the state as it was. All outputs come in
    the order in which they were computed: with go_backwards the last step's is the first.
    """
    batch, length, _ = x.shape
    step = _TIME_STEPS[type(layer).__name__](layer, forward)
    inputs = ops.unstack(_input_products(layer.cell, x, forward))
    zero = tf.zeros([batch, layer.units])
    state: State = (zero, zero) if type(layer).__name__ == "LSTM" else (zero,)
    times = range(length)
    outputs = []
    for t in reversed(times) if layer.go_backwards else times:
        after = step(inputs[t], state)
        kept = None if mask is None else ops.part(mask, 1, t, 1)
        state = after if kept is None else _kept(kept, after, state)
        silent = kept is not None and layer.zero_output_for_mask
        outputs.append(ops.choose(kept, state[0], zero) if silent else state[0])
    return tf.stack(outputs, axis=1) if layer.return_sequences else outputs[-1]


def _kept(mask: Tensor, after: State, before: State) -> State:
    return tuple(ops.choose(mask, new, old) for new, old in zip(after, before, strict=True))


def _input_products(cell: Any, x: Tensor, forward: ForwardPass) -> Tensor:
    """Return the inputs' part of the gates, [B, T, gates]: one product for all steps."""
    batch, length, width = x.shape
    kernel = forward.value(cell.kernel)
    bias = _biases(cell, forward)[0]
    y = _product(tf.reshape(x, [batch * length, width]), kernel, bias)
    return tf.reshape(y, [batch, length, kernel.shape[1]])


TimeStep = Callable[[Tensor, State], State]
"""The input's part of the gates [B, gates] and state before -> state after, the output first."""


def _gates(x: Tensor, count: int) -> list[Tensor]:
    return list(tf.split(x, count, axis=1))


def _product(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    y = ops.matmul(x, kernel)
    return y if bias is None else ops.add_bias(y, bias)


def _biases(cell: Any, forward: ForwardPass) -> tuple[Tensor | None, Tensor | None]:
    """Return the biases of the input's and of the state's part of the gates."""
    if not cell.use_bias:
        return None, None
    bias = forward.value(cell.bias)
    if not getattr(cell, "reset_after", False):
        return bias, None
    width = bias.shape[1]
    return tuple(tf.reshape(ops.part(bias, 0, k, 1), [width]) for k in (0, 1))


def _simple_rnn(layer: Any, forward: ForwardPass) -> TimeStep:
    cell = layer.cell
    recurrent = forward.value(cell.recurrent_kernel)

    def step(x: Tensor, state: State) -> State:
        total = x + ops.matmul(state[0], recurrent)
        return (forward.activate(cell.activation, total, layer),)

    return step


def _lstm(layer: Any, forward: ForwardPass) -> TimeStep:
    cell = layer.cell
    recurrent = forward.value(cell.recurrent_kernel)

    def step(x: Tensor, state: State) -> State:
        output, memory = state
        total = x + ops.matmul(output, recurrent)
        into, forget, candidate, out = _gates(total, 4)
        into, forget, out = (
            forward.activate(cell.recurrent_activation, gate, layer) for gate in (into, forget, out)
        )
        memory = forget * memory + into * forward.activate(cell.activation, candidate, layer)
        return out * forward.activate(cell.activation, memory, layer), memory

    return step


def _gru(layer: Any, forward: ForwardPass) -> TimeStep:
    cell = layer.cell
    recurrent = forward.value(cell.recurrent_kernel)
    recurrent_bias = _biases(cell, forward)[1]
    split = cell.units * 2

    def gate(x: Tensor) -> Tensor:
        return forward.activate(cell.recurrent_activation, x, layer)

    def step(x: Tensor, state: State) -> State:
        (output,) = state
        of_x = _gates(x, 3)
        if cell.reset_after:
            of_state = _gates(_product(output, recurrent, recurrent_bias), 3)
            update, reset = gate(of_x[0] + of_state[0]), gate(of_x[1] + of_state[1])
            candidate = of_x[2] + reset * of_state[2]
        else:
            both = _gates(ops.matmul(output, ops.part(recurrent, 1, 0, split)), 2)
            update, reset = gate(of_x[0] + both[0]), gate(of_x[1] + both[1])
            last = ops.part(recurrent, 1, split, cell.units)
            candidate = of_x[2] + ops.matmul(reset * output, last)
        candidate = forward.activate(cell.activation, candidate, layer)
        return (update * output + (1.0 - update) * candidate,)

    return step


_TIME_STEPS: dict[str, Callable[[Any, ForwardPass], TimeStep]] = {
    "SimpleRNN": _simple_rnn,
    "LSTM": _lstm,
    "GRU": _gru,
}
