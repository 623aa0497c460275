"""Words that travel in a plan as text: losses, optimizers and optimisation methods.

Server, clients, models and exporter take them from here. A new word needs an implementation in
`models/` (Keras) and in `exporter/` (LiteRT).
"""

from __future__ import annotations

import enum


class _Term(enum.StrEnum):
    """Raises ValueError with the known words for a text that is none of them."""

    @classmethod
    def _missing_(cls, value: object) -> None:
        known = ", ".join(cls)
        raise ValueError(f"no {cls.__name__.lower()} {value!r}; choose one of {known}")


class Loss(_Term):
    """A loss by its name in tf_keras; tasks/task.py says which fits which target."""

    SPARSE_CATEGORICAL_CROSSENTROPY = "sparse_categorical_crossentropy"
    CATEGORICAL_CROSSENTROPY = "categorical_crossentropy"
    BINARY_CROSSENTROPY = "binary_crossentropy"
    MEAN_SQUARED_ERROR = "mean_squared_error"
    MEAN_ABSOLUTE_ERROR = "mean_absolute_error"
    HUBER = "huber"
    """Its delta is 1, as in Keras."""


DEFAULT_LOSS = Loss.SPARSE_CATEGORICAL_CROSSENTROPY
"""The loss of a plan that names none: it is left out, since every client gets the plan."""


class Optimizer(_Term):
    """An optimizer with Keras' own settings; momentum is 0.9."""

    SGD = "sgd"
    MOMENTUM = "momentum"
    NESTEROV = "nesterov"
    ADAM = "adam"


class Method(_Term):
    """How TFMOT optimises the model while it is trained."""

    NONE = "none"
    PRUNE = "prune"
    CLUSTER = "cluster"
    QAT = "qat"
    PRUNE_QAT = "prune+qat"

    @property
    def prunes(self) -> bool:
        """Whether each round has a pruning mask."""
        return self in (Method.PRUNE, Method.PRUNE_QAT)

    @property
    def quantizes(self) -> bool:
        """Whether quantization ranges are trained, and exchanged with the weights."""
        return self in (Method.QAT, Method.PRUNE_QAT)

    @property
    def needs_keras(self) -> bool:
        """Whether only Keras clients can train it: there is no exported training step for it."""
        return self is Method.CLUSTER
