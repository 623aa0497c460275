"""Choose what a client trains with: Keras, LiteRT, or a trainer of the user's own."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Protocol

from featherfed.compression.exchange.manifest import Manifest
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.trainer import KerasLoop, OnStep, Trainer
from featherfed.models.importing import importing_tensorflow
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.plan_terms import Method


class TrainerFactory(Protocol):
    """Builds a `Trainer` of this runtime on a client's data."""

    def __call__(
        self,
        plan: pb.Plan,
        manifest: Manifest,
        step: bytes | None,
        examples: Examples,
        client: str,
        on_step: OnStep,
    ) -> Trainer:
        """Return a trainer on `examples`; `step` is the exported training step, if there is one."""


@dataclass(frozen=True)
class Runtime:
    """What a client trains with: its name, its optimisation methods and its trainers."""

    name: str
    methods: tuple[str, ...]
    make_trainer: TrainerFactory


def choose_runtime(name: str, threads: int, own: KerasLoop | Trainer | None = None) -> Runtime:
    """Return the runtime `name`; auto is Keras where TensorFlow is installed, else LiteRT.

    `threads`: 0 for all cores. `own`: a training loop of the user, which Keras' model needs, or a
    trainer, which needs neither. Raises ClientError if neither is installed, ImportError if the
    named one is not.
    """
    if isinstance(own, Trainer):
        return _own(own)
    if own is not None:
        if name == "litert":
            raise ClientError("a training loop of your own needs Keras; leave out runtime=")
        return _keras(threads, own)
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


def _own(trainer: Trainer) -> Runtime:
    return Runtime("own", (str(Method.NONE),), lambda *of_plan: trainer)


def _keras(threads: int, loop: KerasLoop | None = None) -> Runtime:
    with importing_tensorflow():
        import tensorflow as tf

        from featherfed.edge_client.keras_trainer import (
            LOOP_METHODS,
            METHODS,
            KerasTrainer,
            LoopTrainer,
        )

    if threads:  # before TensorFlow starts its thread pools
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)

    def make_trainer(
        plan: pb.Plan,
        manifest: Manifest,
        step: bytes | None,
        examples: Examples,
        client: str,
        on_step: OnStep,
    ) -> Trainer:
        if loop is not None:
            return LoopTrainer(plan, manifest, examples, client=client, loop=loop)
        return KerasTrainer(plan, manifest, examples, client=client, on_step=on_step)

    return Runtime("keras", METHODS if loop is None else LOOP_METHODS, make_trainer)


def _litert(threads: int) -> Runtime:
    if not importlib.util.find_spec("ai_edge_litert"):  # fails now and not in the step's process
        raise ModuleNotFoundError("ai_edge_litert", name="ai_edge_litert")
    from featherfed.edge_client.litert_trainer import METHODS, LitertTrainer

    def make_trainer(
        plan: pb.Plan,
        manifest: Manifest,
        step: bytes | None,
        examples: Examples,
        client: str,
        on_step: OnStep,
    ) -> Trainer:
        if step is None:
            raise ClientError("the server offers no training step for LiteRT; update featherfed")
        return LitertTrainer(
            plan, manifest, step, examples,
            client=client, threads=threads, on_step=on_step,
        )  # fmt: skip

    return Runtime("litert", METHODS, make_trainer)
