"""A Keras model that is trained by an optimisation method and exchanged as a list of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tf_keras

from featherfed.compression.arrays import Array
from featherfed.compression.codec import MAX_MAGNITUDE, within
from featherfed.compression.exchange.masks import Masks, magnitude_masks, mask_weights
from featherfed.models import wrapping
from featherfed.models.description import describe, exchanged
from featherfed.models.errors import ModelError
from featherfed.models.fitting import check_fit
from featherfed.models.method import Optimization
from featherfed.models.serialization import from_json, to_json, with_input_dtypes
from featherfed.models.training import (
    Fitter,
    Inputs,
    OnStep,
    Predictor,
    compile_afresh,
    fit_arguments,
    output_shapes,
)
from featherfed.proto.plan_terms import Method, Optimizer
from featherfed.tasks.errors import TaskError
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.scoring import Scoring, evaluate
from featherfed.tasks.task import Task, Values, image_task


class FederatedModel:
    """A model that learns a task and is exchanged as a list of float32 tensors.

    `manifest` lists the tensors: the plain model's variables, or with a quantizing method those of
    the quantization-aware model. `unseeded` names those whose initial values the manifest cannot
    express (orthogonal kernels, for example); if there are any, take them from `get_weights`.
    """

    def __init__(
        self, model: Any, optimization: Optimization | None = None, task: Task | None = None
    ) -> None:
        """Take `to_json` text, which may be hostile, or a tf_keras model, which is copied.

        Without a task, it is to tell pictures of the model's input shape apart. Raises ModelError
        if the model is refused, cannot learn the task, or the method cannot be applied to it.
        """
        self.optimization = optimization or Optimization()
        self.model_json = model if isinstance(model, str) else to_json(model)
        if task is not None and any(given.dtype == "int32" for given in task.inputs):
            dtypes = ["int32" if i.dtype == "int32" else "float32" for i in task.inputs]
            self.model_json = with_input_dtypes(self.model_json, dtypes)
        plain = from_json(self.model_json)
        if not plain.trainable_variables and plain.weights:
            raise ModelError(
                "all of the model's layers are frozen; set trainable = True for those to train"
            )
        self.task = task or _image_task(plain)
        _check(plain, self.task)
        if not isinstance(model, str):
            plain.set_weights(model.get_weights())
        method = self.optimization.method
        prunable = wrapping.prunable_names(from_json(self.model_json)) if method.prunes else ()
        self._model = wrapping.quantize(plain) if method.quantizes else plain
        self._variables = exchanged(self._model)
        self.manifest, self.unseeded = describe(self._model, prunable)
        self._given = False
        self._predictor = Predictor(self._model, self.task)
        self._fitter: Fitter | None = None
        self._sparse: _Sparse | None = None

    @property
    def trained(self) -> Any:
        """The tf_keras model whose variables are exchanged: quantization-aware with qat."""
        return self._model

    @property
    def variables(self) -> list[Any]:
        """The exchanged variables, in manifest order."""
        return self._variables

    def set_weights(self, tensors: Sequence[Array]) -> None:
        """Set the exchanged tensors; raises ValueError unless they are what `manifest` says."""
        self.manifest.check(tensors)
        wrapping.assign(self._variables, tensors)

    def get_weights(self) -> list[Array]:
        """Return copies of the exchanged tensors, float32 in manifest order."""
        return [np.array(variable.numpy()) for variable in self._variables]

    def start_from(self, tensors: Sequence[Array]) -> None:
        """Make weights of the plain model version 0, in the order of its float32 variables.

        Raises ModelError, naming tensors, if their number or shapes are others.
        """
        plain = exchanged(from_json(self.model_json))
        names = [variable.name.removesuffix(":0") for variable in plain]
        check_fit(names, [tuple(variable.shape) for variable in plain], tensors)
        for name, tensor in zip(names, tensors, strict=True):
            if not within(tensor, MAX_MAGNITUDE):
                raise ModelError(f"{name} holds values that are no weights (not finite, or huge)")
        if self.optimization.method.quantizes:  # has its own variables besides, in another order
            given = dict(zip(names, tensors, strict=True))
            for spec, variable in zip(self.manifest, self._variables, strict=True):
                if spec.name in given:
                    variable.assign(given[spec.name])
        else:
            wrapping.assign(self._variables, tensors)
        self._given = True

    def first_weights(self) -> list[Array] | None:
        """Return version 0, which must be asked for before training; None: the seed gives it."""
        return self.get_weights() if self._given or self.unseeded else None

    def fit(
        self,
        inputs: Inputs,
        targets: Values | None,
        *,
        epochs: int = 1,
        batch_size: int = 32,
        learning_rate: float = 0.01,
        optimizer: str = Optimizer.SGD,
        sparsity: float = 0.0,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> float:
        """Train on prepared inputs and targets (see Scaling); return the last epoch's mean loss.

        The optimizer's state starts at zero. `optimizer` is an Optimizer or its text. With
        `sparsity` above 0 the method must prune; the weights are masked to it, and zeros at the
        start stay zero. Raises ValueError for examples, a sparsity or an optimizer that do not fit.
        """
        self._check(inputs, targets, sparsity)
        chosen = Optimizer(optimizer)
        options: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "seed": seed,
            "on_step": on_step,
        }
        if sparsity > 0:
            return self._fit_sparse(inputs, targets, chosen, sparsity, options)
        if self.optimization.method is Method.CLUSTER:
            return self._fit_clustered(inputs, targets, chosen, options)
        if self._fitter is None or self._fitter.optimizer != chosen:
            self._fitter = Fitter(self._model, self.task, chosen)
        return self._fitter.fit(inputs, targets, **options)

    def compiled(self, optimizer: str, learning_rate: float) -> Any:
        """Return the `trained` model, compiled afresh, for a training loop of the caller's own."""
        compile_afresh(self._model, self.task, Optimizer(optimizer), learning_rate)
        return self._model

    def for_keras(self, inputs: Inputs, targets: Values | None) -> tuple[Any, Any]:
        """Return prepared inputs and targets as x and y of the `trained` model's own fit."""
        self._check(inputs, targets, 0.0)
        return fit_arguments(self.task, inputs, targets, output_shapes(self._model))

    def predict(self, inputs: Inputs) -> npt.NDArray[Any]:
        """Return float32 [N, ...] answers to prepared inputs, to several targets as records."""
        return self._predictor.predict(inputs)

    def evaluate(
        self, inputs: Inputs, targets: Values | None, scaling: Scaling | None = None
    ) -> dict[str, float]:
        """Return loss and metrics on prepared inputs and targets as stored."""
        scoring = Scoring(self.task, scaling)
        return scoring.scores(evaluate(scoring, self.predict, inputs, targets))

    def finished(self) -> Any:
        """Return a tf_keras model to export, free of training wrappers.

        Clustered kernels have at most `num_clusters` unique values. The quantizing methods give
        the quantization-aware model itself, which the TFLite converter wants for int8.
        """
        if self.optimization.method.quantizes:
            return self._model
        weights = self._model.get_weights()
        if self.optimization.method is Method.CLUSTER:
            weights = wrapping.strip_clusters(self._clustered().model)
        model = from_json(self.model_json)
        model.set_weights(weights)
        return model

    def plain(self) -> Any:
        """Return the tf_keras model to export without quantization ranges.

        As `finished`, except for the quantizing methods: those give the original architecture with
        the weights of the quantization-aware model.
        """
        return self._plain_copy() if self.optimization.method.quantizes else self.finished()

    def _check(self, inputs: Inputs, targets: Values | None, sparsity: float) -> None:
        self.task.check_data(inputs, targets)
        if not 0 <= sparsity < 1:
            raise ValueError(f"sparsity must be at least 0 and below 1, got {sparsity}")
        if sparsity > 0 and not self.optimization.method.prunes:
            raise ValueError(f"the method {self.optimization.method} has no sparsity; leave it 0")

    def _fit_sparse(
        self,
        inputs: Inputs,
        targets: Values | None,
        optimizer: Optimizer,
        sparsity: float,
        options: dict[str, Any],
    ) -> float:
        weights = self.get_weights()
        masks = magnitude_masks(self.manifest, weights, sparsity)
        self.set_weights(mask_weights(weights, masks))
        fitter, variables, callbacks = self._sparse_fitter(masks, optimizer)
        result = fitter.fit(inputs, targets, callbacks=callbacks, **options)
        # Masking a negative value leaves -0.0, and TFMOT's prune-preserving scheme leaves out
        # layers that feed a concatenation.
        self.set_weights(mask_weights([variable.numpy() for variable in variables], masks))
        return result

    def _sparse_fitter(
        self, masks: Masks, optimizer: Optimizer
    ) -> tuple[Fitter, list[Any], list[Any]]:
        if self.optimization.method is Method.PRUNE:
            if self._sparse is None or self._sparse.fitter.optimizer != optimizer:
                pruned = wrapping.prune(self._model)
                self._sparse = _Sparse(
                    pruned, Fitter(pruned, self.task, optimizer), b"", self._variables
                )
            wrapping.set_masks(self._sparse.model)
            return self._sparse.fitter, self._variables, [wrapping.pruning_callback()]
        # The prune-preserving scheme fixes its masks when it is applied: build again if they moved.
        pattern = b"".join(np.packbits(mask).tobytes() for mask in masks if mask is not None)
        sparse = self._sparse
        if sparse is None or sparse.fitter.optimizer != optimizer or sparse.pattern != pattern:
            self._sparse = sparse = None
            tf_keras.backend.clear_session()
            model = wrapping.quantize(self._plain_copy(), preserve_zeros=True)
            sparse = _Sparse(model, Fitter(model, self.task, optimizer), pattern, exchanged(model))
            self._sparse = sparse
        wrapping.assign(sparse.variables, self.get_weights())
        return sparse.fitter, sparse.variables, []

    def _plain_copy(self) -> Any:
        """Return a new plain model with this model's weights, without quantization ranges."""
        plain = from_json(self.model_json)
        if not self.optimization.method.quantizes:
            plain.set_weights(self._model.get_weights())
            return plain
        own = {
            spec.name: variable
            for spec, variable in zip(self.manifest, self._variables, strict=True)
        }
        for variable in plain.weights:
            name = variable.name.removesuffix(":0")
            if name in own:
                variable.assign(own[name])
        return plain

    def _clustered(self, optimizer: Optimizer | None = None) -> Fitter:
        """Return the trainer of a clustering model that starts from this model's weights."""
        if self._fitter is None or optimizer not in (None, self._fitter.optimizer):
            model = wrapping.cluster(self._plain_copy(), self.optimization.num_clusters)
            self._fitter = Fitter(model, self.task, optimizer or Optimizer.SGD)
        own = {variable.name: variable.numpy() for variable in self._model.weights}
        wrapping.set_clusters(self._fitter.model, own)
        return self._fitter

    def _fit_clustered(
        self,
        inputs: Inputs,
        targets: Values | None,
        optimizer: Optimizer,
        options: dict[str, Any],
    ) -> float:
        fitter = self._clustered(optimizer)
        result = fitter.fit(inputs, targets, **options)
        self._model.set_weights(wrapping.strip_clusters(fitter.model))
        return result


@dataclass(frozen=True)
class _Sparse:
    model: Any
    fitter: Fitter
    pattern: bytes
    variables: list[Any]


def _image_task(model: Any) -> Task:
    """Return the task to tell pictures of a model's input shape apart, by numbered classes."""
    if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.output_shape) != 2:
        raise ModelError("a model without a task maps one picture to probabilities of classes")
    names = [str(number) for number in range(model.output_shape[-1])]
    try:
        return image_task(model.input_shape[1:], names)
    except TaskError as error:
        raise ModelError(str(error)) from error


def _check(model: Any, task: Task) -> None:
    """Raise ModelError unless a plain model can learn the task."""
    if isinstance(getattr(model, "_nested_outputs", None), dict):
        raise ModelError(
            "the model gives its outputs as a dictionary; give them as a list, in the order of the "
            "task's targets"
        )
    shapes = [[tuple(t.shape)[1:] for t in tensors] for tensors in (model.inputs, model.outputs)]
    for shape in (shape for group in shapes for shape in group):
        if None in shape:
            raise ModelError(
                f"the model has a tensor of shape {list(shape)}; give every axis but the batch's a "
                "length"
            )
    try:
        task.check_model(*shapes)
    except TaskError as error:
        raise ModelError(str(error)) from error
