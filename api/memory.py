"""Measure a client's memory, and end it above a limit."""

from __future__ import annotations

import os
import sys
import threading
import time

from tqdm import tqdm

from featherfed.edge_client import step_process
from featherfed.edge_client.errors import ClientError
from featherfed.models.memory import process_memory

CHECK_EVERY = 0.1
"""Seconds between two readings of the process's memory, each of some microseconds."""


def limit_memory(megabytes: int) -> None:
    """End this process with a message once its resident memory has exceeded `megabytes`.

    A client may be killed at any moment, so this loses nothing. The system's own limits for a
    process are not used, as they count memory that was never touched (stacks of threads, some
    100 MB), and gRPC aborts at them. Raises ClientError where memory cannot be measured.
    """
    if peak_memory() is None:
        raise ClientError(f"--memory: {sys.platform} has no /proc to read it from; leave it out")
    threading.Thread(target=_end_above, args=(megabytes,), daemon=True).start()


def _end_above(megabytes: int) -> None:
    while (peak := peak_memory() or 0) <= megabytes:
        time.sleep(CHECK_EVERY)
    tqdm.write(
        f"featherfed: {peak} MB of memory were in use, more than --memory {megabytes}; nothing is "
        "lost: start again with more, or with less data",
        file=sys.stderr,
    )
    os._exit(1)


def peak_memory() -> int | None:
    """Return this process's peak of resident memory in MB, None where there is no /proc.

    That of the process of the training step is in it.
    """
    peak = process_memory("VmHWM")
    return None if peak is None else (peak + step_process.peak_memory()) // 2**20
