"""NNCodec (ISO/IEC 15938-17, Becking et al. 2023) measured like the other published codecs.

Its licence grants no patent rights and it needs torch and an old numpy, so it is no dependency and
lives in an environment of its own:

    python3 -m venv /tmp/nncodec && /tmp/nncodec/bin/pip install nncodec
    .venv/bin/python benchmarks/nncodec_peer.py /tmp/nncodec/bin/python

It is run as a stage of our chains, with error feedback, which helps it.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from nncodec_worker import receive, send

from featherfed.cli.sweep_case import run_case
from featherfed.compression.arrays import Array
from featherfed.compression.errors import WireError
from featherfed.compression.key import NO_KEY, Key
from featherfed.compression.registry import STAGES
from featherfed.compression.stage import FLOATS, Form, Shape, Values
from featherfed.compression.traits import Traits
from featherfed.sweep import results
from featherfed.sweep.grid import Sweep

RESULTS = Path(__file__).parent / "results" / "nncodec"
FINENESS = (22, 26, 30)  # minus qp
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class NnCodec:
    """A stage that sends an NNCodec bitstream per tensor, with dependent quantization."""

    fineness: int

    name: ClassVar[str] = "nncodec"
    traits: ClassVar[Traits] = Traits(error_feedback=True)
    worker: ClassVar[Any] = None

    @property
    def output(self) -> Form:
        """Floats, of which there are none."""
        return FLOATS

    def encode(self, x: Array, key: Key = NO_KEY) -> tuple[Values, bytes]:
        """Return the bitstream as side information."""
        array = io.BytesIO()
        np.save(array, x)
        return np.zeros(0, np.float32), self._ask(-self.fineness, array.getvalue())

    def decode(self, values: Values, side: bytes, shape: Shape, key: Key = NO_KEY) -> Array:
        """Return what is in the bitstream."""
        x = np.load(io.BytesIO(self._ask(0, side))).astype(np.float32)
        if x.shape != shape:
            raise WireError(f"NNCodec gave {x.shape} for {shape}")
        return x

    def count(self, shape: Shape) -> int:
        """Return nothing."""
        return 0

    def side_limit(self, shape: Shape) -> int:
        """Return more than any bitstream takes."""
        return 4 * int(np.prod(shape)) + 4096

    def _ask(self, step: int, data: bytes) -> bytes:
        send(self.worker.stdin, struct.pack("<i", step))
        send(self.worker.stdin, data)
        return receive(self.worker.stdout)


def main(python: str) -> None:
    """Measure what has no result yet, and write the tables."""
    STAGES["nncodec"] = NnCodec
    codecs = [
        {
            "label": f"NNCodec, qp -{fineness}",
            "uplink": f"nncodec({fineness})",
            "broadcast": "aggregate",
        }
        for fineness in FINENESS
    ]
    sweep = Sweep.model_validate({
        "name": "peers",
        "grid": {"codec": codecs, "dataset": ["fashion-mnist"], "model": ["mlp"], "seed": SEEDS},
        "run": {"rounds": 7, "training": {"epochs": 5, "learning_rate": 0.01}},
    })  # fmt: skip
    command = [python, str(Path(__file__).with_name("nncodec_worker.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as NnCodec.worker:
        rows, rounds = [], []
        for case in sweep.cases():
            if not results.is_done(RESULTS, case):
                results.save(RESULTS, case, run_case(case))
                print(f"{case.name} is done", flush=True)
            metrics = results.load(RESULTS, case)
            rows.append(results.case_row(case, metrics))
            rounds.extend(results.round_rows(case, metrics))
            results.write_tables(RESULTS, rows, rounds)
        NnCodec.worker.stdin.close()


if __name__ == "__main__":
    main(sys.argv[1])
