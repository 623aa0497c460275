"""Measures the speed of codecs on one core, and zstd's in the same run: part of `make bench`."""

# ruff: noqa: E402 - one thread must be asked for before numpy is there
from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from backports import zstd

from featherfed.compression.codec import Codec
from featherfed.compression.context import Context
from featherfed.compression.exchange.average import Average, WeightedUpdate
from featherfed.compression.exchange.manifest import Manifest, TensorSpec
from featherfed.compression.exchange.round import RoundContext, round_key
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.registry import parse_codec

RESULT = Path(__file__).parent / "results" / "speed.json"
CODECS = [
    "sketch(0.01)",
    "sketch(0.0276)",
    "sketch(0.0276, 1, profile)",
    "sketch(0.1)",
    "deadzone(0.15) | zstd(1)",
    "quantize(8) | zstd",
    "topk(0.01) | sign | zstd",
    "eden",
]
SHAPES = [(3, 3, 3, 32), *((1, 1, 96 * k, 96 * k) for k in range(1, 9)), (320, 1280), (1280, 1000)]
CLIENTS = 5


def rate(size: int, work: Callable[[], object], times: int = 7) -> float:
    """Return megabytes a second of processor time, the best of some runs."""
    best = float("inf")
    for _ in range(times):
        before = time.process_time()
        work()
        best = min(best, time.process_time() - before)
    return size / 1e6 / best


def main() -> None:
    """Measure every codec and write the result."""
    manifest = Manifest(tuple(TensorSpec(f"t{i}", shape) for i, shape in enumerate(SHAPES)))
    rng = np.random.default_rng(0)
    update = [rng.standard_normal(s, np.float32) * np.float32(1e-3) for s in SHAPES]
    size = 4 * manifest.num_values
    codes = np.concatenate([np.clip(np.rint(u.ravel() * 4e4), -127, 127) for u in update])
    plain = codes.astype(np.int8).tobytes()
    measured = {
        "float32_bytes": size,
        "zstd": rate(size, lambda: zstd.compress(plain, 3)),
        "codecs": [],
    }
    round_ = RoundContext(round_key(0, 1), CLIENTS, [None] * len(manifest), None)
    for text in CODECS:
        codec, context = parse_codec(text), round_.for_slot(0)

        def encode(codec: Codec = codec, context: Context = context) -> bytes:
            return encode_update(codec, manifest, update, context=context).payload

        payload = encode()

        def fold(text: str = text, payload: bytes = payload) -> None:
            mean = Average(manifest, round_, CLIENTS)
            for _ in range(CLIENTS):
                mean.add(WeightedUpdate(0, 1, text, payload))
            mean.mean()

        measured["codecs"].append({
            "codec": text,
            "bytes": len(payload),
            "encode": rate(size, encode),
            "fold": rate(CLIENTS * size, fold, 3),
        })  # fmt: skip
        print(measured["codecs"][-1], flush=True)
    RESULT.write_text(json.dumps(measured, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
