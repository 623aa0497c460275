"""Tables and a picture for README.md and docs/results.md, from what was measured: `make readme`."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.csv
from attack_table import attacks_section
from own_tasks_table import own_tasks_section
from promise_table import promise_section
from robustness_table import robustness_section
from rounds_table import rounds_section
from sweep_table import sweep_section

from featherfed.report.frontier import compare, frontier_figure
from featherfed.report.scenario import Scenario, group
from featherfed.report.style import save_png, styled
from featherfed.report.summary import bytes_text, latency_text, percent_text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "frontier.png"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
CODECS = ("float32", "exact", "transparent", "balanced", "extreme")

SWEEPS = {
    "presets": (
        "The example",
        "Fashion-MNIST, 5 clients with 12,000 examples each, 7 rounds of 5 epochs, batch 32, SGD "
        "0.01, a CNN of 225,034 parameters (900,136 bytes as float32). Budgets of 1.4 kB "
        "and 500 B a round are 280 and 96 bytes for each client.",
    ),
    "peers": (
        "Codecs of the literature",
        "The same with an MLP of 101,770 parameters (407,080 bytes). Each codec as its paper has "
        "it; what goes down is `exact` where it is not the codec's own. NNCodec (ISO/IEC 15938-17) "
        "runs in an environment of its own, with error feedback (`benchmarks/nncodec_peer.py`).",
    ),
    "models": (
        "Other models",
        "Real 8x8 digits, 5 clients with 287 or 288 examples, 7 rounds of 5 epochs, SGD 0.1; an "
        "MLP, a small MobileNet with batch normalisation, a GRU that reads rows. One of the 360 "
        "test images is 0.28 points.",
    ),
    "clients": (
        "More clients at the same total bytes",
        "As in the literature's table, with the data shared out to 20 and 50 clients. 4.5 kB is "
        "what the example's five clients send together under `balanced`. This MLP's `balanced` is "
        "2 kB together: for 50 clients that is 40 bytes each, of which 11 are the envelope around "
        "the sketch and more is lost in whole blocks of 8, so that the noise grows; the loss does "
        "not.",
    ),
    "noniid": (
        "Skewed data",
        "Each class shared out by Dirichlet(0.3): clients have other classes and other amounts.",
    ),
    "rounds": ("Thirty rounds", "As in the literature's table, with 30 rounds."),
}

_AXES = ("codec", "dataset", "model", "partition", "clients", "seed", "round")
"""What tells two rows of a sweep's tables apart."""
ADDED = {"presets": ("budgets",), "peers": ("nncodec",)}
"""Measured by another sweep, or by other means, in the same place."""


def sweep(name: str) -> list[Scenario]:
    """Return the scenarios of a committed sweep; none if it has not been measured."""
    tables: list[dict[Any, Any]] = [{}, {}]  # a run that two sweeps have made counts once
    for folder in (name, *ADDED.get(name, ())):
        for lines, table in zip(tables, ("results", "rounds"), strict=True):
            path = RESULTS / folder / f"{table}.csv"
            if path.exists():
                for row in pyarrow.csv.read_csv(path).to_pylist():
                    lines.setdefault(tuple(row.get(axis) for axis in _AXES), row)
    return group(*(list(lines.values()) for lines in tables))


def sweep_table(scenarios: Sequence[Scenario]) -> Iterator[str]:
    """Yield the lines of a Markdown table: codecs of all scenarios, means over the seeds."""
    several = len(scenarios) > 1
    yield (
        ("| where " if several else "")
        + "| codec | seeds | up | down | accuracy | points lost | bytes until 1 point below |"
    )
    yield ("|---" if several else "") + "|---|---|---|---|---|---|---|"
    for scenario in scenarios:
        rows = {row["codec"]: row for row in compare(scenario, "float32", None).rows}
        for codec in sorted(rows, key=lambda c: CODECS.index(c) if c in CODECS else len(CODECS)):
            row = rows[codec]
            yield (
                (f"| {scenario.title} " if several else "")
                + f"| {_cell(codec)} | {row['seeds']} | {row['up']} ({row['up_ratio']}) "
                f"| {row['down']} ({row['down_ratio']}) | {row['score']} | {row['lost']} "
                f"| {row['to_target']} |"
            )


def curves(scenario: Scenario) -> Iterator[str]:
    """Yield a Markdown table of accuracy over rounds, the mean over the seeds."""
    rounds = sorted({row["round"] for codec in scenario.codecs for row in codec.rounds})
    shown = [r for r in rounds if r in {1, 2, 3, 5, 7} or r % 5 == 0]
    yield "| accuracy after round | " + " | ".join(map(str, shown)) + " |"
    yield "|---" * (1 + len(shown)) + "|"
    for codec in scenario.codecs:
        means = [
            statistics.mean(row["score"] for row in codec.rounds if row["round"] == r)
            for r in shown
        ]
        yield f"| {codec.name} | " + " | ".join(map(percent_text, means)) + " |"


def methods() -> dict[str, list[Any]]:
    """Return the runs over gRPC by configuration, in order of seeds."""
    found: dict[str, list[Any]] = {}
    for path in sorted((RESULTS / "methods").glob("*-seed*.json")):
        found.setdefault(path.stem.rpartition("-seed")[0], []).append(
            json.loads(path.read_text("utf-8"))
        )
    return {name: found[name] for name in ("float32", "quantize8", "prune", "qat") if name in found}


def methods_table() -> Iterator[str]:
    """Yield a Markdown table of TFMOT's methods, means over the seeds."""
    yield "| run | seeds | accuracy | against float32, same seeds | up: mean (largest) | down |"
    yield "|---|---|---|---|---|---|"
    runs = methods()
    reference = {_seed(run): _accuracy(run) for run in runs["float32"]}
    for name, of_name in runs.items():
        paired = [_accuracy(run) - reference[_seed(run)] for run in of_name]
        accuracy = percent_text(statistics.mean(map(_accuracy, of_name)))
        yield (
            f"| {name} | {len(of_name)} | {accuracy} | {100 * statistics.mean(paired):+.2f} points "
            f"| {_payload(of_name, 'uplink')} | {_payload(of_name, 'downlink')} |"
        )


def delivery_section() -> Iterator[str]:
    """Yield a section on the delivered files: every kind for every method, as measured."""
    runs = {
        name: json.loads((RESULTS / "delivery" / f"{name}.json").read_text("utf-8"))
        for name in ("none", "prune", "cluster", "qat", "prune+qat")
    }
    plain = runs["none"]
    told, models = plain["settings"], plain["final"]["models"]
    yield (
        f"Fashion-MNIST and the example's CNN after {told['rounds']} rounds of {told['epochs']} "
        "epochs (the question is what a kind of file loses against float32 and costs, not how good "
        "the model gets). Each file on all "
        f"{models[0]['num_examples']:,} test images, with {models[0]['runtime']}, one thread of "
        f"{plain['machine']['architecture']}: latency of one image, median and what 95 % stay "
        "within; peak memory of the whole process, Python and numpy included, and how much of it "
        "came with the model. int8 took its ranges from "
        f"{plain['final']['num_calibration_examples']} training images. With qat, int8 comes from "
        "the quantization-aware model, the other kinds are the plain model with its weights "
        "(`benchmarks/delivery.py`)."
    )
    yield ""
    yield (
        "| method | file | bytes | as delivered (gzip -9) | accuracy | against float32 | one image "
        "| 95 % | peak memory | of the model |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, run in runs.items():
        models = run["final"]["models"]
        for model in models:
            accuracy = model["scores"]["accuracy"]
            lost = 100 * (accuracy - models[0]["scores"]["accuracy"])
            own = model["memory_bytes"] - model["idle_memory_bytes"]
            yield (
                f"| {name} | {model['kind']} | {model['bytes']:,} | {model['gzip_bytes']:,} "
                f"| {percent_text(accuracy)} | {lost:+.2f} points "
                f"| {latency_text(model['latency_ms'])} | {latency_text(model['latency_p95_ms'])} "
                f"| {bytes_text(model['memory_bytes'])} | {bytes_text(own)} |"
            )


def speed_table() -> Iterator[str]:
    """Yield a Markdown table of codec speeds."""
    measured = json.loads((RESULTS / "speed.json").read_text("utf-8"))
    yield "| codec | bytes | encode, MB/s | decode and fold, MB/s | against zstd |"
    yield "|---|---|---|---|---|"
    for row in measured["codecs"]:
        ratio = f"{row['encode'] / measured['zstd']:.2f}×, {row['fold'] / measured['zstd']:.2f}×"
        yield (
            f"| {_cell(row['codec'])} | {row['bytes']:,} | {row['encode']:,.0f} "
            f"| {row['fold']:,.0f} "
            f"| {ratio} |"
        )


def allocation_table() -> Iterator[str]:
    """Yield a Markdown table of the progress that each allocation keeps."""
    places = json.loads((RESULTS / "allocation.json").read_text("utf-8"))
    labels = list(max((place["kept"] for place in places), key=len))
    yield "| model | " + " | ".join(labels) + " |"
    yield "|---" * (1 + len(labels)) + "|"
    for place in places:
        cells = [
            f"{100 * kept['mean']:.0f} ± {100 * kept['stdev']:.0f} %" if kept else ""
            for kept in map(place["kept"].get, labels)
        ]
        yield f"| {place['model']}, `{place['codec']}` | " + " | ".join(cells) + " |"


RUNTIMES = {"keras": "Keras", "litert": "LiteRT"}


def runtimes() -> dict[tuple[str, str], list[Any]]:
    """Return the runs with Keras and with LiteRT clients, by plan and runtime."""
    found: dict[tuple[str, str], list[Any]] = {}
    for path in sorted((RESULTS / "runtimes").glob("*.json")):
        plan, runtime, _ = path.stem.split("-")
        found.setdefault((plan, runtime), []).append(json.loads(path.read_text("utf-8")))
    return found


def keras_accuracy(plan: str) -> dict[int, float]:
    """Return the accuracy with Keras clients by seed, from all runs of that plan and codec."""
    if plan == "none":
        # Of the sweep `presets` as it was with the code of the LiteRT runs.
        rows = pyarrow.csv.read_csv(RESULTS / "runtimes" / "keras_none.csv").to_pylist()
        found = {row["seed"]: row["score"] for row in rows}
    else:
        found = {_seed(run): _accuracy(run) for run in methods().get(plan, [])}
    of_plan = runtimes().get((plan, "keras"), [])
    return {**found, **{_seed(run): _accuracy(run) for run in of_plan}}


def runtimes_table() -> Iterator[str]:
    """Yield a Markdown table of the example with Keras clients and with LiteRT clients."""
    yield (
        "| plan | seeds | accuracy with Keras clients | with LiteRT clients | difference "
        "| by seed | sparsity |"
    )
    yield "|---|---|---|---|---|---|---|"
    for (plan, runtime), of_plan in runtimes().items():
        if runtime != "litert":
            continue
        keras = keras_accuracy(plan)
        pairs = [(keras[_seed(run)], _accuracy(run)) for run in of_plan]
        with_keras, with_litert = (statistics.mean(column) for column in zip(*pairs, strict=True))
        by_seed = " ".join(f"{100 * (second - first):+.2f}" for first, second in pairs)
        sparsity = 100 * statistics.mean(run["final"]["sparsity"] for run in of_plan)
        yield (
            f"| {plan} | {len(pairs)} | {percent_text(with_keras)} | {percent_text(with_litert)} "
            f"| {100 * (with_litert - with_keras):+.2f} points | {by_seed} | {sparsity:.2f} % |"
        )


def _seed(run: Any) -> int:
    return int(run["settings"]["seed"])


def _accuracy(run: Any) -> float:
    return float(run["final"]["scores"]["accuracy"])


def footprint_table() -> Iterator[str]:
    """Yield a Markdown table of a client's disk space, memory and seconds a round."""
    yield (
        "| clients | installed, in a fresh environment | start and imports | peak memory, 12,000 "
        "images | seconds a round, five alike | three Keras and two LiteRT clients in one run |"
    )
    yield "|---|---|---|---|---|---|"
    measured = json.loads((RESULTS / "footprint.json").read_text("utf-8"))["runtimes"]
    runs = runtimes()
    for runtime, name in RUNTIMES.items():
        row, of_plan = measured[runtime], runs["none", runtime]
        (mixed,) = runs["none", "mixed"]
        kind = [c["runtime"] for c in mixed["rounds"][0]["clients"]]
        together = statistics.median(
            seconds
            for kind, taken in zip(kind, mixed["client_seconds"], strict=True)
            if kind == runtime
            for seconds in taken
        )
        memory = max(mb for run in of_plan for mb in run["client_memory_mb"])
        seconds = min(statistics.median(r["seconds"] for r in run["rounds"]) for run in of_plan)
        yield (
            f"| {name} | {row['installed_mb']:,} MB | {row['import_seconds']:.2f} s | {memory} MB "
            f"| {seconds:.1f} | {together:.0f} |"
        )


def runtimes_section() -> Iterator[str]:
    """Yield a section that compares clients without TensorFlow with those that have it."""
    yield from (
        "The example, five client processes of one thread each and the server on two cores, over "
        "gRPC (`benchmarks/runtimes.py`): `balanced` for the plan none, `quantize(8) | zstd` both "
        "ways for the others. Accuracy with Keras clients is that of the same seeds and codec, "
        "where there is no such run from the tables above.",
        "",
        *runtimes_table(),
        "",
        "What a client takes up (`benchmarks/footprint.py`), and the median of a round's time "
        "under the plan none; of several runs, that of the fastest, since some had other work "
        "beside them:",
        "",
        *footprint_table(),
    )


def arm64_section() -> Iterator[str]:
    """Yield a section that compares the emulated arm64 client with this machine's."""
    results = json.loads((RESULTS / "arm64.json").read_text("utf-8"))
    facts = results[0]
    here, cpus = facts["here"]["architecture"], facts["codecs"]
    yield (
        f"No Raspberry Pi was at hand: `make arm64` runs the client (`featherfed join --runtime "
        f"litert`, LiteRT {facts['packages']['ai_edge_litert']}) in an arm64 Debian userland under "
        f"{facts['qemu'].partition(' (')[0].replace('-aarch64 version', '')}, beside two clients "
        f"and the server on {here}: {facts['dataset']}, {facts['examples']} examples a client, "
        f"{facts['parameters']:,} parameters, one epoch a round, `balanced`. All versions that "
        f"rounds started from, and the last, had the server's digest. The arm64 client's training "
        f"again on {here}, from the same start and batches:"
    )
    yield ""
    yield (
        "| system, processor | round | largest difference of the updates | of the update's norm "
        "| sampled coordinates | payload of the arm64 update, encoded on both |"
    )
    yield "|---|---|---|---|---|---|"
    words = {True: "equal", False: "not equal"}
    for result in results:
        for row in result["rounds"]:
            yield (
                f"| {result['suite']}, Python {result['python']}, {result['cpu']} "
                f"| {row['round']} | {row['largest']:.1e} | {row['relative']:.1e} "
                f"| {words[row['coordinates_equal']]} | {words[row['payload_equal']]}, "
                f"{row['payload_bytes']:,} bytes |"
            )
    yield ""
    alike = not any(cpu["differing"] or cpu["payloads_differing"] for cpu in cpus.values())
    count = next(iter(cpus.values()))["codecs"]
    same = "the same bytes" if alike else "the same decoded values, if not always the same bytes,"
    yield (
        f"{count} codec settings, each with the updates of five clients, give {same} on {here} and "
        f"on emulated {', '.join(cpus)}: initial weights, masks, coordinates, payloads, decoded "
        "updates, the mean and the next version. Emulation says nothing of speed and memory. "
        "[The log](../benchmarks/results/arm64.log) has more."
    )


def follow_table(measured: Any) -> Iterator[str]:
    """Yield a Markdown table of what a device that follows has downloaded."""
    rows = measured["versions"]
    yield "| version | accuracy | file | whole, compressed | sent |"
    yield "|---|---|---|---|---|"
    for row in rows:
        yield (
            f"| {row['version']} | {percent_text(row['accuracy'])} | {row['raw']:,} "
            f"| {row['whole']:,} | {row['sent']:,} |"
        )
    raw, whole, sent = (sum(row[key] for row in rows) for key in ("raw", "whole", "sent"))
    yield f"| all | | {raw:,} | {whole:,} ({raw / whole:.1f}×) | {sent:,} ({raw / sent:.1f}×) |"


def follow_section() -> Iterator[str]:
    """Yield a section on what `featherfed follow` downloads, and survives."""
    measured = json.loads((RESULTS / "follow.json").read_text("utf-8"))
    epochs, kills = measured["epochs"], measured["kills"]
    yield (
        f"The example under `balanced` with {epochs} epoch a round, {measured['rounds']} rounds: a "
        "device that only infers follows the int8 model with `featherfed follow`, over gRPC "
        "(`benchmarks/follow.py`). Bytes of payload; the first file comes whole, each later one as "
        "the difference from the one before."
    )
    yield ""
    yield from follow_table(measured)
    yield ""
    down, up = (measured["ledger"][side]["message_bytes"] for side in ("downlink", "uplink"))
    yield (
        f"With all messages that is {down:,} bytes down and {up:,} up. The follower was then "
        f"killed (SIGKILL) {kills['kills']} times while it swapped these files as fast as they "
        f"came, {kills['scratch files left']} times between the first byte and the rename: "
        f"{kills['files as released']} times the file was one of the released ones, and "
        f"{kills['models that load and infer']} times LiteRT loaded it and classified images."
    )


def parity_section() -> Iterator[str]:
    """Yield a section on LiteRT's differences from Keras, beside Keras' own noise."""
    measured = json.loads((RESULTS / "parity.json").read_text("utf-8"))
    yield (
        "The largest difference of any weight or statistic between training in LiteRT and with "
        f"tf_keras (one thread each, Fashion-MNIST, batch {measured['batch_size']}, SGD "
        f"{measured['learning_rate']:g}), from weights that {measured['warm_up']} steps of Adam "
        f"have trained; pruned ones are masked to {measured['sparsity']:.0%}. Beside it what Keras "
        "differs from itself by when floats are added in another order: with two threads; with the "
        "examples of every batch reversed; without oneDNN, whose kernels add otherwise within an "
        f"example, too. Medians of {measured['repeats']} sequences of batches, since such noise "
        "does nothing most of the time and jumps when it moves an activation across a ReLU's zero "
        "or a rounding's middle. 0 means bit-identical: small operators are never split among "
        "threads. Bold is the largest noise after 100 steps, that LiteRT is held against "
        "(`benchmarks/parity.py`)."
    )
    yield ""
    yield (
        "| | 1 step: LiteRT | threads | order | kernels | 100 steps: LiteRT | threads | order "
        "| kernels | loss of 100 steps: LiteRT, Keras |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    noises = ("threads", "order", "kernels")
    for case in measured["cases"]:
        method = "" if case["method"] == "none" else f", {case['method']}"
        one, hundred = ({r: f"{g:.1e}" for r, g in case[f"after {n}"].items()} for n in (1, 100))
        largest = max(noises, key=case["after 100"].__getitem__)
        hundred[largest] = f"**{hundred[largest]}**"
        cells = [gaps[runner] for gaps in (one, hundred) for runner in ("litert", *noises)]
        losses = case["loss of 100"]
        yield (
            f"| {case['name']}{method} | {' | '.join(cells)} "
            f"| {losses['litert']:.4f}, {losses['keras']:.4f} |"
        )


def readme_section() -> Iterator[str]:
    """Yield the README's results."""
    _, text = SWEEPS["presets"]
    yield f"{text} Payload bytes per client and round, means over seeds; made by `make bench`."
    yield ""
    yield from sweep_table(sweep("presets"))


def results_section() -> Iterator[str]:
    """Yield all of docs/results.md."""
    for name, (title, text) in SWEEPS.items():
        scenarios = sweep(name)
        if not scenarios:
            continue
        yield from (f"## {title}", "", text, "")
        yield from sweep_table(scenarios)
        yield ""
        if name == "presets":
            yield from (f"![Accuracy against bytes]({PICTURE.name})", "")
        if name in {"presets", "rounds"}:
            yield from (*curves(scenarios[0]), "")
    yield from ("## The presets' promises", "")
    yield from (*promise_section(), "")
    yield from ("## Training with TFMOT", "", "The example, over gRPC, one process a client.", "")
    yield from methods_table()
    yield from ("", "## Clients without TensorFlow", "")
    yield from runtimes_section()
    yield from ("", "## What a run delivers", "")
    yield from delivery_section()
    yield from ("", "## Following", "")
    yield from follow_section()
    yield from ("", "## LiteRT against Keras", "")
    yield from parity_section()
    yield from ("", "## What importance is worth", "")
    yield (
        "The second round's step, sketched at the size of `balanced`: the share of the exact one's "
        "fall in test loss that is kept, mean and standard deviation of 8 sketches "
        "(`benchmarks/allocation.py`). The hand-made table is the curvature of the cnn's loss by "
        "tensor, probed on its data; what comes from the run is told by the updates of the round "
        "before."
    )
    yield ""
    yield from allocation_table()
    yield from ("", "## Tasks of all kinds", "")
    yield from own_tasks_section()
    yield from ("", "## Speed", "")
    yield (
        "One core, 3.5 million parameters in the shapes of a MobileNet; megabytes of float32 a "
        "second, and the ratio to zstd level 3 on the same values as int8 in the same run."
    )
    yield ""
    yield from speed_table()
    yield from ("", "## What a round costs", "")
    yield from rounds_section()
    yield from ("", "## What a sweep costs", "")
    yield from sweep_section()
    if (RESULTS / "arm64.json").exists():
        yield from ("", "## On arm64", "")
        yield from arm64_section()
    if any((RESULTS / "robustness").glob("*.json")):
        yield from ("", "## Robustness", "")
        yield from robustness_section()
    if any((RESULTS / "attacks" / "after").glob("*.json")):
        yield from ("", "## Attacks", "")
        yield from attacks_section()


def _cell(text: str) -> str:
    """Return text that does not end a cell of a Markdown table."""
    return text.replace("|", "\\|")


def _payload(runs: Sequence[Any], side: str) -> str:
    """Return mean payload per client and round, and the largest; the last download included."""
    clients = [c for run in runs for r in run["rounds"] for c in r["clients"]]
    if side == "downlink":
        clients += [c for run in runs for c in run["final"]["clients"]]
    sizes = [client[side]["payload_bytes"] for client in clients]
    per_round = sum(sizes) / sum(len(r["clients"]) for run in runs for r in run["rounds"])
    return f"{per_round:,.0f} ({max(sizes):,})"


def pages() -> dict[Path, str]:
    """Return both pages with the tables of the committed measurements between their marks."""
    texts = {}
    for name, section in (("README.md", readme_section), ("docs/results.md", results_section)):
        before, rest = (ROOT / name).read_text("utf-8").split(BEGIN)
        _, after = rest.split(END)
        texts[ROOT / name] = "\n".join([before + BEGIN, *section(), END + after])
    return texts


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(any(path.read_text("utf-8") != text for path, text in pages().items()))
    for path, text in pages().items():
        path.write_text(text, "utf-8")
    with styled():
        save_png(frontier_figure(sweep("presets")[0]), PICTURE)
