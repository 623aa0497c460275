"""From a byte budget to the codec of a round: only the cohort's total bits count.

The noise of a sketched mean falls with the bits of all clients together, so the budget is the
cohort's and K clients send 1/K of it each. What is left after overhead is the same in every round.
The noise of early rounds is trained away, that of the last ones would stay in the model: they take
shorter steps, which costs no byte and does more than cheap early and dear late rounds do.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import NamedTuple

import numpy as np

from featherfed.compression.codec import Codec
from featherfed.compression.errors import CodecError
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.round import FULL_RATE, start_round
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.registry import parse_codec
from featherfed.compression.sketch import Sketch


class Preset(NamedTuple):
    """What each of five clients sends: float32 / `ratio`, but never less than `floor` bytes.

    What statistics cost, such as those of batch normalisation, comes on top.
    """

    ratio: float
    floor: float


PRESETS: dict[str, str | Preset] = {
    "exact": "deadzone(0.15) | zstd(1)",
    "transparent": Preset(315, 900),
    "balanced": Preset(1020, 400),
    "extreme": Preset(1545, 250),
}
"""A codec, or a budget: small models cannot be compressed as much as large ones."""

FEW = 2
"""So few clients do not average noise away: they send the largest values instead."""

_CLIENTS = 5
_UNITS = {"B": 1, "kB": 1000, "KiB": 1024, "MB": 1000**2, "MiB": 1024**2}
_TEXT = re.compile(r"(\d+(?:\.\d+)?) ?(B|kB|KiB|MB|MiB)(?:/round)?")
_LARGEST = "topk({:.3g}) | quantize(4) | zstd"
_LAST_STEPS = (128, 192)  # 256ths, by rounds left
_SETTLED = 5  # rounds: shorter runs still need whole steps
_NOISY = 0.25  # share of the coordinates that all clients together send
_BLOCK = 64  # bits: a sketch sends whole blocks
_STATISTICS_SHARE = 8  # statistics that take less than one part in this many are always sent
_REPORT_SHARE = 3  # reports of importance may take one part in this many of a client's bytes


def check_uplink(text: str) -> str:
    """Return the canonical form of a preset, a budget such as `4kB/round`, or codec text.

    Raises CodecError.
    """
    if text in PRESETS:
        return text
    if match := _TEXT.fullmatch(text.strip()):
        if float(match[1]) <= 0:
            raise CodecError("a budget of no bytes leaves nothing to send; try 4kB/round")
        return f"{match[1]}{match[2]}/round"
    try:
        return str(parse_codec(text))
    except CodecError as error:
        presets = ", ".join(PRESETS)
        raise CodecError(
            f"{error} A preset ({presets}) or a budget (4kB/round) will do too"
        ) from None


def fixed_codec(text: str) -> Codec | None:
    """Return the codec that a checked uplink means in every round, None if it is a budget."""
    preset = PRESETS.get(text, text)
    return parse_codec(preset) if isinstance(preset, str) and is_codec(preset) else None


def is_codec(text: str) -> bool:
    """Whether a checked uplink is the text of a codec, not a preset or a budget."""
    return text not in PRESETS and not _TEXT.fullmatch(text)


class Uplink:
    """What the clients of each round send, from a checked `uplink` text."""

    def __init__(self, text: str, manifest: Manifest, rounds: int) -> None:
        self._manifest = manifest
        self._rounds = rounds
        self._codec: str | None = None
        self._cohort_bytes = 0.0
        preset = PRESETS.get(text)
        if isinstance(preset, Preset):
            each = max(4 * manifest.num_values / preset.ratio, preset.floor)
            self._cohort_bytes = _CLIENTS * (each + _statistics_bytes(manifest, each, rounds))
        elif match := _TEXT.fullmatch(text):
            self._cohort_bytes = float(match[1]) * _UNITS[match[2]]
        else:
            self._codec = preset or text

    @property
    def stages(self) -> frozenset[str]:
        """Names of the codec stages that a client needs in any round."""
        if self._codec is not None:
            return parse_codec(self._codec).needs
        return (
            parse_codec("sketch(0.1)").needs | parse_codec("topk(0.1) | quantize(1) | zstd").needs
        )

    def server_rate(self, cohort: int, round_: int, sparsity: float = 0.0) -> int:
        """Return the server learning rate of a round in 256ths.

        The noise of the last rounds is never trained away: if few coordinates are sent, the last
        two steps are shortened, which averages the last versions.
        """
        left = self._rounds - round_
        if self._codec is not None or cohort <= FEW or self._rounds < _SETTLED or left > 1:
            return FULL_RATE
        codec = parse_codec(self.codec(cohort, round_, sparsity))
        noisy = codec.traits.sampling_rate * cohort < _NOISY
        return _LAST_STEPS[left] if noisy else FULL_RATE

    def codec(self, cohort: int, round_: int, sparsity: float = 0.0) -> str:
        """Return the codec for each of `cohort` clients in a round, counted from 1.

        The bytes stay the same under a mask of some `sparsity`: more of what it keeps is sent.
        """
        if self._codec is not None:
            return self._codec
        each = self._cohort_bytes / cohort
        return _plan(self._manifest, each, cohort, self._rounds, sparsity)[round_ - 1]


def _statistics_bytes(manifest: Manifest, client_bytes: float, rounds: int) -> float:
    """Return what statistics cost a client of a preset's cohort in the mean of the rounds."""
    states = _states(manifest, client_bytes, _CLIENTS, rounds)
    sizes = [_size(manifest, _CLIENTS, "bare", state) for state in states]
    return sum(sizes) / rounds - _size(manifest, _CLIENTS, "bare", "held")


@cache
def _plan(
    manifest: Manifest, client_bytes: float, cohort: int, rounds: int, sparsity: float
) -> list[str]:
    if cohort <= FEW:
        return [_largest_values(manifest, client_bytes)] * rounds
    kept = sum(
        spec.size * (1 - sparsity * spec.prunable) for spec in manifest if spec.role == "trainable"
    )
    sides = ["profile" if _is_told(r, rounds) else "bare" for r in range(1, rounds + 1)]
    report = _size(manifest, cohort, "profile", "sent") - _size(manifest, cohort, "bare", "sent")
    if sparsity > 0 or sides.count("profile") * report * _REPORT_SHARE > client_bytes * rounds:
        sides = ["bare"] * rounds
    states = _states(manifest, client_bytes, cohort, rounds)
    parts = list(zip(sides, states, strict=True))
    overhead = sum(_size(manifest, cohort, side, state) for side, state in parts)
    blocks = max(1, math.floor((client_bytes * rounds - overhead) * 8 / _BLOCK / rounds))
    density = float(f"{min(1.0, blocks * _BLOCK / kept):.4g}")
    return [str(Sketch(density, 1, side, state)) for side, state in parts]


def _states(manifest: Manifest, client_bytes: float, cohort: int, rounds: int) -> list[str]:
    """Return by round whether statistics are sent.

    Many are those of batch normalisation, which training does not read, only inference.
    """
    cost = _size(manifest, cohort, "bare", "sent") - _size(manifest, cohort, "bare", "held")
    if cost * _STATISTICS_SHARE <= client_bytes:
        return ["sent"] * rounds
    return ["sent" if r == rounds or _is_told(r, rounds) else "held" for r in range(1, rounds + 1)]


def _is_told(round_: int, rounds: int) -> bool:
    """Importance and statistics change fast, then slowly: rounds 1, 2, 4, ... but not the last."""
    return round_ & (round_ - 1) == 0 and round_ < rounds


@cache
def _size(manifest: Manifest, cohort: int, side: str, statistics: str) -> int:
    """Return the bytes of a payload besides its sketched bits, really encoded."""
    nothing = [np.zeros(spec.shape, np.float32) for spec in manifest]
    context = start_round(manifest, nothing, 0.0).context(0, 1, cohort, None).for_slot(0)
    least = Sketch(1e-9, 1, side, statistics)
    return len(encode_update(least, manifest, nothing, context=context).payload) - _BLOCK // 8


def _largest_values(manifest: Manifest, client_bytes: float) -> str:
    """Return sparse ternary with error feedback (STC) of about `client_bytes`."""
    bits = 8 * client_bytes / manifest.num_values
    fraction = bits / 4
    for _ in range(20):  # a kept value costs its sign and its position, log2(1/fraction) + 1.5 bits
        fraction = bits / (2.5 + math.log2(1 / min(fraction, 0.5)))
    return str(parse_codec(_LARGEST.format(min(0.5, fraction))))
