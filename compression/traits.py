"""Properties of stages and codecs, which callers test instead of a codec's class.

A new property is a field with a default, its line in `chain_traits`, and an entry in the `traits`
of the stages that have it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Traits:
    """Properties of a stage or a codec; each names only those that differ from the defaults."""

    lossless: bool = False
    """Decoding gives back every bit."""
    near_lossless: bool = False
    """What is lost has less than a thousandth of the energy (sum of squares) of what is sent."""
    error_feedback: bool = False
    """The sender must keep what encoding lost and add it to its next update."""
    dense: bool = False
    """Every value is sent and comes back close to what it was; a zero is a value, not a gap."""
    keyed: bool = False
    """A payload decodes only in the `Context` that it was encoded in."""
    takes_small_tensors: bool = False
    """Takes small trainable tensors too, which otherwise travel near-lossless beside the codec."""
    statistics_as_values: bool = False
    """Statistics travel as new values in 8 bits, otherwise as near-lossless changes.

    Clipping an update's norm bounds changes, but not these values.
    """
    sends_statistics: bool = True
    """Statistics are sent; otherwise they keep their old values."""
    shares_statistics: bool = False
    """Where statistics would cost much, each client of a round sends only a part of them."""
    sampling_rate: float = 1.0
    """Share of the coordinates that an update sends, each divided by its chance of being sent.

    Such an update's norm is about 1 / sqrt(sampling_rate) times what it was before encoding.
    """


def chain_traits(stages: Sequence[Traits]) -> Traits:
    """Return the traits of stages in a row; of none, those of a lossless stage."""
    return Traits(
        lossless=all(stage.lossless for stage in stages),
        near_lossless=all(stage.near_lossless for stage in stages),
        error_feedback=any(stage.error_feedback for stage in stages),
        dense=all(stage.dense for stage in stages),
        keyed=any(stage.keyed for stage in stages),
        takes_small_tensors=any(stage.takes_small_tensors for stage in stages),
        statistics_as_values=any(stage.statistics_as_values for stage in stages),
        sends_statistics=all(stage.sends_statistics for stage in stages),
        shares_statistics=any(stage.shares_statistics for stage in stages),
        sampling_rate=math.prod(stage.sampling_rate for stage in stages),
    )
