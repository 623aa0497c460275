"""Compares the real client on an emulated arm64 processor and on this machine: `make arm64`.

1. Digests of what every codec encodes and decodes, on each emulated processor and here.
2. A run over gRPC: the server and two clients on this machine, and `featherfed join --runtime
   litert` in an arm64 Debian userland as the third.
3. The arm64 client's training again, from the same start and batches, on this machine and on other
   emulated processors; and its update encoded again on this machine.

Writes benchmarks/results/arm64.json and arm64.log; fails if a digest differs that must not, or if
an update differs by more than float noise. Takes some minutes, and about a gigabyte under .arm64/.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import device_client
import numpy as np
import userland
from codec_digests import digest, drawn

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.round import start_round
from featherfed.compression.exchange.update import encode_update, subtract
from featherfed.compression.registry import parse_codec
from featherfed.datasets.sources import load_train_test
from featherfed.edge_client.plan import manifest_of
from featherfed.proto import federation_pb2 as pb

HERE = Path(__file__).parent
RESULT = HERE / "results" / "arm64.json"
LOG = HERE / "results" / "arm64.log"
DEVICE, OTHERS = "pi", ("laptop", "desktop")
NAMES = (DEVICE, *OTHERS)
MUST_BE_EQUAL = ("coordinates", "decoded", "next version", "importance")
TOLERANCE = 1e-4
"""Largest difference, as a share of an update's norm: float32 sums are added in another order."""

RUN = """\
name = "arm64"
output = "server"
rounds = {rounds}
[server]
port = 0
linger = 600
[training]
epochs = 1
batch_size = 32
learning_rate = {rate}
[compression]
uplink = "balanced"
[clients]
minimum = 3
quorum = 1.0
deadline = 3600
patience = 600
[evaluation]
dataset = "{dataset}"
clients = 0
"""


_NOISE = re.compile(r"[IWE]0000 |WARNING: All log messages|INFO: Created|fully_quantize")
"""Lines that TensorFlow and LiteRT write however quiet they are asked to be."""


class Log:
    """Prints lines and collects them for the committed log."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def say(self, text: str) -> None:
        """Print a line and add it to the log."""
        print(text, flush=True)
        self._lines.append(text)

    def say_file(self, title: str, path: Path) -> None:
        """Add the output of a process, without progress bars."""
        self.say(f"--- {title}")
        for line in path.read_text("utf-8", "replace").splitlines():
            line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line.rpartition("\r")[2]).rstrip()
            if line and not _NOISE.match(line):
                self.say(f"    {line}")

    def write(self) -> None:
        """Write the log to its file."""
        LOG.write_text("\n".join(self._lines) + "\n", "utf-8")


class Bench:
    """A folder to work in, this machine's Python and the emulated one."""

    def __init__(self, folder: Path, guest: userland.Userland, featherfed: Path) -> None:
        self.folder = folder
        self.guest = guest
        self._featherfed = featherfed

    def start(self, name: str, cpu: str | None, *arguments: str) -> subprocess.Popen[bytes]:
        """Start Python with `arguments`, emulated if there is a `cpu`; output goes to NAME.log."""
        if cpu is None:
            command, environment = [sys.executable, *arguments], dict(os.environ)
        else:
            command, environment = self.guest.command(cpu, *arguments), self.guest.environment
            environment["PYTHONPATH"] = f"{self._featherfed}:{environment['PYTHONPATH']}"
        with self.log(name).open("wb") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder, env=environment
            )

    def run(self, name: str, cpu: str | None, *arguments: str) -> float:
        """Run Python to its end and return the seconds it took; fail with its output."""
        before = time.perf_counter()
        if self.start(name, cpu, *arguments).wait():
            sys.exit(f"arm64: {name} failed:\n{self.log(name).read_text('utf-8', 'replace')}")
        return time.perf_counter() - before

    def log(self, name: str) -> Path:
        """Return the path of NAME.log."""
        return self.folder / f"{name}.log"


def codecs(bench: Bench, cpus: Sequence[str], log: Log) -> dict[str, Any]:
    """Compare digests of what every codec encodes and decodes."""
    script = str(HERE / "codec_digests.py")
    bench.run("codecs-here", None, script, "codecs-here", "codecs-here", "codecs-here.json")
    here = json.loads((bench.folder / "codecs-here.json").read_text("utf-8"))
    compared: dict[str, Any] = {}
    for cpu in cpus:
        name = f"codecs-{cpu}"
        seconds = bench.run(name, cpu, script, name, "codecs-here", f"{name}.json")
        there = json.loads((bench.folder / f"{name}.json").read_text("utf-8"))
        differing = [key for key in here if key != "codecs" and here[key] != there[key]]
        payloads = []
        for ours, theirs in zip(here["codecs"], there["codecs"], strict=True):
            title = f"{ours['codec']} at sparsity {ours['sparsity']:g}"
            differing += [f"{title}: {k}" for k in MUST_BE_EQUAL if ours[k] != theirs[k]]
            if ours["payloads"] != theirs["payloads"]:
                payloads.append(title)
        compared[cpu] = {
            "codecs": len(here["codecs"]),
            "differing": differing,
            "payloads_differing": payloads,
        }
        log.say(
            f"codecs on {cpu} ({seconds:.0f} s): of {len(here['codecs'])}, each for "
            f"5 clients, what must be equal to {here_name()} differs in {differing or 'none'}, "
            f"payloads encoded from the same update differ in {payloads or 'none'}"
        )
    sketch = here["codecs"][0]
    log.say(f"for instance {sketch['codec']}: coordinates {sketch['coordinates'][:16]}")
    return compared


def federation(bench: Bench, cpu: str, dataset: str, rounds: int, examples: int, log: Log) -> Any:
    """Run the federation to its end; return metrics.json."""
    train, _ = load_train_test(dataset)
    for number, name in enumerate(NAMES):
        part = slice(number * examples, (number + 1) * examples)
        np.savez(
            bench.folder / f"{name}.npz",
            images=train.images[part],
            labels=train.labels[part],
            class_names=np.array(train.class_names),
        )
    rate = 0.1 if dataset == "digits" else 0.01
    (bench.folder / "run.toml").write_text(
        RUN.format(rounds=rounds, rate=rate, dataset=dataset), "utf-8"
    )
    running = {
        "server": bench.start("server", None, "-m", "featherfed.cli.main", "serve", "run.toml")
    }
    try:
        address = _address(bench, running["server"])
        for name in NAMES:
            running[name] = bench.start(
                name, cpu if name == DEVICE else None,
                str(HERE / "device_client.py"), "record", f"record-{name}",
                "join", address, "--runtime", "litert", "--data", f"{name}.npz", "--name", name,
                "--state-dir", f"state-{name}", "--threads", "1",
            )  # fmt: skip
        _wait(bench, running)
    finally:
        for process in running.values():
            if process.poll() is None:
                process.kill()
                process.wait()
    for name in running:
        log.say_file(f"{name}{f', emulated {cpu}' if name == DEVICE else ''}", bench.log(name))
    return json.loads((bench.folder / "server" / "metrics.json").read_text("utf-8"))


def _address(bench: Bench, server: subprocess.Popen[bytes]) -> str:
    path = bench.folder / "server" / "server.address"
    while not path.exists():
        if server.poll() is not None:
            sys.exit(f"arm64: no server:\n{bench.log('server').read_text('utf-8', 'replace')}")
        time.sleep(0.2)
    return path.read_text("utf-8")


def _wait(bench: Bench, running: dict[str, subprocess.Popen[bytes]]) -> None:
    while any(process.poll() is None for process in running.values()):
        for name, process in running.items():
            if process.poll():
                sys.exit(f"arm64: {name} failed:\n{bench.log(name).read_text('utf-8', 'replace')}")
        time.sleep(0.5)


def digests(bench: Bench, metrics: Any, log: Log) -> dict[str, Any]:
    """Compare the digests of the models that clients held with the server's."""
    versions = [
        recorded.held == recorded.task.digest.hex()
        for name in NAMES
        for recorded in device_client.load(bench.folder / f"record-{name}")
    ]
    final = metrics["final"]["digest"]
    held = {name: (bench.folder / f"record-{name}" / "final").read_text("utf-8") for name in NAMES}
    whole = [n for n in NAMES if "fetching the whole model" in bench.log(n).read_text("utf-8")]
    log.say(
        f"digests: {sum(versions)} of {len(versions)} versions that rounds started from were the "
        f"server's; final model {final[:16]} on the server, {held[DEVICE][:16]} on {DEVICE}; "
        f"fell back to a snapshot: {whole or 'nobody'}"
    )
    return {
        "versions": len(versions),
        "equal": all(versions) and set(held.values()) == {final} and not whole,
        "final": final,
    }


def updates(bench: Bench, cpu: str, cpus: Sequence[str], log: Log) -> list[dict[str, Any]]:
    """Train the arm64 client's rounds again elsewhere, and encode its updates on this machine."""
    folder = bench.folder / f"record-{DEVICE}"
    rounds = device_client.load(folder)
    weights: dict[str, dict[int, list[Array]]] = {}
    variants: list[tuple[str, str | None, int]] = [("here", None, 1), ("here-2-threads", None, 2)]
    variants += [(other, other, 1) for other in cpus if other != cpu]
    for title, on, threads in variants:
        bench.run(
            f"replay-{title}", on, str(HERE / "device_client.py"), "replay", f"record-{DEVICE}",
            f"{DEVICE}.npz", DEVICE, str(threads), f"replay-{title}.npz",
        )  # fmt: skip
        with np.load(bench.folder / f"replay-{title}.npz") as archive:
            weights[title] = {
                r.task.round: [
                    archive[n] for n in sorted(archive.files) if n.startswith(f"{r.task.round}/")
                ]
                for r in rounds
            }
    plan = pb.Plan.FromString((folder / "plan.pb").read_bytes())
    compared = []
    for recorded in rounds:
        number = recorded.task.round
        own = subtract(recorded.trained, recorded.start)
        here = subtract(weights["here"][number], recorded.start)
        two = subtract(weights["here-2-threads"][number], recorded.start)
        facts = {
            "round": number,
            "codec": recorded.task.codec,
            "update_norm": _norm(here),
            **_difference("", own, here),
            **_difference("threads_", two, here),
            **{
                f"equal_on_{title}": _same(weights[title][number], recorded.trained)
                for title, on, _ in variants
                if on is not None
            },
            **_encoded(plan, recorded, own, here),
        }
        compared.append(facts)
        log.say(
            f"round {number}: update of {cpu} against {here_name()}, same start and batches: "
            f"largest difference {facts['largest']:.2e}, {facts['relative']:.2e} of the update's "
            f"norm ({facts['update_norm']:.3f}); two threads against one on {here_name()}: "
            f"{facts['threads_largest']:.2e}, {facts['threads_relative']:.2e}"
        )
        equal = {True: "equal", False: "NOT equal"}
        log.say(
            f"round {number}: {facts['codec']}, {facts['payload_bytes']} bytes: coordinates "
            f"{equal[facts['coordinates_equal']]}, payload of the arm64 update encoded on "
            f"{here_name()} {equal[facts['payload_equal']]}; of the payloads of each machine's own "
            f"update {facts['own_payload_bytes_differing']} bytes differ"
        )
    return compared


def _encoded(
    plan: pb.Plan, recorded: device_client.Recorded, own: list[Array], here: list[Array]
) -> dict[str, Any]:
    """Compare what the arm64 client sent with the same update encoded on this machine."""
    manifest, task = manifest_of(plan), recorded.task
    start = start_round(manifest, recorded.start, task.sparsity)
    round_ = start.context(plan.seed, task.round, task.slots, recorded.allocation)
    masks, context = round_.masks, round_.for_slot(task.slot)
    codec = parse_codec(task.codec)
    made, coordinates = [], []
    for update in (own, here):
        with drawn() as where:
            made.append(encode_update(codec, manifest, update, masks=masks, context=context))
        coordinates.append(digest(*where))
    again, from_here = (encoded.payload for encoded in made)
    return {
        "payload_bytes": len(recorded.payload),
        "payload_equal": again == recorded.payload,
        "coordinates": recorded.coordinates,
        "coordinates_equal": set(coordinates) == {recorded.coordinates},
        "own_payload_bytes_differing": sum(
            a != b for a, b in zip(from_here, recorded.payload, strict=True)
        ),
    }


def _norm(update: Sequence[Array]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(t, dtype=np.float64)) for t in update)))


def _difference(prefix: str, one: list[Array], other: list[Array]) -> dict[str, float]:
    difference = [np.subtract(a, b, dtype=np.float64) for a, b in zip(one, other, strict=True)]
    return {
        f"{prefix}largest": max(float(np.abs(d).max(initial=0)) for d in difference),
        f"{prefix}relative": _norm(difference) / _norm(other),
    }


def _same(one: list[Array], other: list[Array]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def here_name() -> str:
    """Return this machine's architecture."""
    return userland.machine()["architecture"]


def _wheel(folder: Path) -> tuple[list[str], Path]:
    """Build this checkout; return what to install for it, and the folder it is unpacked in."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(HERE.parent),
    ]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"arm64: this checkout does not build:\n{done.stderr}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
        (metadata,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        lines = archive.read(metadata).decode().splitlines()
    needed = [
        line.removeprefix("Requires-Dist: ") for line in lines if line[:14] == "Requires-Dist:"
    ]
    extra = re.compile(r"""\s*;\s*extra == ["']edge["']$""")
    return [extra.sub("", n) for n in needed if "extra ==" not in n or extra.search(n)], (
        folder / "unpacked"
    )


def compare(
    suite: str, cpus: Sequence[str], options: argparse.Namespace, log: Log
) -> dict[str, Any]:
    """Prepare the userland of a `suite`, run and compare; the first of `cpus` runs the client."""
    cache = options.cache.resolve()
    requirements, featherfed = _wheel(cache / "wheel")
    guest = userland.prepare(cache, suite, requirements, options.mirror)
    folder = cache / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    bench = Bench(folder, guest, featherfed)
    log.say(
        f"=== Debian {suite} arm64, Python {guest.python}; {guest.qemu_version}; "
        + ", ".join(f"{n} {v}" for n, v in guest.packages().items())
    )
    compared = codecs(bench, cpus, log)
    metrics = federation(bench, cpus[0], options.dataset, options.rounds, options.examples, log)
    same = digests(bench, metrics, log)
    rounds = updates(bench, cpus[0], cpus, log)
    counted = [c["client"] for r in metrics["rounds"] for c in r["clients"]].count(DEVICE)
    log.say(f"{counted} of {options.rounds} rounds counted the update of {DEVICE}")
    good = (
        not any(facts["differing"] for facts in compared.values())
        and same["equal"]
        and counted == options.rounds
        and all(r["coordinates_equal"] and r["relative"] <= TOLERANCE for r in rounds)
    )
    log.say("arm64 and this machine agree" if good else "arm64 and this machine DO NOT agree")
    return {
        "good": good,
        "suite": suite,
        "python": guest.python,
        "qemu": guest.qemu_version,
        "packages": guest.packages(),
        "cpu": cpus[0],
        "here": userland.machine(),
        "dataset": options.dataset,
        "examples": options.examples,
        "parameters": metrics["num_parameters"],
        "codecs": compared,
        "digests": same,
        "rounds": rounds,
    }


def main() -> None:
    """Compare, and write results and log."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suites", default="bookworm,trixie", help="of Debian")
    parser.add_argument(
        "--cpus",
        default="cortex-a72,cortex-a53,cortex-a76",
        help="emulated processors; the first runs the client, and alone under a second suite",
    )
    parser.add_argument("--dataset", default="fashion-mnist", help="or digits")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=320, help="of each client")
    parser.add_argument("--mirror", help="of Debian; default: the one apt uses here")
    parser.add_argument("--cache", type=Path, default=HERE.parent / ".arm64")
    options = parser.parse_args()
    suites, cpus = options.suites.split(","), options.cpus.split(",")
    if unknown := set(suites) - set(userland.PYTHONS):
        parser.error(f"unknown suites {unknown}; known: {', '.join(userland.PYTHONS)}")
    log = Log()
    try:
        results = [
            compare(suite, cpus[:1] if number else cpus, options, log)
            for number, suite in enumerate(suites)
        ]
    except userland.UserlandError as error:
        sys.exit(f"arm64: {error}")
    RESULT.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    log.write()
    sys.exit(not all(result["good"] for result in results))


if __name__ == "__main__":
    main()
