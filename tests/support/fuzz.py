#!/usr/bin/env python3
"""Coverage-guided fuzzing of everything that decodes a peer's bytes: `make fuzz`.

An input is one byte that chooses a target, and the target's bytes. Every checksum is zero here:
mutated bytes would never have the right one. Any bytes must give a value or a typed error; all
else is a finding. tests/corpus is the smallest set of inputs that covers all code reached so far.
"""

# ruff: noqa: E402 - what is fuzzed must be imported under instrumentation
from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from google.protobuf.message import DecodeError

CORPUS = Path(__file__).parent.parent / "corpus"
WORKER = "FEATHERFED_FUZZ_WORKER"
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

try:
    import atheris

    with atheris.instrument_imports(include=["featherfed.compression", "featherfed.edge_client"]):
        importlib.import_module("featherfed.edge_client.versions")
        importlib.import_module("featherfed.edge_client.follower")
except ImportError:  # no wheel for this platform: the corpus is replayed all the same
    atheris = None

from support.regression import REGRESSION

from featherfed.compression.codec import Codec
from featherfed.compression.context import Context
from featherfed.compression.errors import CodecError, WireError
from featherfed.compression.exchange.filedelta import encode_file
from featherfed.compression.exchange.manifest import Manifest, Role, TensorSpec
from featherfed.compression.exchange.update import (
    decode_update,
    encode_update,
    sketched_shapes,
)
from featherfed.compression.importance import measure_importance
from featherfed.compression.key import Key
from featherfed.compression.registry import STAGES, parse_codec
from featherfed.compression.wire import seal, unseal
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.follower import decode_release
from featherfed.edge_client.plan import task_of
from featherfed.edge_client.state import HeldModel
from featherfed.edge_client.versions import DigestMismatch, apply_links
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.standardization import check_statistics
from featherfed.server.errors import Refused
from featherfed.server.rounds.held_out import HeldOutScores
from featherfed.server.rounds.ranges import merge_ranges, read_ranges, stored_ranges
from featherfed.tasks.errors import TaskError
from featherfed.tasks.message import statistics_message, task_message
from featherfed.tasks.scaling import Statistics, merge
from featherfed.tasks.scoring import Scoring
from featherfed.tasks.task import Input, Target, TargetKind, Task

MODEL = Manifest(
    (
        TensorSpec("kernel", (40, 32), prunable=True),
        TensorSpec("bias", (32,)),
        TensorSpec("mean", (32,), Role.STATISTIC),
        TensorSpec("variance", (32,), Role.NONNEGATIVE),
        TensorSpec("nothing", (0,)),
    )
)
RELEASED = bytes(range(200))
WEIGHTS = [np.ones(spec.shape, np.float32) for spec in MODEL]
KNOWN = measure_importance([np.ones(shape, np.float32) for shape in sketched_shapes(MODEL)])
CONTEXT = Context(Key.root(1), 1, 3, KNOWN, np.ones(64, np.float32))

SCORED = (
    REGRESSION,
    Task(
        (Input("image", "uint8", (4, 4, 1)),),
        Target(TargetKind.CLASS, (), ("a", "b", "c")),
        metrics=("accuracy", "top2", "perplexity", "f1", "precision", "recall", "auc"),
    ),
)
CODECS = [
    "float32 | zstd",
    "float16",
    "quantize(3, channel)",
    "topk(0.01) | quantize(4) | zstd",
    "deadzone(0.2) | zstd",
    "topk(0.02) | sign",
    "qsgd(3)",
    "eden",
    "kmeans(2)",
    "lowrank(1) | float16",
    "sketch(0.1)",
    "sketch(0.3, 4, profile)",
    "sketch(0.1, 1, bounded)",
    "sketch(0.06, 0.1875, bounded, whole)",
    *(["deadzone(1.0) | range"] if "range" in STAGES else []),
]


def seal_context(codec: Codec) -> bytes:
    return str(codec).encode() + MODEL.digest + (CONTEXT.digest if codec.traits.keyed else b"")


def update_of(text: str) -> Callable[[bytes], object]:
    codec = parse_codec(text)

    def decode(data: bytes) -> None:
        payload = seal(data, seal_context(codec))
        decoded = decode_update(codec, MODEL, payload, context=CONTEXT)
        MODEL.check(decoded)
        assert all(np.isfinite(tensor).all() for tensor in decoded)

    return decode


def envelope(data: bytes) -> None:
    decode_update(parse_codec("float32"), MODEL, data)


def bundle(data: bytes) -> None:
    held = HeldModel(0, b"", WEIGHTS, KNOWN)
    link = pb.Link(kind=pb.Link.BUNDLE, version=1, size=len(data))
    apply_links(MODEL, 1, held, [link], data)


def links(data: bytes) -> None:
    chunk = pb.ModelChunk.FromString(data)
    apply_links(MODEL, 1, HeldModel(0, b"", WEIGHTS, KNOWN), chunk.links, chunk.data)


def codec_text(data: bytes) -> None:
    codec = parse_codec(data.decode("utf-8", "replace"))
    assert parse_codec(str(codec)) == codec


def release(data: bytes) -> None:
    chunk = pb.ReleaseChunk.FromString(data)
    with mock.patch("featherfed.edge_client.follower.MAX_FILE_BYTES", 2**20):
        decode_release(chunk.release, chunk.data, RELEASED)


def task(data: bytes) -> None:
    task_of(pb.Plan.FromString(data))


def evaluation(data: bytes) -> None:
    """Score sums that were found to be possible; the first byte chooses the task."""
    held_out = HeldOutScores(SCORED[sum(data[:1]) % len(SCORED)])
    sums = np.frombuffer(data[1 : 1 + len(data[1:]) // 4 * 4], "<f4")
    stored = held_out.read(pb.Evaluation(sums=sums.tolist()), 2**32)
    with np.errstate(divide="raise", invalid="raise"):
        held_out.scores([stored, stored])


def statistics(data: bytes) -> None:
    """Merge statistics that were found to be possible."""
    joined = pb.DataSummary(num_examples=10**6)
    joined.statistics.CopyFrom(pb.Statistics.FromString(data))
    found = check_statistics(joined, REGRESSION)
    merge([found, found]).check(REGRESSION)


TARGETS = [envelope, bundle, links, codec_text, *map(update_of, CODECS), release]


def ranges(data: bytes) -> None:
    """Merge ranges that were found to be possible."""
    stored = read_ranges(pb.RangesReport.FromString(data), 2)
    if stored:
        found = stored_ranges(stored)
        merged = merge_ranges([found, found, np.zeros_like(found)])
        assert np.isfinite(merged).all()
        assert (merged[:, 0] <= merged[:, 1]).all()


NEW_TARGETS = [ranges, task, evaluation, statistics]
"""Reached by first bytes from 0xFC on, so that the corpus of before chooses what it chose."""
no_checksums = mock.patch("featherfed.compression.wire.zlib", SimpleNamespace(crc32=lambda *_: 0))


EXPECTED = (
    WireError, CodecError, DigestMismatch, DecodeError, ClientError, TaskError, Refused,
)  # fmt: skip
"""The errors by which a peer is refused."""


def one_input(data: bytes) -> None:
    """Give the bytes to the target they choose."""
    if data:
        with no_checksums, contextlib.suppress(*EXPECTED):
            target_of(data[0])(data[1:])


def target_of(first: int) -> Callable[[bytes], object]:
    """Return the target that an input's first byte chooses."""
    new = first - (256 - len(NEW_TARGETS))
    return NEW_TARGETS[new] if new >= 0 else TARGETS[first % len(TARGETS)]


def examples() -> list[bytes]:
    """Return a valid input for every target."""
    with no_checksums:
        return list(_examples())


def _examples() -> Iterator[bytes]:
    update = [np.linspace(-1, 1, s.size, dtype=np.float32).reshape(s.shape) for s in MODEL]
    parts = []
    for number, text in enumerate(CODECS):
        codec = parse_codec(text)
        payload = encode_update(codec, MODEL, update, context=CONTEXT).payload
        body = unseal(payload, seal_context(codec))
        yield b"".join([bytes([4 + number]), body])
        yield b"\3" + text.encode()
        parts.append(pb.Part(slot=1, num_examples=1, codec=text, payload=payload))
    payload = encode_update(parse_codec("float32"), MODEL, update).payload
    yield b"\0" + payload
    clipped = pb.Part()
    clipped.CopyFrom(parts[0])
    clipped.clip = 40_000
    for part in [*parts, clipped]:
        whole = pb.Bundle(slots=3, codec="float32", parts=[part], server_rate=128)
        yield b"\1" + whole.SerializeToString()
    kinds = [pb.Link.SEED, pb.Link.SNAPSHOT, pb.Link.DELTA]
    steps = [
        pb.Link(
            kind=kind, version=1, codec="float32", size=0 if kind == pb.Link.SEED else len(payload)
        )
        for kind in kinds
    ]
    for step in steps:
        data = payload if step.size else b""
        yield b"\2" + pb.ModelChunk(links=[step], data=data).SerializeToString()
    regression = pb.Plan(task=task_message(REGRESSION), training=pb.Training(loss=REGRESSION.loss))
    yield b"\xfd" + regression.SerializeToString()
    for number, scored in enumerate(SCORED):
        sums = np.ones(Scoring(scored).size, "<f4")
        yield bytes([0xFE, number]) + sums.tobytes()
    found = Statistics.of(REGRESSION, [np.ones((9, 3), np.float32)], np.ones((9, 2), np.float32))
    yield b"\xff" + statistics_message(found).SerializeToString()
    report = pb.RangesReport(lows=[-1, 0], highs=[2, 3], num_examples=9)
    yield b"\xfc" + report.SerializeToString()
    for old in (b"", RELEASED):
        new = RELEASED[::-1]
        fact = pb.Release(size=200, digest=hashlib.sha256(new).digest(), delta=bool(old))
        chunk = pb.ReleaseChunk(release=fact, data=encode_file(new, old))
        yield bytes([len(TARGETS) - 1]) + chunk.SerializeToString()


def _environment() -> dict[str, str]:
    # libFuzzer starts this file again when it merges: hence the shebang and the environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, WORKER: "1"}


def _limits() -> list[str]:
    # A child's peak memory begins at its parent's (Linux), and a test run may have had some GB.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return ["-timeout=5", f"-rss_limit_mb={2048 + own}", "-max_len=4096"]


def _write_examples(found: Path) -> None:
    found.mkdir(exist_ok=True)
    for number, example in enumerate(examples()):
        (found / f"example-{number}").write_bytes(example)


def fuzz(seconds: int, corpus: Path) -> int:
    """Fuzz from `corpus` and the examples; return 0 and minimise `corpus`, or a failure's code."""
    with tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch) / "found"
        _write_examples(found)
        limits = _limits()
        search = [*limits, f"-max_total_time={seconds}", f"-artifact_prefix={corpus.parent}/"]
        done = subprocess.run(
            [__file__, *search, str(found), str(corpus)], env=_environment(), check=False
        )
        if done.returncode == 0:
            merge = [__file__, *limits, "-merge=1", str(corpus), str(found)]
            subprocess.run(merge, env=_environment(), check=True)
    return done.returncode


def count(runs: int, seed: int, found: Path, workers: int = 1) -> dict[str, float]:
    """Run `runs` inputs in each of `workers` processes, which share what they find in `found`.

    Returns libFuzzer's own figures: executed (the sum), slowest_seconds and peak_mb (the worst).
    Raises RuntimeError with the end of its log if an input crashed, hung or took too much memory.
    """
    _write_examples(found)
    running = []
    for worker in range(workers):
        search = [
            *_limits(), f"-runs={runs}", f"-seed={seed + worker}", "-print_final_stats=1",
            "-reload=10", f"-artifact_prefix={found.parent}/",
        ]  # fmt: skip
        command = [__file__, *search, str(found), str(CORPUS)]
        log = (found.parent / f"fuzz-{worker}.log").open("wb+")
        running.append((subprocess.Popen(command, env=_environment(), stdout=log, stderr=log), log))
    codes = [process.wait() for process, _ in running]
    texts = []
    for _, log in running:
        log.seek(0)
        texts.append(log.read().decode("utf-8", "replace"))
        log.close()
    if any(codes):
        raise RuntimeError("\n".join(text[-2000:] for text in texts))
    stats = [dict(re.findall(r"stat::(\w+):\s*(\d+)", text)) for text in texts]
    return {
        "executed": sum(int(s["number_of_executed_units"]) for s in stats),
        "slowest_seconds": max(int(s["slowest_unit_time_sec"]) for s in stats),
        "peak_mb": max(int(s["peak_rss_mb"]) for s in stats),
    }


if __name__ == "__main__":
    if atheris is None:
        sys.exit("atheris has no wheel for this platform; pytest replays the corpus without it")
    if WORKER in os.environ:
        atheris.Setup(sys.argv, one_input)
        atheris.Fuzz()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    options = parser.parse_args()
    options.corpus.mkdir(exist_ok=True)
    sys.exit(fuzz(options.seconds, options.corpus))
