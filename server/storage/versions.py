"""The model versions, and the weights of the newest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featherfed.compression.arrays import Array, make_read_only
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.importance import Allocation
from featherfed.server.storage.database import Database
from featherfed.server.storage.records import ModelVersion, Scores, VersionScores, VersionSummary
from featherfed.server.storage.scores import from_json, to_json

Model = tuple[list[Array], list[Array] | None]
"""The newest version's weights, and what the downlink codec has lost; float32, manifest order.

What is lost is of the tensors that rounds change (`Manifest.sent`)."""

_COLUMNS = "version, digest, kind, codec, sparsity, payload, levels, profile, scores"
_SELECT = f"SELECT {_COLUMNS} FROM versions"


class Versions:
    """Stores every version's payload and the newest version's weights."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._model: Model | None = None

    def add(
        self, version: ModelVersion, weights: Sequence[Array], residual: Sequence[Array] | None
    ) -> None:
        """Insert a version and make it the newest.

        `weights` and `residual` (what the downlink codec lost of the tensors that rounds change)
        are float32 in manifest order.
        """
        allocation = version.allocation
        self._database.run(
            "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            version.version, version.digest, version.kind, version.codec, version.sparsity,
            version.payload, allocation and allocation.levels, allocation and allocation.profile,
            to_json(version.scores),
        )  # fmt: skip
        self._database.run("DELETE FROM model")
        self._database.run(
            "INSERT INTO model VALUES (1, ?, ?, ?)",
            version.version,
            _to_blob(weights),
            None if residual is None else _to_blob(residual),
        )
        model = list(weights), None if residual is None else list(residual)
        self._database.after_commit(lambda: self._remember(model))

    def _remember(self, model: Model) -> None:
        make_read_only([*model[0], *(model[1] or ())])
        self._model = model

    def get(self, number: int) -> ModelVersion:
        """Return one version; raise IndexError if there is none of this number."""
        return _version(self._database.run(f"{_SELECT} WHERE version = ?", number)[0])

    def newest(self) -> ModelVersion:
        """Return the newest version."""
        rows = self._database.run(f"{_SELECT} ORDER BY version DESC LIMIT 1")
        return _version(rows[0])

    def newest_scores(self) -> VersionScores:
        """Return the newest version's number and scores, without reading its payload."""
        sql = "SELECT version, scores FROM versions ORDER BY version DESC LIMIT 1"
        return _scores(self._database.run(sql)[0])

    def newest_evaluated(self) -> VersionScores | None:
        """Return the number and scores of the newest version whose scores are known, if any."""
        sql = "SELECT version, scores FROM versions WHERE scores IS NOT NULL"
        rows = self._database.run(f"{sql} ORDER BY version DESC LIMIT 1")
        return _scores(rows[0]) if rows else None

    def summaries(self, after: int) -> list[VersionSummary]:
        """Return the versions above a number in order, without reading their payloads."""
        sql = "SELECT version, digest, LENGTH(payload), scores FROM versions WHERE version > ?"
        rows = self._database.run(f"{sql} ORDER BY version", after)
        return [VersionSummary(row[0], row[1], row[2], from_json(row[3])) for row in rows]

    def set_scores(self, number: int, scores: Scores) -> None:
        """Record how good a version is, once that is known."""
        sql = "UPDATE versions SET scores = ? WHERE version = ?"
        self._database.run(sql, to_json(scores), number)

    def after(self, number: int) -> list[ModelVersion]:
        """Return the versions above `number`, in order."""
        sql = f"{_SELECT} WHERE version > ? ORDER BY version"
        return [_version(row) for row in self._database.run(sql, number)]

    def all(self) -> list[ModelVersion]:
        """Return all versions in order."""
        return self.after(-1)

    def model(self, manifest: Manifest) -> Model:
        """Return the newest version's weights and the server's residual, not to be written to.

        Raises ServerError if they are not those that were stored.
        """
        with self._database.lock:
            if self._model is not None:
                return self._model
        self._database.check("model")
        weights, residual = self._database.run("SELECT weights, residual FROM model")[0]
        return (
            _from_blob(weights, manifest),
            None if residual is None else _from_blob(residual, manifest.sent),
        )


def _version(row: Any) -> ModelVersion:
    fields = dict(zip(_COLUMNS.split(", "), row, strict=True))
    levels, profile = fields.pop("levels"), fields.pop("profile")
    allocation = None if levels is None else Allocation(levels, profile)
    scores = from_json(fields.pop("scores"))
    return ModelVersion(**fields, allocation=allocation, scores=scores)


def _scores(row: Any) -> VersionScores:
    return VersionScores(row[0], from_json(row[1]))


def _to_blob(tensors: Sequence[Array]) -> bytes:
    return b"".join(np.ascontiguousarray(t, "<f4").tobytes() for t in tensors)


def _from_blob(blob: bytes, manifest: Manifest) -> list[Array]:
    return manifest.split(np.frombuffer(blob, "<f4").astype(np.float32))
