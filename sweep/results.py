"""Keeps the results of a sweep: a file per run, and all runs as CSV and Parquet tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from featherfed.compression.files import replacing, write_whole
from featherfed.sweep.grid import TRAINING_AXES, Case

Row = dict[str, Any]


def result_path(output: Path, case: Case) -> Path:
    """Return where the metrics of a case are kept."""
    return output / "cases" / f"{case.name}.json"


def error_path(output: Path, case: Case) -> Path:
    """Return where it is kept why a case failed."""
    return output / "errors" / f"{case.name}.txt"


def is_done(output: Path, case: Case) -> bool:
    """Return whether there is a result for this case with exactly these settings."""
    return result_path(output, case).is_file()


def save(output: Path, case: Case, metrics: dict[str, Any]) -> None:
    """Keep the metrics of a finished case; the file is whole or absent."""
    path = result_path(output, case)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(metrics, indent=1))


def load(output: Path, case: Case) -> dict[str, Any]:
    """Return the metrics of a finished case."""
    metrics: dict[str, Any] = json.loads(result_path(output, case).read_text("utf-8"))
    return metrics


def final_score(metrics: dict[str, Any]) -> float | None:
    """Return the leading metric of a run's final model, None if it was not measured."""
    score: float | None = metrics["final"]["scores"][metrics["metric"]["name"]]
    return score


def case_row(case: Case, metrics: dict[str, Any]) -> Row:
    """Return a run's row; bytes are means per client and round."""
    rounds = len(metrics["rounds"])
    share = case.clients * rounds
    final = metrics["final"]
    totals = final["totals"]
    return {
        **_identity(case),
        "uplink": case.settings.compression.uplink,
        "downlink": case.settings.compression.downlink,
        "broadcast": case.settings.compression.broadcast,
        "rounds": rounds,
        **_scores(metrics, final),
        "float32_bytes": metrics["float32_bytes"],
        "up_payload_bytes": totals["uplink"]["payload_bytes"] / share,
        "up_sent_bytes": _sent(totals["uplink"]) / share,
        "down_payload_bytes": totals["downlink"]["payload_bytes"] / share,
        "down_sent_bytes": _sent(totals["downlink"]) / share,
        "digest": final["digest"],
    }


def round_rows(case: Case, metrics: dict[str, Any]) -> list[Row]:
    """Return a row per round; bytes are means per client.

    `cumulative_bytes` is payload both ways until the clients hold the round's new version.
    """
    rows, sent = [], 0.0
    downs = [_mean(r["clients"], "downlink") for r in metrics["rounds"]]
    downs.append(_mean(metrics["final"]["clients"], "downlink"))
    sent = downs[0]
    for entry, down in zip(metrics["rounds"], downs[1:], strict=True):
        up = _mean(entry["clients"], "uplink")
        sent += up + down
        rows.append({
            **_identity(case),
            "round": entry["round"],
            **_scores(metrics, entry),
            "broadcast": entry["broadcast"],
            "up_payload_bytes": up,
            "down_payload_bytes": down,
            "cumulative_bytes": sent,
        })  # fmt: skip
    return rows


def write_tables(output: Path, rows: Sequence[Row], rounds: Sequence[Row]) -> None:
    """Write results and rounds, each as .csv and .parquet."""
    for name, lines in (("results", rows), ("rounds", rounds)):
        table = pa.Table.from_pylist(list(lines))
        with replacing(output / f"{name}.csv") as file:
            pyarrow.csv.write_csv(table, file)
        with replacing(output / f"{name}.parquet") as file:
            pyarrow.parquet.write_table(table, file)


def _identity(case: Case) -> Row:
    """Return the columns that identify a run."""
    training = case.settings.training.model_dump(mode="json", include=set(TRAINING_AXES))
    return {
        "codec": case.label,
        "dataset": case.dataset,
        "model": case.model,
        "partition": case.partition,
        "clients": case.clients,
        **{axis: training[axis] for axis in TRAINING_AXES},
        "seed": case.seed,
    }


def _scores(metrics: dict[str, Any], entry: dict[str, Any]) -> Row:
    """Return the columns that say how good the model of an entry is."""
    name, scores = metrics["metric"]["name"], entry["scores"]
    return {"metric": name, "score": scores[name], "loss": scores["loss"]}


def _sent(totals: dict[str, int]) -> int:
    return totals["message_bytes"] + totals["control_bytes"] + totals["retry_bytes"]


def _mean(clients: Sequence[Any], side: str) -> float:
    return statistics.mean(c[side]["payload_bytes"] for c in clients) if clients else 0.0
