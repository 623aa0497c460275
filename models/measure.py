"""Measures a .tflite file: accuracy, latency and memory.

`python -m featherfed.models.measure FILE.tflite DATA.npz` prints it as JSON, from a process that
holds nothing but the interpreter; `measure` runs that command.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featherfed.models.errors import ModelError
from featherfed.models.memory import process_memory
from featherfed.models.tflite import TfliteModel, evaluate_tflite, runtime

_INFERENCES = 300


@dataclass(frozen=True)
class Measurement:
    """Figures of a .tflite file on one thread.

    `accuracy` is on `num_examples` examples; `latency_ms` is the median of one image and
    `latency_p95_ms` what 95 % of images take at most. `memory_bytes` is the most that the process
    held until then, `idle_memory_bytes` what it held before it loaded the model; both are None
    where there is no Linux, and with TensorFlow, whose size would hide the model's. `input` is
    `TfliteModel.input_type`, `runtime` what ran it.
    """

    accuracy: float
    num_examples: int
    latency_ms: float
    latency_p95_ms: float
    memory_bytes: int | None
    idle_memory_bytes: int | None
    input: dict[str, Any]
    runtime: str


def measure(path: str | Path, data: str | Path) -> Measurement:
    """Measure a .tflite file in a process of its own.

    `data` is an .npz with `images`, uint8 [N, H, W, C], and `labels`, integers [N]. Raises
    ModelError with what the process said if it fails.
    """
    command = [sys.executable, "-m", "featherfed.models.measure", str(path), str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-3:]
        raise ModelError(f"{path} cannot be measured on {data}: {' '.join(said)[-600:]}")
    return Measurement(**json.loads(done.stdout))


def _measure_here(path: Path, data: Path) -> Measurement:
    """Measure in this process, whose memory must still be that of the interpreter alone."""
    what = runtime()
    idle = process_memory("VmRSS")
    model = TfliteModel(path)
    milliseconds = 1000 * model.time_one(_INFERENCES)
    # Before the test set is loaded, which a device does not hold.
    peak = process_memory("VmHWM")
    known = what.startswith("ai-edge-litert")
    with np.load(data, allow_pickle=False) as archive:
        images, labels = archive["images"], archive["labels"]
    return Measurement(
        accuracy=evaluate_tflite(path, images, labels),
        num_examples=len(labels),
        latency_ms=round(float(np.median(milliseconds)), 4),
        latency_p95_ms=round(float(np.percentile(milliseconds, 95)), 4),
        memory_bytes=peak if known else None,
        idle_memory_bytes=idle if known else None,
        input=model.input_type,
        runtime=what,
    )


def _main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        sys.exit("usage: python -m featherfed.models.measure FILE.tflite DATA.npz")
    try:
        print(json.dumps(asdict(_measure_here(*map(Path, arguments)))))
    except (ValueError, OSError, KeyError) as error:
        sys.exit(f"featherfed: {error}")


if __name__ == "__main__":
    _main(sys.argv[1:])
