"""Robust rules, for rounds in which up to `byzantine` clients are hostile.

Coordinate-wise trimmed mean and median (Yin et al. 2018, "Byzantine-Robust Distributed Learning:
Towards Optimal Statistical Rates") and multi-Krum (Blanchard et al. 2017, "Machine Learning with
Adversaries: Byzantine Tolerant Gradient Descent"). They weigh all clients alike, since a client
chooses its number of examples itself, and need codecs whose zeros mean zero (`Traits.dense`). The
decoded updates lie in a file: memory holds one of them, and a block of coordinates of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
import numpy.typing as npt

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.average import WeightedUpdate
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.noise import MeanNoise
from featherfed.compression.exchange.round import RoundContext
from featherfed.compression.exchange.update import decode_update
from featherfed.compression.importance import Allocation
from featherfed.compression.registry import parse_codec
from featherfed.server.settings.rule import Rule

BLOCK = 2**20
"""Values, of all updates together, that are in memory at a time."""


class Rows:
    """Updates in a file, one row each: float32 [count, width], read by blocks of columns."""

    def __init__(self, file: IO[bytes], width: int) -> None:
        self._file = file
        self._width = width
        self.count = 0

    def append(self, tensors: Sequence[Array]) -> None:
        """Write one update; raise OSError if there is no room for it."""
        for tensor in tensors:
            self._file.write(np.ascontiguousarray(tensor, "<f4").tobytes())
        self.count += 1

    def blocks(self) -> Iterator[Array]:
        """Yield all rows of successive blocks of columns, float32 [count, block]."""
        step = max(1, BLOCK // self.count)
        for at in range(0, self._width, step):
            size = min(step, self._width - at)
            yield np.stack([self._read(row * self._width + at, size) for row in range(self.count)])

    def _read(self, at: int, size: int) -> Array:
        self._file.seek(4 * at)
        return np.frombuffer(self._file.read(4 * size), "<f4").astype(np.float32)


def combine(rule: Rule, rows: Rows) -> Array:
    """Return at least `rule.min_updates` rows aggregated by `rule`, float32 [width]."""
    chosen = list(range(rows.count))
    if rule.name == "multi_krum":
        chosen = krum_choice(_distances(rows), rule.byzantine)
    trim = {"trimmed_mean": rule.byzantine, "median": (rows.count - 1) // 2}.get(rule.name, 0)
    columns = [trimmed_mean(block[chosen], trim) for block in rows.blocks()]
    return np.concatenate([np.zeros(0, np.float32), *columns])


def trimmed_mean(block: Array, trim: int) -> Array:
    """Return the mean of each column of [count, n] without its `trim` smallest and largest values.

    With the largest `trim` that leaves a value, that is the median.
    """
    kept = np.sort(block, axis=0)[trim : len(block) - trim] if trim else block
    mean: Array = kept.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def krum_choice(distances: npt.NDArray[np.float64], byzantine: int) -> list[int]:
    """Return the rows that multi-Krum averages, from squared distances [count, count].

    A row's score is the sum of the distances to its count - byzantine - 2 nearest others; as many
    rows of the best scores are taken.
    """
    count = len(distances)
    near = count - byzantine - 2
    others = np.sort(np.where(np.eye(count, dtype=bool), np.inf, distances), axis=1)
    scores = others[:, :near].sum(axis=1)
    return sorted(np.argsort(scores, kind="stable")[:near].tolist())


def _distances(rows: Rows) -> npt.NDArray[np.float64]:
    """Return the squared distances between rows.

    |a|^2 + |b|^2 - 2ab in float64 is exact to a part in 10^15 of the larger norm, so a hostile row,
    however long, spoils its own distances alone.
    """
    products = np.zeros((rows.count, rows.count))
    for block in rows.blocks():
        wide = block.astype(np.float64)
        products += wide @ wide.T
    squares = np.diag(products)
    return np.maximum(squares[:, None] + squares - 2 * products, 0)


class RobustMean:
    """A round's aggregate under a robust rule."""

    def __init__(
        self, rule: Rule, manifest: Manifest, context: RoundContext, scratch: IO[bytes]
    ) -> None:
        """Begin without updates; `scratch`: an empty file for a float32 model per update."""
        self._rule = rule
        self._manifest = manifest
        self._context = context
        self._rows = Rows(scratch, manifest.num_values)

    def add(self, update: WeightedUpdate) -> list[Array]:
        """Add an update and return it decoded; raise WireError or CodecError if that fails."""
        decoded = decode_update(
            parse_codec(update.codec),
            self._manifest,
            update.payload,
            masks=self._context.masks,
            context=self._context.for_slot(update.slot),
        )
        self._rows.append(decoded)
        return decoded

    def mean(self) -> list[Array]:
        """Return the aggregate, float32 in manifest shapes."""
        return self._manifest.split(combine(self._rule, self._rows))

    def noise(self) -> MeanNoise | None:
        """Return None: a robust rule weighs values, not updates."""
        return None

    def allocation(self) -> Allocation | None:
        """Return the importance known before: dense codecs report none."""
        return self._context.allocation
