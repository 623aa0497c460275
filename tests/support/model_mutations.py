"""Released models with a few fields changed, and what becomes of a program that uses one.

Those in tests/support/released are int8 exports of built-in models for 8x8 digits, without a task.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
from backports import zstd
from support.step_mutations import HUNG, REFUSED, TRACEBACK, Field, changed, fields_of

from featherfed.models import tflite
from featherfed.models.errors import ModelError

try:
    from featherfed.models import trial
except ImportError:  # the code of before loads a model without trying it
    trial = None  # type: ignore[assignment]

FOLDER = Path(__file__).parent / "released"
NAMES = sorted(path.name for path in FOLDER.glob("*.zst"))
CLASSIFIES = "classifies"
_RESULTS = (CLASSIFIES, REFUSED, TRACEBACK)
_SECONDS = 5


@cache
def _model(name: str) -> tuple[bytes, dict[str, list[Field]], int]:
    content = zstd.decompress((FOLDER / name).read_bytes())
    return content, *fields_of(content)


def mutate(seed: int) -> bytes:
    """Return what a seed makes of one of the models."""
    dice = random.Random(seed)
    content, _ = changed(*_model(dice.choice(NAMES)), dice)
    return content


def outcome(content: bytes, path: Path) -> str:
    """Classify with a model in a process of its own; return what became of it.

    That is CLASSIFIES, REFUSED (by a ModelError), TRACEBACK, HUNG or the name of a signal.
    """
    path.write_bytes(content)
    return _in_another(lambda: _classify(path), 3 * _SECONDS)


def _classify(path: Path) -> int:
    if trial is not None:
        tflite.try_model = _try_forked
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 1), np.uint8)
    try:
        tflite.Classifier(path).classify_all(images)
    except ModelError:
        return _RESULTS.index(REFUSED)
    except Exception:
        return _RESULTS.index(TRACEBACK)
    return _RESULTS.index(CLASSIFIES)


def _try_forked(content: bytes, what: str) -> None:
    """Do as `try_model` does, in a process that is forked from this one, which is faster."""

    def work() -> int:
        trial.run_once(content)
        return 0

    if (result := _in_another(work)) != _RESULTS[0]:
        raise ModelError(f"{what}: {result}")


def _in_another(work: Callable[[], int], seconds: int = _SECONDS) -> str:
    process = os.fork()
    if not process:
        faulthandler.disable()  # pytest's own, which would print
        signal.alarm(seconds)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        status = _RESULTS.index(TRACEBACK)
        try:
            status = work()
        finally:
            os._exit(status)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return HUNG if name == "SIGALRM" else name
    return _RESULTS[os.WEXITSTATUS(status)]


def try_seeds(seeds: Iterable[int], scratch: Path) -> Counter[str]:
    """Count what becomes of programs that classify with mutated models."""
    return Counter(outcome(mutate(seed), scratch / "model.tflite") for seed in seeds)
