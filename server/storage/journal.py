"""The journal: every round, and every accepted update before it is acknowledged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple

from featherfed.compression.exchange.noise import MeanNoise
from featherfed.server.storage.database import Database
from featherfed.server.storage.records import (
    AggregationRecord,
    JournaledUpdate,
    RoundRecord,
    Scores,
    UpdateNorms,
)
from featherfed.server.storage.scores import from_json, to_json

_UPDATE = (
    "round, client, slot, codec, num_examples, payload, train_loss, prediction, scores, "
    "sums_before, sums_after"
)


class Journal:
    """Stores rounds with the updates accepted in them and the record of their aggregation."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open_round(self, round_: int, now: float, cohort: Iterable[str]) -> None:
        """Insert a round that opened at `now`, in seconds since the epoch."""
        cohort_json = json.dumps(sorted(cohort))
        self._database.run("INSERT INTO rounds VALUES (?, ?, NULL, ?)", round_, now, cohort_json)

    def close_round(self, round_: int, now: float, cohort: Iterable[str]) -> None:
        """Record when a round closed, in seconds since the epoch, and its cohort with helpers."""
        self._database.run(
            "UPDATE rounds SET closed = ?, cohort = ? WHERE round = ?",
            now, json.dumps(sorted(cohort)), round_,
        )  # fmt: skip

    def round(self, number: int) -> RoundRecord:
        """Return one round; raise IndexError if there is none of this number."""
        sql = "SELECT round, opened, closed, cohort FROM rounds WHERE round = ?"
        _, opened, closed, cohort = self._database.run(sql, number)[0]
        return RoundRecord(number, opened, closed, tuple(json.loads(cohort)))

    def rounds(self) -> list[RoundRecord]:
        """Return all rounds in order."""
        rows = self._database.run("SELECT round, opened, closed, cohort FROM rounds ORDER BY round")
        return [
            RoundRecord(number, opened, closed, tuple(json.loads(cohort)))
            for number, opened, closed, cohort in rows
        ]

    def add_update(self, update: JournaledUpdate, norms: UpdateNorms) -> None:
        """Insert an update; raise the engine's IntegrityError if the client has one by now."""
        self._database.run(
            "INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL, ?, ?)",
            update.round, update.client, update.slot, update.codec, update.num_examples,
            update.payload, update.train_loss, update.before or None, update.after or None,
        )  # fmt: skip
        self._database.run(
            "INSERT INTO norms VALUES (?, ?, ?, ?, ?)",
            update.round, update.client, *astuple(norms),
        )  # fmt: skip

    def add_arrival(self, round_: int, client: str, now: float) -> None:
        """Record that a client's update was accepted at `now`, in seconds since the epoch."""
        self._database.run("INSERT INTO arrivals VALUES (?, ?, ?)", round_, client, now)

    def arrivals(self, round_: int) -> dict[str, float]:
        """Return when each update of a round was accepted, by client, where that is known."""
        sql = "SELECT client, at FROM arrivals WHERE round = ? ORDER BY client"
        return {row[0]: row[1] for row in self._database.run(sql, round_)}

    def has_update(self, round_: int, client: str) -> bool:
        """Whether the client's update of this round was accepted."""
        sql = "SELECT 1 FROM updates WHERE round = ? AND client = ?"
        return bool(self._database.run(sql, round_, client))

    def reporters(self, round_: int) -> frozenset[str]:
        """Return the clients whose updates of a round were accepted."""
        rows = self._database.run("SELECT client FROM updates WHERE round = ?", round_)
        return frozenset(row[0] for row in rows)

    def updates(self, round_: int) -> Iterator[JournaledUpdate]:
        """Yield a round's updates in order of slots, one payload in memory at a time.

        Raises ServerError if one of them is not what was accepted.
        """
        self._database.check("updates", round_)
        for client in self.example_counts(round_):
            sql = f"SELECT {_UPDATE} FROM updates WHERE round = ? AND client = ?"
            row = self._database.run(sql, round_, client)[0]
            fields = dict(zip(_UPDATE.split(", "), row, strict=True))
            before, after = (fields.pop(f"sums_{name}") or b"" for name in ("before", "after"))
            scores = from_json(fields.pop("scores"))
            yield JournaledUpdate(**fields, scores=scores, before=before, after=after)

    def sums_before(self, round_: int) -> list[bytes]:
        """Return the sums of the round's version on clients' held-out examples, those sent."""
        self._database.check("updates", round_)
        sql = "SELECT sums_before FROM updates WHERE round = ? AND sums_before IS NOT NULL"
        return [row[0] for row in self._database.run(f"{sql} ORDER BY slot, client", round_)]

    def example_counts(self, round_: int) -> dict[str, int]:
        """Return the number of examples behind each update of a round, in order of slots."""
        sql = "SELECT client, num_examples FROM updates WHERE round = ? ORDER BY slot, client"
        return {row[0]: row[1] for row in self._database.run(sql, round_)}

    def norms(self, round_: int) -> dict[str, UpdateNorms]:
        """Return the norms of a round's updates by client, in order of names."""
        self._database.check("norms", round_)
        sql = "SELECT client, whole, trainable, state FROM norms WHERE round = ? ORDER BY client"
        return {row[0]: UpdateNorms(*row[1:]) for row in self._database.run(sql, round_)}

    def most_rounds(self, until: int) -> int:
        """Return the most rounds, of those up to `until`, that any one client took part in."""
        sql = "SELECT COUNT(*) AS n FROM updates WHERE round <= ? GROUP BY client"
        return int(self._database.run(f"SELECT MAX(n) FROM ({sql}) AS counts", until)[0][0])

    def num_updates(self) -> int:
        """Return how many updates were accepted in all rounds."""
        return int(self._database.run("SELECT COUNT(*) FROM updates")[0][0])

    def num_updates_of(self, round_: int) -> int:
        """Return how many updates of a round were accepted."""
        return int(self._database.run("SELECT COUNT(*) FROM updates WHERE round = ?", round_)[0][0])

    def clients_scores(self, round_: int) -> Iterator[tuple[str, Scores | None, bytes]]:
        """Yield each client's own model's scores on the server's data, and sums on its own."""
        sql = "SELECT client, scores, sums_after FROM updates WHERE round = ? ORDER BY client"
        for client, scores, after in self._database.run(sql, round_):
            yield client, from_json(scores), after or b""

    def why_discarded(self, round_: int) -> str | None:
        """Return why a round's model was not adopted, None if it was."""
        rows = self._database.run("SELECT reason FROM discarded WHERE round = ?", round_)
        return str(rows[0][0]) if rows else None

    def add_aggregation(self, round_: int, record: AggregationRecord) -> None:
        """Insert the record of a round's aggregation."""
        values = {**asdict(record), "left_out": json.dumps(record.left_out)}.values()
        self._database.run("INSERT INTO aggregations VALUES (?, ?, ?, ?, ?, ?)", round_, *values)

    def aggregation(self, round_: int) -> AggregationRecord:
        """Return the record of a round's aggregation, an empty one for an unknown round."""
        sql = "SELECT clip, clipped, left_out, next_clip, epsilon FROM aggregations WHERE round = ?"
        for clip, clipped, left_out, next_clip, epsilon in self._database.run(sql, round_):
            return AggregationRecord(clip, clipped, tuple(json.loads(left_out)), next_clip, epsilon)
        return AggregationRecord()

    def add_noise(self, round_: int, noise: MeanNoise) -> None:
        """Record the noise that codecs left in a round's mean."""
        energies = noise.noise, noise.update
        self._database.run("INSERT INTO noise VALUES (?, ?, ?)", round_, *energies)

    def noise(self, round_: int) -> MeanNoise | None:
        """Return the noise in a round's mean, None where it is not known."""
        sql = "SELECT noise_energy, update_energy FROM noise WHERE round = ?"
        for energies in self._database.run(sql, round_):
            return MeanNoise(*energies)
        return None

    def add_byte_factor(self, round_: int, weight_noise: float, factor: float) -> None:
        """Record a round's noise relative to the weights, and the factor of the rounds after it."""
        sql = "INSERT INTO byte_factors VALUES (?, ?, ?)"
        self._database.run(sql, round_, weight_noise, factor)

    def byte_factor(self, round_: int) -> float:
        """Return how many times a preset's usual bytes a round sends."""
        sql = "SELECT factor FROM byte_factors WHERE round < ? ORDER BY round DESC LIMIT 1"
        return float(next(iter(self._database.run(sql, round_)), (1.0,))[0])

    def weight_noise(self, round_: int) -> float | None:
        """Return a round's noise relative to the weights, None where it is not known."""
        sql = "SELECT weight_noise FROM byte_factors WHERE round = ?"
        for (noise,) in self._database.run(sql, round_):
            return float(noise)
        return None

    def add_discarded(self, round_: int, reason: str) -> None:
        """Record that a round's model was not adopted, and why."""
        self._database.run("INSERT INTO discarded VALUES (?, ?)", round_, reason)

    def discarded(self) -> dict[int, str]:
        """Return why the model of each discarded round was not adopted."""
        rows = self._database.run("SELECT round, reason FROM discarded ORDER BY round")
        return {row[0]: row[1] for row in rows}

    def finish_update(
        self, round_: int, client: str, scores: Scores | None, prediction: str | None
    ) -> None:
        """Record how good a client's own model is, and drop its update's aggregated payload."""
        self._database.run(
            "UPDATE updates SET payload = NULL, scores = ?, prediction = ? "
            "WHERE round = ? AND client = ?",
            to_json(scores), prediction, round_, client,
        )  # fmt: skip
