"""Keras 3 model configurations, rewritten as those of Keras 2 that compute the same.

Reads data alone: nothing of Keras 3 is imported, and no class is looked up by a name in the text.
What this module lists is what tests/test_keras3.py compares with the real Keras 3, output by
output; all else is refused by name. The result still has to pass `serialization.from_json`.

Where they differ: Keras 3 names shapes, slopes and dtypes otherwise, and writes a layer's calls as
tensors with their history. Keras 3 also writes `training=False` where nobody said so, and ignores
it in training, so it is left out here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from featherfed.models.errors import ModelError
from featherfed.models.keras3_masks import implied_masks, is_of

Config = dict[str, Any]

ACTIVATIONS = frozenset(
    [
        "linear",
        "relu",
        "elu",
        "selu",
        "sigmoid",
        "tanh",
        "softmax",
        "softplus",
        "softsign",
        "exponential",
        "gelu",
        "silu",
        "swish",
        "mish",
    ]
)
"""Activations that are the same function in both; hard_sigmoid, for one, is not."""

_INITIALIZERS: dict[str, tuple[str, ...]] = {
    "Zeros": (), "Ones": (), "Constant": ("value",),
    "RandomUniform": ("minval", "maxval", "seed"),
    "RandomNormal": ("mean", "stddev", "seed"), "TruncatedNormal": ("mean", "stddev", "seed"),
    "VarianceScaling": ("scale", "mode", "distribution", "seed"),
    "GlorotUniform": ("seed",), "GlorotNormal": ("seed",), "HeUniform": ("seed",),
    "HeNormal": ("seed",), "LecunUniform": ("seed",), "LecunNormal": ("seed",),
    "Orthogonal": ("gain", "seed"), "Identity": ("gain",),
}  # fmt: skip
_RENAMED_INITIALIZERS = {"OrthogonalInitializer": "Orthogonal", "IdentityInitializer": "Identity"}
_REGULARIZERS = {"L1": ("l1",), "L2": ("l2",), "L1L2": ("l1", "l2")}
_CONSTRAINTS = {
    "MaxNorm": ("max_value", "axis"), "NonNeg": (), "UnitNorm": ("axis",),
    "MinMaxNorm": ("min_value", "max_value", "rate", "axis"),
}  # fmt: skip

_OF_KERNEL = (
    "activation use_bias kernel_initializer bias_initializer kernel_regularizer bias_regularizer "
    "activity_regularizer kernel_constraint bias_constraint"
)
_WINDOW = "kernel_size strides padding data_format dilation_rate"
_DEPTHWISE = "depthwise_initializer depthwise_regularizer depthwise_constraint depth_multiplier"
_POINTWISE = "pointwise_initializer pointwise_regularizer pointwise_constraint"
_OF_BIAS = (
    "activation use_bias bias_initializer bias_regularizer activity_regularizer bias_constraint"
)
_POOL = "pool_size strides padding data_format"
_NORM = (
    "axis epsilon center scale beta_initializer gamma_initializer beta_regularizer "
    "gamma_regularizer beta_constraint gamma_constraint"
)
_RECURRENT = (
    f"units {_OF_KERNEL} recurrent_initializer recurrent_regularizer recurrent_constraint dropout "
    "recurrent_dropout return_sequences return_state go_backwards unroll zero_output_for_mask"
)

_KEYS: dict[str, str] = {
    "Dense": f"units {_OF_KERNEL}",
    "Conv1D": f"filters groups {_WINDOW} {_OF_KERNEL}",
    "Conv2D": f"filters groups {_WINDOW} {_OF_KERNEL}",
    "Conv2DTranspose": f"filters output_padding {_WINDOW} {_OF_KERNEL}",
    "DepthwiseConv2D": f"{_WINDOW} {_DEPTHWISE} {_OF_BIAS}",
    "SeparableConv2D": f"filters {_WINDOW} {_DEPTHWISE} {_POINTWISE} {_OF_BIAS}",
    "MaxPooling1D": _POOL,
    "MaxPooling2D": _POOL,
    "AveragePooling1D": _POOL,
    "AveragePooling2D": _POOL,
    "GlobalMaxPooling1D": "data_format keepdims",
    "GlobalMaxPooling2D": "data_format keepdims",
    "GlobalAveragePooling1D": "data_format keepdims",
    "GlobalAveragePooling2D": "data_format keepdims",
    "BatchNormalization": f"{_NORM} momentum moving_mean_initializer moving_variance_initializer",
    "LayerNormalization": _NORM,
    "Dropout": "rate noise_shape seed",
    "SpatialDropout1D": "rate",
    "SpatialDropout2D": "rate data_format",
    "GaussianNoise": "stddev seed",
    "Flatten": "data_format",
    "Reshape": "target_shape",
    "Permute": "dims",
    "RepeatVector": "n",
    "ZeroPadding1D": "padding",
    "ZeroPadding2D": "padding data_format",
    "UpSampling1D": "size",
    "UpSampling2D": "size data_format interpolation",
    "Cropping1D": "cropping",
    "Cropping2D": "cropping data_format",
    "Embedding": (
        "input_dim output_dim embeddings_initializer embeddings_regularizer activity_regularizer "
        "embeddings_constraint mask_zero"
    ),
    "SimpleRNN": _RECURRENT,
    "LSTM": f"{_RECURRENT} recurrent_activation unit_forget_bias",
    "GRU": f"{_RECURRENT} recurrent_activation reset_after",
    "Bidirectional": "merge_mode",
    "TimeDistributed": "",
    "MultiHeadAttention": (
        "num_heads key_dim value_dim dropout use_bias output_shape attention_axes "
        "kernel_initializer bias_initializer kernel_regularizer bias_regularizer "
        "activity_regularizer kernel_constraint bias_constraint"
    ),
    "Add": "",
    "Subtract": "",
    "Multiply": "",
    "Average": "",
    "Maximum": "",
    "Concatenate": "axis",
    "Activation": "activation",
    "ReLU": "max_value negative_slope threshold",
    "LeakyReLU": "alpha",
    "ELU": "alpha",
    "Softmax": "axis",
    "Rescaling": "scale offset",
    "Masking": "mask_value",
}
LAYERS = frozenset({"InputLayer", *_KEYS})
"""Names of the Keras 3 layers that have a counterpart."""

_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
_DROPPED: dict[str, dict[str, Any]] = {
    "BatchNormalization": {"renorm_clipping": ..., "renorm_momentum": ...},
    "SpatialDropout1D": {"seed": ..., "noise_shape": None},
    "SpatialDropout2D": {"seed": ..., "noise_shape": None},
    "ZeroPadding1D": {"data_format": "channels_last"},
    "MultiHeadAttention": {"seed": ...},
    "GRU": {"seed": ...},
    "LSTM": {"seed": ...},
    "SimpleRNN": {"seed": ...},
}
"""Keys that Keras 2 lacks, with the value that means nothing there; `...`: any."""
_INNER = frozenset({"layer", "backward_layer", "name", "trainable", "dtype"})
_MODELS = frozenset({"Sequential", "Functional"})
_ARGUMENTS = {
    "MultiHeadAttention": ("query", "value", "key"),
    **dict.fromkeys(("GRU", "LSTM", "SimpleRNN"), ("sequences", "initial_state")),
}
"""Layers that are called with more than their input: the names of what they are called with."""
_INPUT_NAMES = ("inputs", "x", "query", "sequences", "sequence")
_REMEDY = (
    "use layers that docs/models.md lists, or give a function (module:function) that returns a "
    "tf_keras model"
)


def is_keras3(config: Any) -> bool:
    """Whether a model's configuration was written by Keras 3."""
    if isinstance(config, list):
        return any(is_keras3(item) for item in config)
    if not isinstance(config, dict):
        return False
    if "batch_shape" in config or config.get("class_name") in ("DTypePolicy", "__keras_tensor__"):
        return True
    return any(is_keras3(value) for value in config.values())


def to_keras2(config: Config) -> Config:
    """Return the Keras 2 configuration of a Keras 3 Sequential or functional model.

    Raises ModelError that names the layer, for what has no counterpart.
    """
    try:
        return _model(config, trainable=True)
    except RecursionError:
        raise ModelError("the model's configuration is nested too deeply") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"the model's configuration is not one that Keras 3 writes "
            f"({type(error).__name__}: {str(error)[:200]}); save the model again"
        ) from None


def layers_of(model: Config) -> list[Config]:
    """Return the layers of a Keras 3 Sequential or functional model's configuration, in order."""
    layers = model["config"]["layers"]
    if not all(isinstance(layer, dict) and isinstance(layer["config"], dict) for layer in layers):
        raise TypeError("a layer that is no object")
    return list(layers)


def is_model(layer: Config) -> bool:
    """Whether a layer of a configuration is itself a Sequential or functional model."""
    return layer.get("class_name") in _MODELS


# ---- models ----


def _model(model: Config, trainable: bool) -> Config:
    _check_own(model, "model")
    if not is_model(model):
        raise ModelError(
            f"the model is a {model.get('class_name')!r}, a class of its own; build it as a "
            "Sequential or functional model"
        )
    config = model["config"]
    trainable = trainable and bool(config.get("trainable", True))
    made: Config = {"name": str(config["name"])}
    if model["class_name"] == "Sequential":
        made["layers"] = [_layer(layer, trainable) for layer in layers_of(model)]
        if not made["layers"] or made["layers"][0]["class_name"] != "InputLayer":
            made["layers"].insert(0, _input_of(config))
    else:
        masks = implied_masks(layers_of(model))
        layers = [layer for layer in layers_of(model) if layer["name"] not in masks]
        nested = {layer["config"]["name"] for layer in layers if is_model(layer)}
        made["trainable"] = trainable
        made["layers"] = [_node(layer, nested, masks, trainable) for layer in layers]
        for key in ("input_layers", "output_layers"):
            made[key] = [_reference(ends, nested) for ends in _ends(config[key])]
    return {
        "module": "keras", "class_name": model["class_name"], "config": made,
        "registered_name": None,
    }  # fmt: skip


def _input_of(config: Config) -> Config:
    """Return the InputLayer of a Sequential model that was built without one."""
    shape = config.get("build_input_shape")
    if not isinstance(shape, list):
        raise ModelError(f"model {config['name']!r} has no input shape; begin it with an Input")
    made = {"batch_input_shape": shape, "dtype": "float32", "name": f"{config['name']}_input"}
    return _object("layers", "InputLayer", made)


def _ends(ends: Any) -> list[Any]:
    """Return the references to a model's inputs or outputs; of a single one Keras writes itself."""
    if not isinstance(ends, list):
        raise ModelError("the model has named inputs or outputs (a dictionary); use a list")
    return [ends] if ends and isinstance(ends[0], str) else ends


def _node(layer: Config, nested: set[str], masks: frozenset[str], trainable: bool) -> Config:
    """Return a functional model's layer with its calls."""
    made, name = _layer(layer, trainable), layer["config"]["name"]
    calls = []
    for node in layer["inbound_nodes"]:
        kwargs = {key: v for key, v in node["kwargs"].items() if not is_of(v, masks)}
        calls.append(_call(layer["class_name"], name, {**node, "kwargs": kwargs}, nested))
    return {**made, "name": str(layer.get("name", name)), "inbound_nodes": calls}


def _call(kind: str, name: str, node: Config, nested: set[str]) -> list[Any]:
    """Return one call of a layer: a list of its inputs, each with the call's other arguments."""
    args = list(node["args"])
    kwargs = {key: value for key, value in node["kwargs"].items() if value not in (None, False)}
    if kwargs.pop("training", False):
        raise ModelError(
            f"layer {name!r} is called with training=True, which Keras 2 takes for inference too; "
            "leave it out"
        )
    if not args:
        first = next((key for key in _INPUT_NAMES if key in kwargs), None)
        if first is None:
            raise ModelError(f"layer {name!r} is called without an input that is known here")
        args = [kwargs.pop(first)]
    names = _ARGUMENTS.get(kind, ("inputs",))
    if len(args) > len(names) or not kwargs.keys() <= set(names[1:]):
        odd = ", ".join(sorted(kwargs.keys() - set(names[1:]))) or f"{len(args)} inputs"
        raise ModelError(f"layer {name!r} ({kind}) is called with {odd}; {_REMEDY}")
    more = dict(zip(names[1:], args[1:], strict=False)) | kwargs
    rest = {key: _tensors(value, name, nested) for key, value in more.items() if value is not None}
    inputs = args[0] if isinstance(args[0], list) else [args[0]]
    return [[*_tensors(tensor, name, nested), rest] for tensor in inputs]


def _tensors(value: Any, layer: str, nested: set[str]) -> list[Any]:
    """Return the reference to a tensor, or a list of references."""
    if isinstance(value, list):
        return [_tensors(item, layer, nested) for item in value]
    if not isinstance(value, dict) or value.get("class_name") != "__keras_tensor__":
        raise ModelError(f"layer {layer!r} is called with a value that is no tensor; {_REMEDY}")
    return _reference(value["config"]["keras_history"], nested)


def _reference(history: list[Any], nested: set[str]) -> list[Any]:
    name, node, tensor = history
    # In Keras 2 the first node of a nested model is the one from its own inputs.
    return [str(name), int(node) + (name in nested), int(tensor)]


# ---- layers ----


def _layer(layer: Config, trainable: bool) -> Config:
    """Return the Keras 2 layer; all that is inside of one that is not trainable is not, either."""
    if is_model(layer):
        return _model(layer, trainable)
    kind, config = layer["class_name"], layer["config"]
    name = str(config["name"])
    where = f"layer {name!r}"
    _check_own(layer, where)
    if kind == "InputLayer":
        return _object("layers", kind, _input(config, where))
    if kind not in _KEYS:
        raise ModelError(f"{where}: {kind} of Keras 3 has no counterpart here; {_REMEDY}")
    trainable = trainable and bool(config.get("trainable", True))
    made: Config = {"name": name, "trainable": trainable, "dtype": _dtype(config, where)}
    known, dropped = frozenset(_KEYS[kind].split()), _DROPPED.get(kind, {})
    for key, value in config.items():
        key = _RENAMED.get(kind, {}).get(key, key)
        if key in known:
            made[key] = _value(key, value, f"{where} ({kind})")
        elif key in _INNER or value is None or value is False:
            continue
        elif key not in dropped or dropped[key] not in (..., value):
            raise ModelError(f"{where} ({kind}): {key} = {value!r} has no counterpart; {_REMEDY}")
    if kind == "MultiHeadAttention":
        made |= _attention_shapes(layer)
    if made.get("data_format", "channels_last") != "channels_last":
        raise ModelError(
            f"{where} ({kind}): data_format is {made['data_format']!r}; use channels_last"
        )
    return _object("layers", kind, _WRAPPERS.get(kind, _unchanged)(made, config, trainable))


def _unchanged(made: Config, config: Config, trainable: bool) -> Config:
    return made


def _time_distributed(made: Config, config: Config, trainable: bool) -> Config:
    return {**made, "layer": _layer(config["layer"], trainable)}


def _bidirectional(made: Config, config: Config, trainable: bool) -> Config:
    forward, backward = (_layer(config[key], trainable) for key in ("layer", "backward_layer"))
    for direction, layer in (("forward", forward), ("backward", backward)):
        # Keras 2 puts it before the name by itself.
        layer["config"]["name"] = layer["config"]["name"].removeprefix(f"{direction}_")
    mirrored = {**backward["config"], "go_backwards": forward["config"].get("go_backwards", False)}
    alike = mirrored == forward["config"] and forward["class_name"] == backward["class_name"]
    return {**made, "layer": forward, **({} if alike else {"backward_layer": backward})}


_WRAPPERS: dict[str, Callable[[Config, Config, bool], Config]] = {
    "TimeDistributed": _time_distributed,
    "Bidirectional": _bidirectional,
}


def _attention_shapes(layer: Config) -> Config:
    """Return the shapes that Keras 2 builds a MultiHeadAttention for."""
    shapes = layer.get("build_config", {}).get("shapes_dict", {})
    query = shapes.get("query_shape")
    value = shapes.get("value_shape")
    found = {
        "query_shape": query,
        "value_shape": value,
        "key_shape": shapes.get("key_shape", value),
    }
    return {key: _plain(shape, key) for key, shape in found.items()}


def _input(config: Config, where: str) -> Config:
    for key in ("sparse", "ragged", "optional"):
        if config.get(key):
            raise ModelError(f"{where}: an input that is {key} has no counterpart; use a dense one")
    dtype = config.get("dtype") or "float32"
    shape = config["batch_shape"]
    return {"batch_input_shape": shape, "dtype": str(dtype), "name": str(config["name"])}


def _dtype(config: Config, where: str) -> str:
    dtype = config.get("dtype") or "float32"
    if isinstance(dtype, dict):
        dtype = dtype["config"]["name"]
    if dtype != "float32":
        raise ModelError(f"{where}: its dtype is {dtype!r}; make the model with float32")
    return "float32"


def _check_own(node: Config, where: str) -> None:
    """Raise ModelError for a class that is not Keras' own."""
    module = node.get("module") or "keras"
    if not isinstance(module, str) or module.partition(".")[0] != "keras":
        raise ModelError(f"{where}: {module}.{node.get('class_name')} is not Keras' own; {_REMEDY}")
    if node.get("registered_name") not in (None, node.get("class_name")):
        raise ModelError(
            f"{where}: the registered name {node['registered_name']!r} is not Keras' own; {_REMEDY}"
        )


# ---- values ----


def _value(key: str, value: Any, where: str) -> Any:
    if value is None:
        return None
    if key.endswith("initializer"):
        return _listed("initializers", value, _INITIALIZERS, f"{where}: {key}")
    if key.endswith("regularizer"):
        return _listed("regularizers", value, _REGULARIZERS, f"{where}: {key}")
    if key.endswith("constraint"):
        return _listed("constraints", value, _CONSTRAINTS, f"{where}: {key}")
    if key.endswith("activation"):
        return _activation(value, f"{where}: {key}")
    if key == "seed":
        return value if isinstance(value, int) else None
    return _plain(value, f"{where}: {key}")


def _listed(kind: str, value: Any, known: dict[str, tuple[str, ...]], where: str) -> Config:
    """Return an object of Keras with those of its values that Keras 2 knows."""
    name, config = value["class_name"], value["config"]
    name = _RENAMED_INITIALIZERS.get(name, name)
    if name not in known:
        raise ModelError(f"{where}: {name} has no counterpart; use one of {', '.join(known)}")
    _check_own({**value, "registered_name": None}, where)
    made = {key: _plain(config[key], where) for key in known[name] if key != "seed"}
    if "seed" in known[name]:
        seed = config.get("seed")
        made["seed"] = seed if isinstance(seed, int) else None
    return _object(kind, name, made)


def _activation(value: Any, where: str) -> str:
    if isinstance(value, dict) and value.get("class_name") == "function":
        value = value.get("config")
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise ModelError(
            f"{where}: {value!r} is not the same in Keras 2; use one of "
            f"{', '.join(sorted(ACTIVATIONS))}"
        )
    return "swish" if value == "silu" else value


def _plain(value: Any, where: str) -> Any:
    """Return a number, a text or a list of such; Keras 3 writes tuples as lists."""
    if isinstance(value, Iterable) and not isinstance(value, str | list):
        raise ModelError(f"{where}: {str(value)[:100]!r} is neither a number nor a list; {_REMEDY}")
    return [_plain(item, where) for item in value] if isinstance(value, list) else value


def _object(kind: str, name: str, config: Config) -> Config:
    return {
        "module": f"keras.{kind}", "class_name": name, "config": config, "registered_name": None
    }  # fmt: skip
