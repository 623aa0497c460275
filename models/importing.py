"""Imports TensorFlow quickly, and keeps its usual messages from standard error."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from featherfed.models import noise


@contextmanager
def importing_tensorflow() -> Iterator[None]:
    """Import TensorFlow, or modules that do, in this block; it does nothing after the first time.

    Without garbage collection, which finds nothing then and takes an eighth of the time. What is
    imported then stays out of it: to look at all of it at the process's end takes a second.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what it says at its first operation
    collects = gc.isenabled()
    gc.disable()
    try:
        with without_noise():
            yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


@contextmanager
def without_noise() -> Iterator[None]:
    """Drop the lines of `noise.NOISE` from this process's standard error; C++ writes them, too.

    All threads of the process share it, so two of these blocks must not overlap.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # there is none, which some services are started without
        yield
        return
    # In a session of its own: Ctrl-C ends whoever writes, and not what passes the last words on.
    command = [sys.executable, "-I", "-S", noise.__file__]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=stderr, start_new_session=True
    ) as process:
        assert process.stdin is not None
        _flush()
        os.dup2(process.stdin.fileno(), 2)
        try:
            yield
        finally:
            _flush()
            os.dup2(stderr, 2)
            os.close(stderr)


def _flush() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()
