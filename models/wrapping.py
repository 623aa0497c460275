"""TFMOT's wrappers around a Keras model: the one module that knows the toolkit.

Only its public API is used, but for `_keep_frozen`. TFMOT 0.8 takes Keras 2 models (tf_keras) and
no others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tf_keras

from featherfed.compression.arrays import Array
from featherfed.compression.stages.kmeans import lloyd
from featherfed.models.errors import ModelError

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "distutils Version classes", DeprecationWarning)
    import tensorflow_model_optimization as tfmot

# TFMOT counts a step before it asks the schedule: the first step of the first fit is number 1.
# A schedule over [0, 0] therefore never computes a mask, [1, 1] does so once, and with
# end_step=-1 it happens at every multiple of the frequency (so not in 100 steps of frequency
# 1000). Here it shall never happen: `set_masks` gives the wrappers the masks of the round, which
# needs no rebuilding when they change, and no rule of TFMOT's to round as numpy does.
_NEVER = tfmot.sparsity.keras.ConstantSparsity(0.5, begin_step=0, end_step=0, frequency=1)


def prune(model: Any) -> Any:
    """Return `model` with pruning wrappers that share its variables; see `set_masks`."""
    return _wrap(model, _prune_layer)


def _prune_layer(layer: Any) -> Any:
    try:
        wrapper = tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=_NEVER)
    except ValueError:  # a kind of layer that TFMOT does not prune
        return layer
    return wrapper if layer.get_prunable_weights() else layer


def prunable_names(model: Any) -> frozenset[str]:
    """Return the names of the trainable variables that TFMOT prunes in a built plain model."""
    trainable = {id(variable) for variable in model.trainable_variables}
    return frozenset(
        variable.name
        for wrapper in _pruning_wrappers(prune(model))
        for variable, _, _ in wrapper.pruning_vars
        if id(variable) in trainable
    )


def set_masks(pruned: Any) -> None:
    """Make every wrapper of `pruned` keep exactly the zeros that its weights hold now."""
    for wrapper in _pruning_wrappers(pruned):
        for weight, mask, _ in wrapper.pruning_vars:
            mask.assign((weight.numpy() != 0).astype(np.float32))


def _pruning_wrappers(model: Any) -> list[Any]:
    return [module for module in model.submodules if hasattr(module, "pruning_vars")]


def pruning_callback() -> Any:
    """Return the callback that pruning wrappers need: it masks after the last step, too."""
    return tfmot.sparsity.keras.UpdatePruningStep()


def cluster(model: Any, num_clusters: int) -> Any:
    """Return a built plain model with clustering wrappers; see `set_clusters`.

    Throw `model` away, it is changed. The gradient of a centroid is the average over its weights:
    TFMOT's default, the sum, grows with the layer and at ordinary learning rates destroys the
    model (digits, one seed: 89 % accuracy to 10 % in two epochs; with the average it stays).
    """

    def cluster_layer(layer: Any) -> Any:
        # Only layers with something to cluster: the wrapper hides `training` from the layer
        # inside, which dropout and batch normalization need.
        if not _has_kernel(layer, num_clusters):
            return layer
        try:
            return tfmot.clustering.keras.cluster_weights(
                layer,
                num_clusters,
                tfmot.clustering.keras.CentroidInitialization.LINEAR,
                cluster_gradient_aggregation="GradientAggregation.AVG",
            )
        except ValueError:  # a kind of layer that TFMOT does not cluster
            return layer

    return _wrap(model, cluster_layer)


def set_clusters(clustered: Any, weights: Mapping[str, Array]) -> None:
    """Start a fit of `clustered` from a plain model's weights, by variable name.

    TFMOT computes centroids only when a wrapper is built; setting them keeps the compiled model.
    They are k-means from TFMOT's evenly spaced start, which is deterministic. Untrained, on digits
    and three seeds, that lost less than each of TFMOT's own starts with 4 clusters; with 16 its
    squared error is k-means++'s and which start loses least depends on the seed.
    """
    for variable in clustered.weights:
        if variable.name in weights:
            variable.assign(weights[variable.name])
    for wrapper in clustered.submodules:
        for name, centroids in getattr(wrapper, "cluster_centroids", {}).items():
            kernel = wrapper.original_clusterable_weights[name].numpy()
            centroids.assign(kmeans(kernel, int(centroids.shape[0])))


def kmeans(values: Array, count: int, iterations: int = 30) -> Array:
    """Return `count` float32 centroids of the values: Lloyd's algorithm from a linear start."""
    start = np.linspace(values.min(), values.max(), count, dtype=np.float64)
    return lloyd(values, start, iterations).astype(np.float32)


def strip_clusters(clustered: Any) -> list[Array]:
    """Return the weights of the plain model, each kernel with its few unique values."""
    weights: list[Array] = tfmot.clustering.keras.strip_clustering(clustered).get_weights()
    return weights


def _has_kernel(layer: Any, num_clusters: int) -> bool:
    return not isinstance(layer, tf_keras.layers.BatchNormalization) and any(
        len(variable.shape) > 1 and np.prod(variable.shape) > num_clusters
        for variable in layer.trainable_variables
    )


def quantize(model: Any, *, preserve_zeros: bool = False) -> Any:
    """Return the quantization-aware model with a copy of a built plain model's weights.

    With `preserve_zeros`, weights that are zero now stay zero in training. Raises ModelError if
    TFMOT cannot quantize one of the layers.
    """
    keras = tfmot.quantization.keras
    # quantize_layer, quantize_layer_1, ...: the number would reach the manifest.
    tf_keras.backend.reset_uids()
    try:
        if not preserve_zeros:
            return _keep_frozen(keras.quantize_model(model))
        scheme = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
        return _keep_frozen(keras.quantize_apply(keras.quantize_annotate_model(model), scheme))
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            f"TFMOT cannot train this model for quantization; choose the method none, prune or "
            f"cluster, or other layers: {str(error)[:300]}"
        ) from error


def _keep_frozen(quantized: Any) -> Any:
    """Return the model; TFMOT's wrappers would train the kernels of frozen layers."""
    for wrapper in quantized.layers:
        if isinstance(wrapper, tf_keras.layers.Wrapper) and not wrapper.layer.trainable:
            wrapper._non_trainable_weights[:0] = wrapper._trainable_weights
            del wrapper._trainable_weights[:]
    return quantized


def quantize_scope() -> Any:
    """Return the scope in which a saved quantization-aware model loads."""
    return tfmot.quantization.keras.quantize_scope()


def _wrap(model: Any, wrap_layer: Callable[[Any], Any]) -> Any:
    def clone(layer: Any) -> Any:
        return _wrap(layer, wrap_layer) if isinstance(layer, tf_keras.Model) else wrap_layer(layer)

    return tf_keras.models.clone_model(model, clone_function=clone)


def assign(variables: Sequence[Any], tensors: Sequence[Array]) -> None:
    """Set variables to tensors of their shapes, one by one."""
    for variable, tensor in zip(variables, tensors, strict=True):
        variable.assign(tensor)
