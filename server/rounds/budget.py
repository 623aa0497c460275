"""From a client's byte budget to the codec of each round.

Clients send sketches, whose noise averages out over a cohort. What the budget of the whole run
leaves after overhead is spent evenly: every round's sketch has as many bits.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.round import start_round
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.quantizers import PEAK_BITS
from featherfed.compression.registry import parse_codec
from featherfed.compression.sketch import BOUNDED, COARSE, LEVELS, Sketch

SMALL_COHORT = 2
"""Cohorts of up to this many clients do not average noise out: they send the largest values."""

_LARGEST_VALUES = "topk({:.3g}) | quantize(4) | zstd"
_BLOCK_BITS = 64  # a sketch sends whole blocks
_STATISTICS_PART = 8  # statistics that cost up to 1/8 of a client's bytes are sent in every round
_REPORTS = {COARSE: [(5, BOUNDED, BOUNDED), (4, COARSE, LEVELS), (4, LEVELS, LEVELS)]}
"""Sides of sketches that report importance in the first round and in later ones, of which the first
is taken that costs up to 1/5 or 1/4 of a client's bytes."""
_OLD_REPORTS_PART = 3  # in runs of older versions, which know one side, it costs up to 1/3


@cache
def plan_codecs(
    manifest: Manifest, client_bytes: float, cohort: int, rounds: int, sparsity: float, report: str
) -> list[str]:
    """Return the codec text of each round, for clients that send `client_bytes` a round on average.

    `cohort`: clients in a round. `sparsity`: share of the prunable weights that masks remove; the
    bits are spent on the others. `report`: as in the run's plan.
    """
    if cohort <= SMALL_COHORT:
        return [_largest_values(manifest, client_bytes)] * rounds
    kept = sum(
        spec.size * (1 - sparsity * spec.prunable) for spec in manifest if spec.role == "trainable"
    )
    sides = ["bare"] * rounds
    if sparsity == 0:  # clients know importance by row only of whole tensors
        sides = _reports(manifest, client_bytes, cohort, rounds, report)
    statistics = _statistics_by_round(manifest, client_bytes, cohort, rounds)
    parts = list(zip(sides, statistics, strict=True))
    overhead = sum(_overhead(manifest, cohort, *part) for part in parts)
    bits = (client_bytes * rounds - overhead) * 8
    blocks = max(1, math.floor(bits / _BLOCK_BITS / rounds))
    density = float(f"{min(1.0, blocks * _BLOCK_BITS / kept):.4g}")
    # Peaks of all coordinates are this many bits; beyond, whole signs of some are the better code.
    value_bits = PEAK_BITS if density <= PEAK_BITS else 1
    return [str(Sketch(density, value_bits, *part)) for part in parts]


def _reports(
    manifest: Manifest, client_bytes: float, cohort: int, rounds: int, report: str
) -> list[str]:
    """Return the side of each round's sketch: the most exact reports that cost a small part."""
    bare = _overhead(manifest, cohort, "bare", "sent")
    for part, first, later in _REPORTS.get(report, [(_OLD_REPORTS_PART, report, report)]):
        sides = [
            (first if r == 1 else later) if _is_report_round(r, rounds) else "bare"
            for r in range(1, rounds + 1)
        ]
        cost = sum(_overhead(manifest, cohort, side, "sent") - bare for side in sides)
        if cost * part <= client_bytes * rounds:
            return sides
    return ["bare"] * rounds


def statistics_bytes(manifest: Manifest, client_bytes: float, cohort: int, rounds: int) -> float:
    """Return the bytes that a client spends on statistics, in the mean over the rounds."""
    statistics = _statistics_by_round(manifest, client_bytes, cohort, rounds)
    sizes = [_overhead(manifest, cohort, "bare", each) for each in statistics]
    return sum(sizes) / rounds - _overhead(manifest, cohort, "bare", "held")


def _statistics_by_round(
    manifest: Manifest, client_bytes: float, cohort: int, rounds: int
) -> list[str]:
    """Return "sent" or "held" for the statistics of each round.

    Large ones are those of batch normalisation; training does not read them, only inference does.
    """
    sent = _overhead(manifest, cohort, "bare", "sent")
    cost = sent - _overhead(manifest, cohort, "bare", "held")
    if cost * _STATISTICS_PART <= client_bytes:
        return ["sent"] * rounds
    # A run that calibrates at its end measures them then.
    last = 0 if all(spec.momentum for spec in manifest if spec.role != "trainable") else rounds
    return [
        "sent" if r == last or _is_report_round(r, rounds) else "held" for r in range(1, rounds + 1)
    ]


def _is_report_round(round_: int, rounds: int) -> bool:
    """Whether clients report importance and large statistics: in rounds 1, 2, 4, ..., not the last.

    Both change fast at first, then slowly.
    """
    return round_ & (round_ - 1) == 0 and round_ < rounds


@cache
def _overhead(manifest: Manifest, cohort: int, side: str, statistics: str) -> int:
    """Return the bytes of a sketch's payload besides its sketched bits, by encoding zeros."""
    zeros = [np.zeros(spec.shape, np.float32) for spec in manifest]
    context = start_round(manifest, zeros, 0.0).context(0, 1, cohort, None).for_slot(0)
    one_block = Sketch(1e-9, 1, side, statistics)
    payload = encode_update(one_block, manifest, zeros, context=context).payload
    return len(payload) - _BLOCK_BITS // 8


def _largest_values(manifest: Manifest, client_bytes: float) -> str:
    """Return a codec of the largest values, with error feedback, of about `client_bytes`."""
    bits = 8 * client_bytes / manifest.num_values
    fraction = bits / 4
    for _ in range(20):  # a kept value costs its sign and its position, log2(1/fraction) + 1.5 bits
        fraction = bits / (2.5 + math.log2(1 / min(fraction, 0.5)))
    return str(parse_codec(_LARGEST_VALUES.format(min(0.5, fraction))))
