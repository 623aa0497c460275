"""What presets take, as a table for docs/codecs.md and as numbers for the calculator there."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

from featherfed.compression.quantizers import PEAK_BITS
from featherfed.compression.sketch import Sketch
from featherfed.proto import federation_pb2 as pb
from featherfed.server.rounds.promise import MAX_FACTOR
from featherfed.server.rounds.uplink import PRESETS, PROMISES, Preset

_AROUND = {"message": 38, "control": 44, "http2_up": 170, "http2_down": 190, "connection": 1000}
"""Bytes of a client and round, as docs/metrics.md tells them and tests measure them."""
_ENVELOPE = 21
"""Bytes around an update of one tensor as float32."""


def presets_table(results: Path) -> str:
    """Return a Markdown table of what presets take and promise."""
    lines = [
        "| preset | takes, as a client's update, of five | loses at most |",
        "|---|---|---|",
    ]
    for name, preset in PRESETS.items():
        if isinstance(preset, Preset):
            takes = f"1/{preset.ratio:,.0f} of the float32 model, {preset.floor} bytes at least"
            lines.append(f"| `{name}` | {takes} | {PROMISES[name]} points, or % |")
        else:
            shares = exact_shares(results)
            takes = f"1/{1 / max(shares):.1f} to 1/{1 / min(shares):.1f} of it in what was measured"
            lines.append(f"| `{name}` | {takes} | no promise |")
    return "\n".join(lines)


def exact_shares(results: Path) -> list[float]:
    """Return what `exact` took up, as a share of the float32 model, in each run of the sweeps."""
    return [
        float(row["up_payload_bytes"]) / float(row["float32_bytes"])
        for name in ("presets", "peers", "models")
        for row in _rows(results, name)
        if row["codec"] == "exact"
    ]


def coefficients(results: Path, made: str) -> str:
    """Return what the calculator computes with, as JavaScript."""
    codec = str(Sketch(0.0273, PEAK_BITS))
    empty = pb.Bundle(slots=5, server_rate=333, codec=codec)
    many = pb.Bundle(slots=5, server_rate=333, codec=codec)
    payload = bytes(400)
    for _ in range(100):
        many.parts.add(slot=1, num_examples=1, payload=payload)
    values = {
        "presets": {
            name: {"ratio": preset.ratio, "floor": preset.floor, "promise": PROMISES[name]}
            for name, preset in PRESETS.items()
            if isinstance(preset, Preset)
        },
        "presetClients": 5,
        "mostTimes": MAX_FACTOR,
        "exactShare": round(statistics.mean(exact_shares(results)), 4),
        "envelope": _ENVELOPE,
        "bundle": empty.ByteSize(),
        "part": (many.ByteSize() - empty.ByteSize()) / 100 - len(payload),
        "around": {
            "up": _AROUND["message"] + _AROUND["control"] + _AROUND["http2_up"],
            "down": _around_down(results) + _AROUND["http2_down"],
            "connection": _AROUND["connection"],
        },
    }
    return f"// {made}\nconst FEATHERFED = {json.dumps(values, indent=2)};\n"


def _around_down(results: Path) -> int:
    """Return the messages' bytes around a download, a client and round, without what comes once.

    From runs of 7 and 30 rounds with the same model.
    """
    sums = {}
    for name, rounds in (("clients", 7), ("rounds", 30)):
        around = [
            float(row["down_sent_bytes"]) - float(row["down_payload_bytes"])
            for row in _rows(results, name)
            if (row["codec"], row["clients"], row["model"]) == ("balanced", "5", "mlp")
        ]
        sums[rounds] = rounds * statistics.mean(around)
    return round((sums[30] - sums[7]) / 23)


def _rows(results: Path, sweep: str) -> list[dict[str, str]]:
    with (results / sweep / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
