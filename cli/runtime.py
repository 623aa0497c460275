"""What a client trains with: Keras, or LiteRT where there is no TensorFlow."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

from featherfed.compression.exchange.manifest import Manifest
from featherfed.datasets.dataset import Dataset
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.trainer import Trainer
from featherfed.models.memory import process_memory
from featherfed.proto import federation_pb2 as pb

LOOK_EVERY = 0.1
"""Seconds between two looks at a limited memory, each of some microseconds."""

OnStep = Callable[[int, int, int], None]
"""Gets round, steps done and steps in all."""


@dataclass(frozen=True)
class Runtime:
    """A runtime by name, what it can do, and how to build its trainer."""

    name: str
    methods: tuple[str, ...]
    make_trainer: Callable[[pb.Plan, Manifest, bytes | None, Dataset, str, OnStep], Trainer]


def choose_runtime(name: str, threads: int) -> Runtime:
    """Return the runtime `name`; auto is Keras where TensorFlow is installed, else LiteRT.

    `threads`: 0 for all cores. Raises ClientError if neither is installed, ImportError if the
    named one is not.
    """
    if name == "auto":
        name = _installed()
    return _keras(threads) if name == "keras" else _litert(threads or os.cpu_count() or 1)


def _installed() -> str:
    if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tf_keras"):
        return "keras"
    if importlib.util.find_spec("ai_edge_litert"):
        return "litert"
    raise ClientError(
        "neither LiteRT nor TensorFlow is installed to train with: pip install 'featherfed[edge]' "
        "(small) or 'featherfed[tensorflow]'"
    )


def _keras(threads: int) -> Runtime:
    import tensorflow as tf

    if threads:  # before TensorFlow starts its thread pools
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    from featherfed.edge_client.keras_trainer import METHODS, KerasTrainer

    def make(
        plan: pb.Plan,
        manifest: Manifest,
        step: bytes | None,
        data: Dataset,
        name: str,
        told: OnStep,
    ) -> Trainer:
        return KerasTrainer(plan, manifest, data.images, data.labels, client=name, on_step=told)

    return Runtime("keras", METHODS, make)


def _litert(threads: int) -> Runtime:
    import ai_edge_litert.interpreter  # noqa: F401  # says at once if it is not installed

    from featherfed.edge_client.litert_trainer import METHODS, LitertTrainer

    def make(
        plan: pb.Plan,
        manifest: Manifest,
        step: bytes | None,
        data: Dataset,
        name: str,
        told: OnStep,
    ) -> Trainer:
        if step is None:
            raise ClientError("the server offers no training step for LiteRT; update featherfed")
        return LitertTrainer(
            plan, manifest, step, data.images, data.labels,
            client=name, threads=threads, on_step=told,
        )  # fmt: skip

    return Runtime("litert", METHODS, make)


def limit_memory(megabytes: int) -> None:
    """End this process, with a message, as soon as it has had more than `megabytes` in memory.

    That loses nothing: a client can be killed at any moment. The system's own limits for a process
    are no use here: they count memory that was never touched (stacks of threads, some 100 MB), and
    gRPC aborts at them. Raises ClientError where memory cannot be measured.
    """
    if peak_memory() is None:
        raise ClientError(f"--memory: {sys.platform} has no /proc to read it from; leave it out")
    threading.Thread(target=_end_above, args=(megabytes,), daemon=True).start()


def _end_above(megabytes: int) -> None:
    while (peak := peak_memory() or 0) <= megabytes:
        time.sleep(LOOK_EVERY)
    tqdm.write(
        f"featherfed: {peak} MB of memory were in use, more than --memory {megabytes}; nothing is "
        "lost: start again with more, or with less data",
        file=sys.stderr,
    )
    os._exit(1)


def peak_memory() -> int | None:
    """Return the most MB that this process has had in memory, None where there is no /proc."""
    peak = process_memory("VmHWM")
    return None if peak is None else peak // 2**20
