"""The seed configuration on Fashion-MNIST, as real federations over gRPC: `make bench`.

Runs `featherfed demo` for every configuration and seed, keeps each run's metrics.json under
benchmarks/results/fashion-mnist/, and writes the tables of what is there into README.md. Runs that
are there already are not made again: after a kill it goes on, and to measure anew, delete the file.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "fashion-mnist"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"

FLOAT32 = ["--uplink", "float32", "--downlink", "float32"]
QUANTIZE8 = ["--uplink", "quantize(8) | zstd", "--downlink", "quantize(8) | zstd"]
CONFIGURATIONS: dict[str, list[str]] = {
    "float32": FLOAT32,
    "quantize8": QUANTIZE8,
    "prune": [*QUANTIZE8, "--optimize", "prune"],
    "qat": [*QUANTIZE8, "--optimize", "qat"],
}
PLAN = [
    ("float32", 0), ("quantize8", 0), ("prune", 0), ("qat", 0),
    ("float32", 1), ("quantize8", 1), ("float32", 2), ("quantize8", 2),
    ("prune", 1), ("qat", 1), ("prune", 2), ("qat", 2),
]  # fmt: skip


def measure() -> None:
    """Make every run of the plan that has no result yet."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, seed in PLAN:
        result = RESULTS / f"{name}-seed{seed}.json"
        if result.exists():
            continue
        print(f"{result.stem}: running", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            output = Path(scratch) / "run"
            command = [sys.executable, "-m", "featherfed.cli.main", "demo"]
            command += ["--dataset", "fashion-mnist", "--seed", str(seed), "--output", str(output)]
            subprocess.run([*command, *CONFIGURATIONS[name]], check=True)
            shutil.copy(output / "metrics.json", result)


def load() -> dict[str, list[Any]]:
    """Return the measured runs by configuration, in order of seeds."""
    found = {}
    for name in CONFIGURATIONS:
        paths = sorted(RESULTS.glob(f"{name}-seed*.json"))
        if paths:
            found[name] = [json.loads(path.read_text("utf-8")) for path in paths]
    return found


def table() -> Iterator[str]:
    """Yield the lines of the results table, in Markdown: means over the seeds."""
    yield (
        "| run | seeds | accuracy after 7 rounds | against float32, same seeds "
        "| up: mean (largest) | down: mean (largest) | last round up |"
    )
    yield "|---|---|---|---|---|---|---|"
    runs = load()
    reference = {run["settings"]["seed"]: run["final"]["accuracy"] for run in runs["float32"]}
    for name, of_name in runs.items():
        accuracies = [run["final"]["accuracy"] for run in of_name]
        paired = [
            run["final"]["accuracy"] - reference[run["settings"]["seed"]]
            for run in of_name
            if run["settings"]["seed"] in reference
        ]
        yield (
            f"| {name} | {len(of_name)} | {_spread(accuracies)} "
            f"| {100 * statistics.mean(paired):+.2f} points | {_payload(of_name, 'uplink')} "
            f"| {_payload(of_name, 'downlink')} | {_last_round(of_name):,.0f} |"
        )


def models_table() -> Iterator[str]:
    """Yield the lines of the table of exported models, from the first seed of every run."""
    yield "| run | file | bytes | gzip -9 | accuracy on 10,000 images |"
    yield "|---|---|---|---|---|"
    for name, of_name in load().items():
        for model in of_name[0]["final"]["models"]:
            yield (
                f"| {name} | {model['kind']} | {model['bytes']:,} | {model['gzip_bytes']:,} "
                f"| {model['accuracy']:.4f} |"
            )


def section() -> Iterator[str]:
    """Yield the lines of the README's results."""
    machines = {
        " ".join(f"{k} {v}," for k, v in run["machine"].items()).rstrip(",")
        for runs in load().values()
        for run in runs
    }
    yield (
        "Fashion-MNIST, 5 clients with 12,000 examples each, 7 rounds of 5 epochs, batch 32, SGD "
        "0.01, a CNN of 225,034 parameters (900,136 bytes as float32), over real gRPC; payload "
        "bytes per client and round. Made by `make bench`."
    )
    yield ""
    yield from table()
    yield ""
    yield "The exported models of seed 0:"
    yield ""
    yield from models_table()
    yield ""
    yield "Measured on: " + "; ".join(sorted(machines)) + "."


def _payload(runs: list[Any], side: str) -> str:
    """Return mean payload per client and round, and the largest; the last download included."""
    clients = [c for run in runs for r in run["rounds"] for c in r["clients"]]
    if side == "downlink":
        clients += [c for run in runs for c in run["final"]["clients"]]
    sizes = [client[side]["payload_bytes"] for client in clients]
    per_round = sum(sizes) / sum(len(r["clients"]) for run in runs for r in run["rounds"])
    return f"{per_round:,.0f} ({max(sizes):,})"


def _last_round(runs: list[Any]) -> float:
    return statistics.mean(
        c["uplink"]["payload_bytes"] for run in runs for c in run["rounds"][-1]["clients"]
    )


def _spread(values: list[float]) -> str:
    texts = ", ".join(f"{value:.4f}" for value in values)
    return f"{statistics.mean(values):.4f} ({texts})"


def readme() -> str:
    """Return README.md with the tables of the committed measurements between its marks."""
    before, rest = README.read_text("utf-8").split(BEGIN)
    _, after = rest.split(END)
    return "\n".join([before + BEGIN, *section(), END + after])


def main() -> None:
    """Measure, or do what an argument says: `--readme` writes, `--readme-check` compares."""
    if sys.argv[1:] == ["--readme-check"]:
        sys.exit(README.read_text("utf-8") != readme())
    if sys.argv[1:] != ["--readme"]:
        measure()
    README.write_text(readme(), "utf-8")
    print("\n".join(section()))


if __name__ == "__main__":
    main()
