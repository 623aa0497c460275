"""Codecs in which every stage occurs."""

from __future__ import annotations

from featherfed.compression.registry import STAGES

CODECS = [
    "float32",
    "float32 | zstd",
    "zstd(1)",
    "float16",
    "float16 | zstd",
    "quantize(1)",
    "quantize(3)",
    "quantize(8) | zstd",
    "quantize(4, channel) | zstd(19)",
    "quantize(12, channel)",
    "quantize(16)",
    "topk(0.01)",
    "topk(1.0)",
    "topk(0.01) | quantize(8) | zstd",
    "topk(0.1) | float16",
    "topk(0.5) | topk(0.5) | quantize(2, channel)",
    "float8",
    "deadzone(0.2) | zstd",
    "deadzone(2.0)",
    "sign",
    "topk(0.01) | sign",
    "qsgd(1) | zstd",
    "qsgd(64)",
    "eden",
    "kmeans(1)",
    "kmeans(4) | zstd",
    "lowrank(1)",
    "lowrank(2) | quantize(8) | zstd",
    *(["qsgd(1) | range", "topk(0.1) | sign | range"] if "range" in STAGES else []),
]
"""A new stage must be added here: test_codecs.py, test_golden.py and test_wire.py try all."""
