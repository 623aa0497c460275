"""Runs a .tflite once in a process of its own, as a file that is made for it can crash LiteRT.

What a model does depends on the data too, so a file that passes may still crash later.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress

from featherfed.models.errors import ModelError

SECONDS = 120
"""Most seconds of a trial, the start of its process on a slow SD card included."""
_BATCH = 2
_REMEDY = "do not use it: fetch it anew, from a server that you trust"
_MAX_TEXT = 500


def try_model(content: bytes, what: str) -> None:
    """Raise ModelError, which calls the file `what`, if it fails, crashes or does not end."""
    command = [sys.executable, "-P", "-m", "featherfed.models.trial"]
    try:
        done = subprocess.run(
            command, input=content, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{what} does not end on an example of noise; {_REMEDY}") from error
    if done.returncode == -signal.SIGALRM:
        raise ModelError(f"{what} does not end on an example of noise; {_REMEDY}")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise ModelError(f"{what} crashed LiteRT with {name} when it was tried; {_REMEDY}")
    if done.returncode:
        said = " ".join(done.stderr.decode("utf-8", "replace").split())[-_MAX_TEXT:]
        raise ModelError(f"{what} is not a model to use: {said}; {_REMEDY}")


def run_once(content: bytes) -> None:
    """Run a .tflite in this process on examples of noise and one of zeros; raise ModelError."""
    import numpy as np

    from featherfed.models.tflite import TfliteModel, noise

    model = TfliteModel(content)
    examples = noise(model.task, _BATCH)
    model.predict(examples)
    model.predict([np.zeros_like(values[:1]) for values in examples])


def _main() -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(SECONDS)  # also where who started this is gone
    with suppress(ImportError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        run_once(sys.stdin.buffer.read())
    except (ModelError, MemoryError) as error:
        sys.exit(str(error) or "memory is short")


if __name__ == "__main__":
    _main()
