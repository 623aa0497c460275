"""Logging for people."""

from __future__ import annotations

import logging
import os


def set_up(verbose: bool) -> None:
    """Log to standard error, one line an event."""
    # Before TensorFlow is imported: its start-up chatter would bury what matters.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    for noisy in ("absl", "tensorflow", "h5py", "matplotlib", "asyncio", "PIL"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
