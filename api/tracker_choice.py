"""Makes trackers of experiments by the names that settings give them."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import NamedTuple

from featherfed.api.extras import how_to_install
from featherfed.api.trackers.hook import Tracker
from featherfed.server.errors import ServerError

log = logging.getLogger(__name__)

COLLECTOR = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Variables of the environment that name a collector of OpenTelemetry."""


class _Kind(NamedTuple):
    package: str
    """The module that must be installed."""
    adapter: str
    """Our module with the class."""
    name: str


KINDS = {
    "tensorboard": _Kind("tensorboardX", "tensorboard", "TensorBoardTracker"),
    "mlflow": _Kind("mlflow", "mlflow", "MlflowTracker"),
    "wandb": _Kind("wandb", "wandb", "WandbTracker"),
    "otel": _Kind("opentelemetry.exporter.otlp.proto.http", "otel", "OtelTracker"),
}
"""The part of a tracker's text before the colon -> what it needs and which class it is."""


def check_trackers(texts: Sequence[str]) -> None:
    """Raise ServerError for a tracker that is unknown, or whose package is not installed."""
    for text in texts:
        kind = text.partition(":")[0]
        if kind not in KINDS:
            raise ServerError(f"no tracker {text!r}; use {', '.join(KINDS)}, with :TARGET or alone")
        if not _is_installed(KINDS[kind].package):
            raise ServerError(
                f"the tracker {text!r} needs a package that is not installed: "
                f"{how_to_install(KINDS[kind].package)}"
            )


def make_trackers(chosen: Sequence[str | Tracker], without: Sequence[str] = ()) -> list[Tracker]:
    """Return trackers, those that are texts made of them; raise as `check_trackers` does.

    `without`: kinds that follow by real times, and so no simulation.
    """
    texts = [one for one in chosen if isinstance(one, str)]
    for text in texts:
        if text.partition(":")[0] in without:
            raise ServerError(f"the tracker {text!r} follows times, and here none passes; drop it")
    check_trackers(texts)
    return [_made(one) if isinstance(one, str) else one for one in chosen]


def collector_tracker(texts: Sequence[str]) -> list[str]:
    """Return the tracker of OpenTelemetry if the environment names a collector for it."""
    named = next((name for name in COLLECTOR if os.environ.get(name)), None)
    if named is None or any(text.partition(":")[0] == "otel" for text in texts):
        return []
    try:
        check_trackers(["otel"])
    except ServerError as error:
        log.warning("%s is set, and no traces are sent: %s", named, error)
        return []
    return ["otel"]


def _made(text: str) -> Tracker:
    name, _, target = text.partition(":")
    kind = KINDS[name]
    module = importlib.import_module(f"featherfed.api.trackers.{kind.adapter}")
    made: Tracker = getattr(module, kind.name)(target)
    return made


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it
        return False
