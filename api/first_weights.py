"""What version 0 of a run is, by `[model] weights` of its run file."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from featherfed.api.backup import DATABASE, copy_database
from featherfed.compression.arrays import Array
from featherfed.compression.errors import WireError
from featherfed.compression.exchange.manifest import weights_digest
from featherfed.edge_client.plan import manifest_of
from featherfed.edge_client.state import HeldModel
from featherfed.edge_client.versions import DigestMismatch, apply_links
from featherfed.models.description import exchanged
from featherfed.models.errors import ModelError
from featherfed.models.method import Optimization
from featherfed.models.model_files import is_model_file, load_file
from featherfed.models.optimized import FederatedModel
from featherfed.proto.plan_terms import Method
from featherfed.server.storage.records import ModelVersion, StoredPlan
from featherfed.server.storage.store import Store
from featherfed.server.transfers.routes import seed_link, version_link

SEED = "seed"
"""The value of `[model] weights` that has version 0 drawn from the run's seed."""
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_NUMBER = re.compile(r"[0-9]{1,7}")


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
    if not (Path(folder) / DATABASE).is_file():
        raise ModelError(
            "there is no such model and no such run; give a .keras or .h5 file, a SavedModel "
            f"folder, or the output folder of a run (with its {DATABASE})"
        )
    return _of_run(Path(folder) / DATABASE, version)


def _of_run(database: Path, version: str) -> list[Array]:
    """Return the plain model's weights of a version of a run, which may be going on."""
    with tempfile.TemporaryDirectory(prefix="featherfed-") as scratch:
        copy = Path(scratch) / DATABASE
        copy_database(database, copy)
        store = Store(copy, checked=True)
        try:
            plan = store.runs.plan()
            if plan is None:
                raise ModelError("the run has no plan; serve it once with this version")
            weights = _weights_of(store, plan, version)
        finally:
            store.close()
    terms = plan.plan.optimization
    optimization = Optimization(Method(terms.method), num_clusters=terms.num_clusters)
    trained = FederatedModel(plan.plan.model_json, optimization)
    trained.set_weights(weights)
    return [variable.numpy() for variable in exchanged(trained.plain())]


def _weights_of(store: Store, stored: StoredPlan, version: str) -> list[Array]:
    """Return a version's weights in the order of the run's manifest."""
    manifest, newest = manifest_of(stored.plan), store.versions.newest()
    wanted = _find(store.versions.all(), version) if version else newest
    if wanted.version == newest.version:
        weights = store.versions.model(manifest)[0]
        if weights_digest(weights) != newest.digest:
            raise ModelError("the run's stored weights are damaged; see `featherfed check`")
        return weights
    if not stored.seeded:
        raise ModelError(
            f"the run began with given weights, which it does not keep: only its newest version, "
            f"{newest.version}, can be had"
        )
    held: HeldModel | None = None
    for each in store.versions.all()[: wanted.version + 1]:
        link = version_link(each, held.allocation) if held else seed_link(each)
        try:
            held = apply_links(manifest, stored.plan.seed, held, [link], each.payload)
        except (DigestMismatch, WireError) as error:
            raise ModelError(f"version {each.version} cannot be made anew: {error}") from error
    assert held is not None, "a run has a version 0"
    return held.weights


def _find(versions: Sequence[ModelVersion], text: str) -> ModelVersion:
    """Return the version of a number, or of a digest that begins so."""
    if _NUMBER.fullmatch(text):
        found = [each for each in versions if each.version == int(text)]
    elif _DIGEST.fullmatch(text):
        found = [each for each in versions if each.digest.hex().startswith(text)]
    else:
        raise ModelError(f"{text!r} is neither a version's number nor 8 digits or more of a digest")
    if not found:
        raise ModelError(f"the run has no version {text}; it has 0 to {versions[-1].version}")
    return found[-1]
