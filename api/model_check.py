"""What a run's model can do and what it cannot, found out before the run begins.

Conversions are tried once for a model; the user's cache remembers what came of them.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np

from featherfed.api.build import KerasEvaluator, Served
from featherfed.api.cache import Cache, cache_key
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.exporter.training_step import tf_version
from featherfed.models.errors import ModelError
from featherfed.models.export import KINDS, NO_RANGES, VERSION, ModelFiles, tflite_name
from featherfed.models.optimized import FederatedModel
from featherfed.models.tflite import noise
from featherfed.server.errors import ServerError
from featherfed.tasks.records import fields
from featherfed.tasks.scaling import Scaling

log = logging.getLogger(__name__)

EXAMPLES = 200
"""Most examples of the server's on which version 0 is evaluated."""


def check_first_version(served: Served, seed: int) -> None:
    """Raise ServerError unless version 0 gives usable answers to the task.

    They are to the server's data if it has any, else to noise, where a warning takes the place of
    an error that the noise may be the cause of.
    """
    model, test = served.model, served.test
    weights = model.first_weights() or initial_weights(model.manifest, seed)
    try:
        if test is None:
            model.set_weights(weights)
            answers = fields(model.predict(noise(model.task, 2)), model.task.target.names)
            usable = all(np.isfinite(part).all() for part in answers)
            scores = {}
        else:
            some = test.take(np.arange(min(len(test), EXAMPLES)))
            scores = dict(KerasEvaluator(model, some).evaluate(weights).scores)
            usable = all(map(math.isfinite, scores.values()))
    except Exception as error:  # Keras raises whatever its layers raise
        why = " ".join(str(error).split())[:300]
        raise ServerError(
            f"the model cannot answer to {'noise' if test is None else 'the evaluation data'} "
            f"({why}); change [model] name, or [task]"
        ) from error
    if usable:
        return
    if test is None or model.task.standardizes:  # the scaling is not known yet
        log.warning("version 0 answers with values that are not finite before it has seen any data")
        return
    odd = ", ".join(f"{name} {value}" for name, value in scores.items())
    raise ServerError(
        f"the first version of the model has no finite scores on the evaluation data ({odd}); "
        "check [model] weights, the data, and whether [task] should standardize them"
    )


def warn_of_missing_files(served: Served, clients_measure: bool) -> None:
    """Log which TFLite files will not be made of the run's model, and why.

    `clients_measure`: whether clients can tell the ranges of int8 at the run's end.
    """
    failing = _failing_conversions(served)
    needs_ranges = served.calibration is None and not served.model.optimization.method.quantizes
    if needs_ranges and not clients_measure:
        failing.setdefault("int8", NO_RANGES)
    elif needs_ranges and "int8" not in failing:
        log.info("%s will be made from ranges that clients measure in the end", tflite_name("int8"))
    for kind, why in failing.items():
        log.warning("%s will not be made: %s", tflite_name(kind), why)
    if len(failing) == len(KINDS):
        log.warning("of this run, only the Keras file will be left")


def _failing_conversions(served: Served) -> dict[str, str]:
    """Return why each TFLite kind that cannot be made cannot; tried unless that is known."""
    model, cache = served.model, Cache("verdict")
    key = cache_key(
        "tflite", VERSION, tf_version(), model.optimization, model.task.as_dict(), model.model_json
    )
    known = cache.load(key)
    if known is not None:
        return dict(json.loads(known))
    log.info("trying to convert the model, once")
    failing = _try_conversions(model)
    cache.save(key, json.dumps(failing).encode())
    return failing


def _try_conversions(model: FederatedModel) -> dict[str, str]:
    failing = {}
    examples = noise(model.task, 1)
    files = ModelFiles(model, Path(), examples, Scaling.none(model.task))
    for kind in KINDS:
        try:
            files.tflite(kind)
        except (ModelError, ValueError) as error:
            failing[kind] = str(error)
    return failing
