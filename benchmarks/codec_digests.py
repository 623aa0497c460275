"""Digests of encoded and decoded updates, to compare machines by: part of `make arm64`.

`codecdigests.py OWN GIVEN RESULT.json` encodes five clients' updates into the folder OWN and
decodes those in GIVEN, which another machine may have made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.average import WeightedUpdate, average
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import Manifest, TensorSpec, Uniform, weights_digest
from featherfed.compression.exchange.round import RoundStart, start_round
from featherfed.compression.exchange.update import apply_update, decode_update, encode_update
from featherfed.compression.key import Key
from featherfed.compression.registry import parse_codec
from featherfed.compression.sampler import Sampler

SEED = 7
SLOTS = 5
SHAPES = [(3, 3, 1, 32), (32,), (3, 3, 32, 64), (64,), (1600, 128), (128,), (128, 10), (10,)]
MANIFEST = Manifest(
    tuple(
        TensorSpec(f"t{i}", shape, initial=Uniform(0.1), prunable=len(shape) > 1)
        for i, shape in enumerate(SHAPES)
    )
)
CODECS = [
    "sketch(0.0276)",
    "sketch(0.0276, 1, profile)",
    "sketch(0.0276, 2)",
    "sketch(0.0276, 4)",
    "sketch(0.0276, 0.1875)",
    "sketch(0.0276, 0.1875, bounded)",
    "sketch(0.0276, 0.1875, coarse)",
    "sketch(0.0276, 0.1875, levels)",
    "deadzone(0.15) | zstd(1)",
    "quantize(8) | zstd",
    "topk(0.01) | sign | zstd",
    "qsgd(1) | zstd",
    "kmeans(4) | zstd",
    "lowrank(2) | float16",
    "eden",
    "float16",
    "float8",
    "float32",
]
SPARSITIES = (0.0, 0.8)


def update(slot: int) -> list[Array]:
    """Return a client's update: products of uniform numbers (heavy tails), exact everywhere."""
    return [_values(Key.root(SEED).child("update", slot, i), s) for i, s in enumerate(SHAPES)]


def _values(key: Key, shape: tuple[int, ...]) -> Array:
    size = int(np.prod(shape))
    factors = (key.words(3 * size) >> np.uint64(52)).astype(np.int64) - 2**11  # 12 bits each
    a, b, c = factors.astype(np.float64).reshape(3, size) * 2.0**-11  # 36 bits, so exact
    return (a * b * c * 2.0**-6).astype(np.float32).reshape(shape)


@contextlib.contextmanager
def drawn() -> Iterator[list[Any]]:
    """Yield a list to which sketches append the coordinates they draw: flat int64, by tensor."""
    seen: list[Any] = []
    draw = Sampler.draw

    def spy(self: Any, *arguments: Any) -> Iterator[Any]:
        for item in draw(self, *arguments):
            seen.append(item.positions.astype("<i8"))
            yield item

    Sampler.draw = spy  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Sampler.draw = draw  # type: ignore[method-assign]


def measure(own: Path, given: Path) -> dict[str, Any]:
    """Return the digests; write this machine's payloads to `own`, read those in `given`."""
    weights = initial_weights(MANIFEST, SEED)
    facts: dict[str, Any] = {
        "updates": digest(*(tensor for slot in range(SLOTS) for tensor in update(slot))),
        "version 0": weights_digest(weights).hex(),
        "codecs": [],
    }
    for sparsity in SPARSITIES:
        start = start_round(MANIFEST, weights, sparsity)
        facts[f"mask at {sparsity:g}"] = digest(*(m for m in start.masks if m is not None))
        facts["codecs"] += [_codec(text, sparsity, start, own, given) for text in CODECS]
    return facts


def _codec(text: str, sparsity: float, start: RoundStart, own: Path, given: Path) -> dict[str, Any]:
    codec, masks = parse_codec(text), start.masks
    round_ = start.context(SEED, 1, SLOTS, None)
    sent: list[Any] = []
    coordinates: list[Any] = []
    parts = []
    for slot in range(SLOTS):
        context = round_.for_slot(slot)
        with drawn() as where:
            encoded = encode_update(codec, MANIFEST, update(slot), masks=masks, context=context)
        coordinates += where
        name = hashlib.sha256(f"{text} {sparsity} {slot}".encode()).hexdigest()[:16]
        (own / name).write_bytes(encoded.payload)
        sent.append(np.frombuffer(encoded.payload, np.uint8))
        parts.append(WeightedUpdate(slot, 100 + slot, text, (given / name).read_bytes()))
    decoded = [
        decode_update(codec, MANIFEST, p.payload, masks=masks, context=round_.for_slot(p.slot))
        for p in parts
    ]
    mean = average(MANIFEST, round_, parts)
    version = apply_update(MANIFEST, start.weights, mean.mean())
    allocation = mean.allocation()
    return {
        "codec": text,
        "sparsity": sparsity,
        "bytes": sum(len(payload) for payload in sent),
        "coordinates": digest(*coordinates),
        "payloads": digest(*sent),
        "decoded": digest(*(tensor for tensors in decoded for tensor in tensors)),
        "next version": weights_digest(version).hex(),
        "importance": "" if allocation is None else allocation.digest.hex(),
    }


def digest(*arrays: Any) -> str:
    """Return the SHA-256 of the arrays' bytes, one after the other."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


if __name__ == "__main__":
    OWN, GIVEN, RESULT = map(Path, sys.argv[1:])
    OWN.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(measure(OWN, GIVEN), indent=1), "utf-8")
