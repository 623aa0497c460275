"""What version 0 of a run is, by `[model] weights` of its run file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featherfed.api.backup import DATABASE, holds_run
from featherfed.api.stored_run import open_stored_run
from featherfed.compression.arrays import Array
from featherfed.models.description import exchanged
from featherfed.models.errors import ModelError
from featherfed.models.model_files import is_model_file, load_file
from featherfed.models.optimized import FederatedModel

SEED = "seed"
"""The value of `[model] weights` that has version 0 drawn from the run's seed."""


def set_first_weights(
    model: FederatedModel, source: str, loaded: Sequence[Array] | None = None
) -> None:
    """Set the weights of `model` to version 0 as `source` says, if the seed does not give it.

    `source`: `[model] weights`. `loaded`: the weights that came with the model. Raises ModelError
    or ServerError if they cannot be read or do not fit.
    """
    if not source and loaded is not None:
        model.start_from(loaded)
    if not source or source == SEED:
        return
    try:
        model.start_from(_read(source))
    except ModelError as error:
        raise ModelError(f"[model] weights = {source!r}: {error}") from error


def _read(source: str) -> list[Array]:
    """Return the float32 weights of a plain model."""
    path = Path(source)
    if is_model_file(path):
        found = load_file(path).weights
        assert found is not None, "a file of a model has weights"
        return found
    folder, _, version = source.rpartition("@") if "@" in source else (source, "", "")
    if not holds_run(Path(folder)):
        raise ModelError(
            "there is no such model and no such run; give a .keras or .h5 file, a SavedModel "
            f"folder, or the output folder of a run (with its {DATABASE})"
        )
    with open_stored_run(Path(folder)) as run:
        trained = run.model(run.find(version) if version else run.newest)
    return [variable.numpy() for variable in exchanged(trained.plain())]
