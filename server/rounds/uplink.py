"""The `uplink` setting (preset, byte budget or codec) and the codec it gives in each round.

The noise of a sketched mean falls with the bits of all clients together, so a budget is the
cohort's, and each of K clients sends 1/K of it. The noise of early rounds is trained away, that of
the last ones would stay in the model: shorter steps (steps.py) cost no byte, and do more than
spending fewer bytes early and more bytes late.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from featherfed.compression.codec import Codec
from featherfed.compression.errors import CodecError
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.quantizers import PEAK_BITS
from featherfed.compression.registry import parse_codec
from featherfed.compression.sketch import COARSE, Sketch
from featherfed.server.rounds.budget import plan_codecs, statistics_bytes


class Preset(NamedTuple):
    """A budget by the size of the model: what each of five clients sends.

    `ratio`: how many times fewer bytes than the float32 model. `floor`: bytes that are sent at
    least. Statistics, such as those of batch normalisation, are added to both.
    """

    ratio: float
    floor: float


PRESETS: dict[str, str | Preset] = {
    "exact": "deadzone(0.15) | zstd(1)",
    "transparent": Preset(315, 900),
    "balanced": Preset(1020, 400),
    "extreme": Preset(1545, 250),
}
"""Preset name -> codec text or budget; small models cannot be compressed as much as large ones."""

PROMISES = {"transparent": 0.3, "balanced": 0.7, "extreme": 1.5}
"""Preset name -> points of a share such as accuracy that it loses at most against float32, in the
mean over seeds; of other metrics, percent of float32's value. Sweeps check it."""

_PRESET_CLIENTS = 5
_UNITS = {"B": 1, "kB": 1000, "KiB": 1024, "MB": 1000**2, "MiB": 1024**2}
_BUDGET = re.compile(r"(\d+(?:\.\d+)?) ?(B|kB|KiB|MB|MiB)(?:/round)?")


def check_uplink(text: str) -> str:
    """Return the canonical form of a preset, a budget such as `4kB/round`, or codec text.

    Raises CodecError.
    """
    if text in PRESETS:
        return text
    if match := _BUDGET.fullmatch(text.strip()):
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
    return text not in PRESETS and not _BUDGET.fullmatch(text)


class Uplink:
    """Chooses what the clients of each round send, by a checked `uplink` text."""

    def __init__(self, text: str, manifest: Manifest, rounds: int, report: str = COARSE) -> None:
        """`report`: what the run began with, "coarse" or the one side that older runs know."""
        self._report = report
        self._manifest = manifest
        self._rounds = rounds
        self._codec: str | None = None
        self._cohort_bytes = 0.0
        preset = PRESETS.get(text)
        self.preset = text if isinstance(preset, Preset) else None
        """The preset whose promise is to be kept, if it is one."""
        if isinstance(preset, Preset):
            each = max(4 * manifest.num_values / preset.ratio, preset.floor)
            each += statistics_bytes(manifest, each, _PRESET_CLIENTS, rounds)
            self._cohort_bytes = _PRESET_CLIENTS * each
        elif match := _BUDGET.fullmatch(text):
            self._cohort_bytes = float(match[1]) * _UNITS[match[2]]
        else:
            self._codec = preset or text

    @property
    def stages(self) -> frozenset[str]:
        """Names of the codec stages that a client needs in any round."""
        if self._codec is not None:
            return parse_codec(self._codec).needs
        sketch = Sketch(0.01, PEAK_BITS, self._report)
        return sketch.needs | parse_codec("topk(0.1) | quantize(1) | zstd").needs

    def codec(self, cohort: int, round_: int, sparsity: float = 0.0, factor: float = 1.0) -> str:
        """Return the codec text for each of `cohort` clients in a round, counted from 1.

        `factor`: how many times a preset's usual bytes they send (promise.py).

        The bytes are the same at any `sparsity` of the round's masks: more of the weights that
        remain is sent.
        """
        if self._codec is not None:
            return self._codec
        if self.preset is None:
            factor = 1.0
        client_bytes = factor * self._cohort_bytes / cohort
        texts = plan_codecs(
            self._manifest, client_bytes, cohort, self._rounds, sparsity, self._report
        )
        return texts[round_ - 1]
