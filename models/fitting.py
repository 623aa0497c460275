"""Says whether given weights fit a model, and where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from featherfed.compression.arrays import Array
from featherfed.models.errors import ModelError

_NAMED = 5  # tensors in a message


def check_fit(
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    tensors: Sequence[Array],
    given: Sequence[str] = (),
) -> None:
    """Raise ModelError unless `tensors` have these shapes, in this order.

    `names`: of the model's tensors. `given`: of the tensors, where they have any.
    """
    wrong = []
    for name, shape, tensor, own in zip_longest(names, shapes, tensors, given):
        if tensor is not None and shape == tensor.shape:
            continue
        needs = "nothing" if name is None else f"{name} {list(shape)}"
        has = "nothing" if tensor is None else f"{own or 'a tensor'} {list(tensor.shape)}"
        wrong.append(f"{needs} gets {has}")
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise ModelError(
            f"the weights do not fit the model: {'; '.join(wrong[:_NAMED])}{more}; give weights of "
            "the same architecture, whose tensors have these shapes in this order"
        )
