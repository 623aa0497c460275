"""Reads a run that is on disk: its plan, its settings, and the weights of any of its versions."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from featherfed.api.backup import DATABASE, copy_database, holds_run
from featherfed.compression.arrays import Array
from featherfed.compression.errors import WireError
from featherfed.compression.exchange.manifest import Manifest, weights_digest
from featherfed.edge_client.plan import manifest_of, task_of
from featherfed.edge_client.state import HeldModel
from featherfed.edge_client.versions import DigestMismatch, apply_links
from featherfed.models.errors import ModelError
from featherfed.models.method import Optimization
from featherfed.models.optimized import FederatedModel
from featherfed.proto.plan_terms import Method
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.records import ModelVersion
from featherfed.server.storage.store import Store
from featherfed.server.transfers.routes import seed_link, version_link
from featherfed.tasks.message import read_scaling
from featherfed.tasks.metrics import is_larger_better
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.task import Task

_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_NUMBER = re.compile(r"[0-9]{1,7}")


@contextmanager
def open_stored_run(folder: Path) -> Iterator[StoredRun]:
    """Open a copy of the run in an output folder, which may be going on.

    Raises ModelError or ServerError if there is none, or it cannot be read.
    """
    if not holds_run(folder):
        raise ModelError(f"{folder / DATABASE}: no such file; give the output folder of a run")
    with tempfile.TemporaryDirectory(prefix="featherfed-") as scratch:
        copy = Path(scratch) / DATABASE
        copy_database(folder / DATABASE, copy)
        store = Store(copy, checked=True)
        try:
            yield StoredRun(store)
        finally:
            store.close()


class StoredRun:
    """A run as its database tells of it."""

    def __init__(self, store: Store) -> None:
        """Read the plan; raise ModelError if an older version of the server stored none."""
        stored = store.runs.plan()
        if stored is None:
            raise ModelError("the run has no plan; serve it once with this version")
        self.store = store
        self._plan = stored.plan
        self._seeded = stored.seeded
        self.manifest: Manifest = manifest_of(stored.plan)
        self._versions = store.versions.all()

    @property
    def newest(self) -> ModelVersion:
        """The newest version."""
        return self._versions[-1]

    @property
    def settings(self) -> Settings | None:
        """The settings that the run was served with last; None if its server was older."""
        text = self.store.runs.settings()
        return None if text is None else Settings.model_validate_json(text)

    @property
    def task(self) -> Task | None:
        """What the run learns; None in a run of an older version, which told pictures apart."""
        return task_of(self._plan) if self._plan.HasField("task") else None

    def scaling(self, task: Task) -> Scaling:
        """Return how the clients' data are standardised.

        Raises ModelError if that is needed and not known yet.
        """
        stored = self.store.scaling.scaling()
        if stored is not None:
            return read_scaling(stored, task)
        if task.standardizes:
            raise ModelError(
                "no round of the run has begun, so nobody knows by which means and deviations its "
                "data are standardised; wait for its first round"
            )
        return Scaling.none(task)

    def find(self, text: str) -> ModelVersion:
        """Return the version of a number, or of a digest that begins so; raise ModelError."""
        if _NUMBER.fullmatch(text):
            found = [each for each in self._versions if each.version == int(text)]
        elif _DIGEST.fullmatch(text):
            found = [each for each in self._versions if each.digest.hex().startswith(text)]
        else:
            raise ModelError(
                f"{text!r} is neither a version's number nor 8 digits or more of a digest"
            )
        if not found:
            raise ModelError(f"the run has no version {text}; it has 0 to {self.newest.version}")
        return found[-1]

    def best(self, task: Task) -> ModelVersion:
        """Return the version whose leading metric is best, the newest of several.

        Raises ModelError if none has been evaluated.
        """
        name, sign = task.leading, 1 if is_larger_better(task.leading) else -1
        known = [v for v in self._versions if v.scores and name in v.scores]
        if not known:
            raise ModelError(f"nobody knows the {name} of any version of this run; name a version")
        return max(known, key=lambda v: (sign * (v.scores or {})[name], v.version))

    def weights(self, wanted: ModelVersion) -> Sequence[Array]:
        """Return a version's weights in the order of the manifest.

        Older ones than the newest are made anew from version 0. Raises ModelError if that cannot
        be, or gives other weights.
        """
        if wanted.version == self.newest.version:
            weights = self.store.versions.model(self.manifest)[0]
            if weights_digest(weights) != wanted.digest:
                raise ModelError("the run's stored weights are damaged; see `featherfed check`")
            return weights
        if not self._seeded:
            raise ModelError(
                f"the run began with given weights, which it does not keep: only its newest "
                f"version, {self.newest.version}, can be had"
            )
        held: HeldModel | None = None
        for each in self._versions[: wanted.version + 1]:
            link = version_link(each, held.allocation) if held else seed_link(each)
            try:
                held = apply_links(self.manifest, self._plan.seed, held, [link], each.payload)
            except (DigestMismatch, WireError) as error:
                raise ModelError(f"version {each.version} cannot be made anew: {error}") from error
        assert held is not None, "a run has a version 0"
        return held.weights

    def model(self, version: ModelVersion) -> FederatedModel:
        """Return the run's model with a version's weights."""
        terms = self._plan.optimization
        optimization = Optimization(Method(terms.method), num_clusters=terms.num_clusters)
        model = FederatedModel(self._plan.model_json, optimization, self.task)
        model.set_weights(self.weights(version))
        return model
