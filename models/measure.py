"""Measures a .tflite file: scores, latency and memory.

`python -m featherfed.models.measure FILE.tflite [DATA.npz]` prints it as JSON, from a process that
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

from featherfed.datasets.dataset import Dataset
from featherfed.models.errors import ModelError
from featherfed.models.memory import process_memory
from featherfed.models.tflite import TfliteModel, runtime

_INFERENCES = 300


@dataclass(frozen=True)
class Measurement:
    """Figures of a .tflite file on one thread.

    `scores`, loss and metrics, are on `num_examples` examples, none without data. `latency_ms` is
    the median of one example and `latency_p95_ms` what 95 % of them take at most. `memory_bytes`
    is the most that the process held until then, `idle_memory_bytes` what it held before it loaded
    the model; both are None where there is no Linux, and with TensorFlow, whose size would hide the
    model's. `inputs` is `TfliteModel.input_types`, `runtime` what ran it.
    """

    scores: dict[str, float]
    num_examples: int
    latency_ms: float
    latency_p95_ms: float
    memory_bytes: int | None
    idle_memory_bytes: int | None
    inputs: list[dict[str, Any]]
    runtime: str


def measure(path: str | Path, data: str | Path | None) -> Measurement:
    """Measure a .tflite file in a process of its own.

    `data` is an .npz that `Dataset.save` wrote, of examples that fit the file's task; None to
    measure latency and memory alone. Raises ModelError with what the process said if it fails.
    """
    command = [sys.executable, "-m", "featherfed.models.measure", str(path)]
    command += [] if data is None else [str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-3:]
        raise ModelError(f"{path} cannot be measured on {data}: {' '.join(said)[-600:]}")
    return Measurement(**json.loads(done.stdout))


def _measure_here(path: Path, data: Path | None) -> Measurement:
    """Measure in this process, whose memory must still be that of the interpreter alone."""
    what = runtime()
    idle = process_memory("VmRSS")
    model = TfliteModel(path)
    milliseconds = 1000 * model.time_one(_INFERENCES)
    # Before the test set is loaded, which a device does not hold.
    peak = process_memory("VmHWM")
    known = what.startswith("ai-edge-litert")
    names = model.task.target.names
    examples = None if data is None else Dataset.load(data, (), names).fit(model.task)
    return Measurement(
        scores=model.evaluate(examples.inputs, examples.targets) if examples else {},
        num_examples=len(examples) if examples else 0,
        latency_ms=round(float(np.median(milliseconds)), 4),
        latency_p95_ms=round(float(np.percentile(milliseconds, 95)), 4),
        memory_bytes=peak if known else None,
        idle_memory_bytes=idle if known else None,
        inputs=model.input_types,
        runtime=what,
    )


def _main(arguments: list[str]) -> None:
    if not 1 <= len(arguments) <= 2:
        sys.exit("usage: python -m featherfed.models.measure FILE.tflite [DATA.npz]")
    path, data = Path(arguments[0]), Path(arguments[1]) if arguments[1:] else None
    try:
        print(json.dumps(asdict(_measure_here(path, data))))
    except (ValueError, OSError, KeyError) as error:
        sys.exit(f"featherfed: {error}")


if __name__ == "__main__":
    _main(sys.argv[1:])
