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


def unroll(layer: Any, x: Tensor, forward: ForwardPass) -> Tensor:
    """Return the last output [B, U] of a recurrent layer on x [B, T, I], or all [B, T, U]."""
    batch, length, width = x.shape
    zero = tf.zeros([batch, layer.units])
    state: State = (zero, zero) if type(layer).__name__ == "LSTM" else (zero,)
    step = _TIME_STEPS[type(layer).__name__](layer, forward)
    times = range(length)
    outputs = []
    for t in reversed(times) if layer.go_backwards else times:
        state = step(tf.reshape(ops.part(x, 1, t, 1), [batch, width]), state)
        outputs.append(state[0])
    if not layer.return_sequences:
        return outputs[-1]
    return tf.concat([tf.reshape(y, [batch, 1, layer.units]) for y in outputs], axis=1)


TimeStep = Callable[[Tensor, State], State]
"""Input [B, I] and state before -> state after, whose first tensor is the output."""


def _gates(x: Tensor, count: int) -> list[Tensor]:
    width = x.shape[-1] // count
    return [ops.part(x, len(x.shape) - 1, k * width, width) for k in range(count)]


def _product(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    y = ops.matmul(x, kernel)
    return y if bias is None else ops.add_bias(y, bias)


def _simple_rnn(layer: Any, forward: ForwardPass) -> TimeStep:
    cell = layer.cell
    kernel, recurrent = forward.value(cell.kernel), forward.value(cell.recurrent_kernel)
    bias = forward.value(cell.bias) if cell.use_bias else None

    def step(x: Tensor, state: State) -> State:
        total = _product(x, kernel, bias) + ops.matmul(state[0], recurrent)
        return (forward.activate(cell.activation, total, layer),)

    return step


def _lstm(layer: Any, forward: ForwardPass) -> TimeStep:
    cell = layer.cell
    kernel, recurrent = forward.value(cell.kernel), forward.value(cell.recurrent_kernel)
    bias = forward.value(cell.bias) if cell.use_bias else None

    def step(x: Tensor, state: State) -> State:
        output, memory = state
        total = _product(x, kernel, bias) + ops.matmul(output, recurrent)
        into, forget, candidate, out = _gates(total, 4)
        into, forget, out = (
            forward.activate(cell.recurrent_activation, gate, layer) for gate in (into, forget, out)
        )
        memory = forget * memory + into * forward.activate(cell.activation, candidate, layer)
        return out * forward.activate(cell.activation, memory, layer), memory

    return step


def _gru(layer: Any, forward: ForwardPass) -> TimeStep:
    cell = layer.cell
    kernel, recurrent = forward.value(cell.kernel), forward.value(cell.recurrent_kernel)
    bias, recurrent_bias = _gru_biases(cell, forward)
    split = cell.units * 2

    def gate(x: Tensor) -> Tensor:
        return forward.activate(cell.recurrent_activation, x, layer)

    def step(x: Tensor, state: State) -> State:
        (output,) = state
        of_x = _gates(_product(x, kernel, bias), 3)
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


def _gru_biases(cell: Any, forward: ForwardPass) -> tuple[Tensor | None, Tensor | None]:
    if not cell.use_bias:
        return None, None
    bias = forward.value(cell.bias)
    if not cell.reset_after:
        return bias, None
    width = bias.shape[1]
    return tuple(tf.reshape(ops.part(bias, 0, k, 1), [width]) for k in (0, 1))


_TIME_STEPS: dict[str, Callable[[Any, ForwardPass], TimeStep]] = {
    "SimpleRNN": _simple_rnn,
    "LSTM": _lstm,
    "GRU": _gru,
}
