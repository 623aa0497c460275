"""What a client trains with: Keras, or LiteRT where there is no TensorFlow."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from featherfed.compression.manifest import Manifest
from featherfed.datasets.dataset import Dataset
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.session import Trainer
from featherfed.proto import federation_pb2 as pb

RUNTIMES = ("auto", "keras", "litert")

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
    """Let this process have no more memory of its own; an attempt to take more fails.

    Raises ClientError where the system cannot do that.
    """
    try:
        import resource
    except ImportError as error:
        raise ClientError(f"--memory: {sys.platform} has no limits for a process") from error
    limit = megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def peak_memory() -> int | None:
    """Return the most MB that this process has had in memory, None where there is no /proc.

    The usual `ru_maxrss` would begin with what the parent had when it forked.
    """
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except OSError:
        return None
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) // 1024
