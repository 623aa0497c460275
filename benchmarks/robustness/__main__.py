"""Measures what featherfed survives: `make robustness`, or some parts of it by name.

Each part prints what it measured and writes it to benchmarks/results/robustness/PART.json. The
longest, `decoder`, goes on after a kill.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tomli_w

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "robustness"
SCRATCH = ROOT / "runs" / "robustness"
sys.path.insert(0, str(ROOT / "tests"))  # the same programs make the small tests

from support import faults, kills, lossy_link, proxy  # noqa: E402
from support.hostile_calls import run_under_attack  # noqa: E402
from support.load import measure_load  # noqa: E402
from support.processes import wait_until  # noqa: E402

from featherfed.api.machine import machine  # noqa: E402
from featherfed.datasets.partition import partition  # noqa: E402
from featherfed.datasets.sources import load_train_test  # noqa: E402
from featherfed.simulator.campaign import simulate  # noqa: E402

Figures = dict[str, Any]

INPUTS, SHARE = 10_000_000, 500_000
CALLS = 100_000
RUNS = 10_000
KILLS, ROUNDS = 100, 10
CODECS = {"sketch": "balanced", "error feedback": "topk(0.05) | quantize(4) | zstd"}
LOSSES = (0.0, 0.01, 0.05, 0.1, 0.2)
LINKED_ROUNDS = 5
CROWDS = {10: 5, 100: 5, 1000: 3, 10_000: 1}
"""Clients -> rounds."""
REAL_CROWD = 100
"""Clients of the server that evaluates with Keras."""
LARGE_CROWDS = (10, 100)


def decoder(_: Path) -> Figures:
    """Fuzz every decoder with ten million inputs, guided by coverage; resumable."""
    from support import fuzz  # instruments what it imports, and so slows it down

    found = SCRATCH / "fuzz" / "found"
    found.mkdir(parents=True, exist_ok=True)
    progress = SCRATCH / "fuzz" / "progress.json"
    done: Figures = {"inputs": 0, "seconds": 0.0, "slowest_seconds": 0, "peak_mb": 0, "seed": 1}
    if progress.exists():
        done = json.loads(progress.read_text("utf-8"))
    while done["inputs"] < INPUTS:
        begin = time.monotonic()
        share = fuzz.count(min(SHARE, INPUTS - done["inputs"]), done["seed"], found)
        done["inputs"] += share["executed"]
        done["seconds"] += time.monotonic() - begin
        done["seed"] += 1
        for name in ("slowest_seconds", "peak_mb"):
            done[name] = max(done[name], share[name])
        progress.write_text(json.dumps(done), "utf-8")
        print(f"decoder: {done['inputs']:,} inputs, {done['seconds']:.0f} s", flush=True)
    progress.unlink()
    kept = len(list(found.iterdir())) + len(list(fuzz.CORPUS.iterdir()))
    return {**done, "seconds": round(done["seconds"]), "corpus": kept, "failures": 0}


def service(scratch: Path) -> Figures:
    """Make a hundred thousand hostile calls on a server whose round is open."""
    run_under_attack(scratch / "undisturbed", 0)
    seen = run_under_attack(scratch / "attacked", CALLS)
    wanted = kills.outcome(scratch / "undisturbed" / "run.db").digests
    assert kills.outcome(scratch / "attacked" / "run.db").digests == wanted, (
        "another model came out"
    )
    assert "Traceback" not in (scratch / "attacked" / "server.log").read_text("utf-8")
    return seen


def light_storms(scratch: Path) -> Figures:
    """Kill processes without TensorFlow, which spend their time in rounds and not in starting."""
    rows = {}
    for codec, uplink in CODECS.items():
        directory = scratch / codec.replace(" ", "-")
        with kills.numpy_processes(directory / "undisturbed", kills.numpy_spec(uplink)) as run:
            run.wait(300)
        begin = time.monotonic()
        spec = kills.numpy_spec(uplink, seconds=0.2, hold_last_round=True)
        with kills.numpy_processes(directory / "killed", spec) as run:
            run.kill_at_random(
                KILLS, 1, ROUNDS, kills.newest_version_of(directory / "killed"), gap=0.3
            )
            (directory / "killed" / "over").touch()
            run.wait(600)
        rows[codec] = _compare(directory, "run.db", dict(run.kills), time.monotonic() - begin)
        rows[codec]["acknowledged"] = kills.check_acks(
            directory / "killed", kills.outcome(directory / "killed" / "run.db")
        )
    return rows


def _compare(directory: Path, database: str, killed: Figures, seconds: float) -> Figures:
    wanted = kills.outcome(directory / "undisturbed" / database)
    left = kills.outcome(directory / "killed" / database)
    assert left.digests == wanted.digests, "another model came out after the kills"
    assert left.journal == wanted.journal, "an update was lost, or counted twice"
    return {
        "kills": killed,
        "seconds": round(seconds),
        "updates": len(left.journal),
        "payload_bytes": sum(left.journal.values()),
        "retry_bytes": left.retry_bytes,
        "final": left.digests[-1],
    }


def real_storm(scratch: Path) -> Figures:
    """Kill `featherfed serve` and `featherfed join --runtime litert` on digits."""
    base = scratch / "base"
    base.mkdir()
    commands = _real_commands(base)
    # The server of both runs: they have its name and secret.
    with kills.KillableProcesses(base, {"server": commands["server"]}):
        wait_until((base / "out" / "server.address").exists, 120)
    for name in ("undisturbed", "killed"):
        shutil.copytree(base, scratch / name)
    with kills.KillableProcesses(scratch / "undisturbed", commands) as run:
        run.wait(1200)
    newest = kills.newest_version_of(scratch / "killed" / "out")
    begin = time.monotonic()
    with kills.KillableProcesses(scratch / "killed", commands) as run:
        run.kill_at_random(KILLS, 1, ROUNDS, newest, gap=1.5, server_share=0.2)
        run.wait(1200)
    figures = _compare(scratch, "out/run.db", dict(run.kills), time.monotonic() - begin)
    journal = kills.outcome(scratch / "killed" / "out" / "run.db").journal
    said = [
        (round_, f"c{number}")
        for number in range(kills.CLIENTS)
        for round_ in range(1, ROUNDS + 1)
        if f"round {round_}: sent " in (scratch / "killed" / f"c{number}.log").read_text("utf-8")
    ]
    assert set(said) <= set(journal), "an acknowledged update is not in the journal"
    return {**figures, "acknowledged": len(said)}


def _real_commands(directory: Path) -> dict[str, list[str]]:
    port = kills.free_port()
    settings = {
        "output": "out",
        "rounds": ROUNDS,
        "server": {"port": port, "linger": 60},
        "model": {"name": "mlp"},
        "training": {"epochs": 1000, "learning_rate": 0.01},
        "clients": {
            "minimum": kills.CLIENTS, "quorum": 1.0, "deadline": 3600.0, "patience": 3600.0,
        },
    }  # fmt: skip
    (directory / "run.toml").write_text(tomli_w.dumps(settings), "utf-8")
    featherfed = [sys.executable, "-m", "featherfed.cli.main"]
    commands = {"server": [*featherfed, "serve", "run.toml"]}
    train, _ = load_train_test("digits")
    for number, indices in enumerate(partition(train.labels, kills.CLIENTS, "iid", 0)):
        train.take(indices).save(directory / f"data-{number}.npz")
        commands[f"c{number}"] = [
            *featherfed, "join", f"127.0.0.1:{port}", "--data", f"data-{number}.npz",
            "--name", f"c{number}", "--state-dir", f"state-{number}", "--threads", "1",
            "--runtime", "litert",
        ]  # fmt: skip
    return commands


def links(scratch: Path) -> Figures:
    """Train the example's model over links of 64 kbit/s and 100 to 500 ms, all at the same time."""
    uplinks = ("balanced", "quantize(8)")
    wanted = {
        uplink: lossy_link.undisturbed_digests(scratch / f"quiet-{number}", uplink, LINKED_ROUNDS)
        for number, uplink in enumerate(uplinks)
    }
    cases = [(uplink, loss) for uplink in uplinks for loss in LOSSES]

    def measure(number: int) -> Figures:
        uplink, loss = cases[number]
        link = proxy.Link(loss=loss)
        row = lossy_link.run_over_link(
            scratch / f"lossy-{number}", uplink, LINKED_ROUNDS, link, 7200
        )
        assert row.pop("digests") == wanted[uplink], "another model came out"
        print(json.dumps(row), flush=True)
        return row

    with ThreadPoolExecutor(len(cases)) as pool:
        return {"rounds": LINKED_ROUNDS, "runs": list(pool.map(measure, range(len(cases))))}


def load(scratch: Path) -> Figures:
    """Run rounds of many clients that all send at the same moment, on a server of its own."""
    cases: list[tuple[Any, ...]] = [(n, "cnn", "balanced", r, False) for n, r in CROWDS.items()]
    cases.append((REAL_CROWD, "cnn", "balanced", 2, True))
    large = [(n, "large", uplink) for uplink in ("balanced", "quantize(8)") for n in LARGE_CROWDS]
    rows = []
    for number, case in enumerate([*cases, *large]):
        rows.append(measure_load(scratch / str(number), *case))
        print(json.dumps(rows[-1]), flush=True)
    return {"runs": rows}


def every_fault(scratch: Path) -> Figures:
    """Try every fault of tests/support/faults.py on a running round with four honest clients."""
    rows = []
    for number, fault in enumerate(faults.FAULTS):
        result = faults.face(fault, scratch / str(number))
        assert fault.expected in result.told, f"{fault.name}: {result.told}"
        assert result.unchanged, f"{fault.name} changed the honest clients' model"
        rows.append({
            "fault": fault.name, "peers": fault.peers, "told": fault.expected,
            "seconds": None if fault.alone else result.seconds,
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return {"deadline": faults.DEADLINE, "faults": rows}


def simulator(_: Path) -> Figures:
    """Simulate ten thousand whole runs with faults, each from its seed."""
    figures = simulate(0, RUNS, ROUNDS, processes=2).figures()
    assert not figures["failures"], figures["failures"]
    return figures


PARTS: dict[str, Callable[[Path], Figures]] = {
    "faults": every_fault,
    "load": load,
    "light_storms": light_storms,
    "real_storm": real_storm,
    "links": links,
    "service": service,
    "simulator": simulator,
    "decoder": decoder,
}


def main() -> None:
    """Measure what was asked for, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    RESULTS.mkdir(parents=True, exist_ok=True)
    for part in parser.parse_args().parts or PARTS:
        with tempfile.TemporaryDirectory() as scratch:
            figures = PARTS[part](Path(scratch))

        print(json.dumps({part: figures}, indent=1), flush=True)
        text = json.dumps({"machine": machine(), **figures}, indent=1)
        (RESULTS / f"{part}.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
