"""Flips single bytes of a run's and a client's files, and measures what notices or survives that.

`python benchmarks/damage.py` writes benchmarks/results/robustness/damage.json. Each flip is judged
alone: does the start of the server (or the client's use of the file) notice it, does `featherfed
check`, and if the start does not, does the run that goes on end as the undisturbed one: versions,
journal, ledger, refusals and metrics? If it does not, the flip is silent. Also measured: what the
checks cost. `--before`, with the code of before on PYTHONPATH, fills in that part of the results.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import inspect
import io
import json
import logging
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "robustness" / "damage.json"
sys.path.insert(0, str(ROOT / "tests"))

from support.clients import join_request  # noqa: E402
from support.evaluator import DistanceEvaluator  # noqa: E402
from support.federation import settings  # noqa: E402
from support.models import TASK  # noqa: E402

from featherfed.api.backup import back_up  # noqa: E402
from featherfed.api.machine import machine  # noqa: E402
from featherfed.cli.check import check_directory  # noqa: E402
from featherfed.compression.errors import WireError  # noqa: E402
from featherfed.compression.exchange.manifest import (  # noqa: E402
    Manifest,
    Role,
    TensorSpec,
    Uniform,
    weights_digest,
)
from featherfed.compression.exchange.round import RoundContext, round_key  # noqa: E402
from featherfed.compression.exchange.update import encode_update  # noqa: E402
from featherfed.compression.registry import parse_codec  # noqa: E402
from featherfed.edge_client.partial_download import FILE_NAME, PartialDownload  # noqa: E402
from featherfed.edge_client.state import ClientState, HeldModel, PendingUpdate  # noqa: E402
from featherfed.edge_client.versions import DigestMismatch, apply_links  # noqa: E402
from featherfed.proto import federation_pb2 as pb  # noqa: E402
from featherfed.server.coordinator.coordinator import Coordinator  # noqa: E402
from featherfed.server.errors import ServerError  # noqa: E402
from featherfed.server.observability import metrics_json  # noqa: E402
from featherfed.server.rounds.transitions import Phase  # noqa: E402
from featherfed.server.settings.plan import make_plan  # noqa: E402
from featherfed.server.storage.records import (  # noqa: E402
    DownloadKey,
    LedgerEntry,
    StoredChunk,
    TransferredBytes,
)
from featherfed.server.storage.store import Store  # noqa: E402

FLIPS = 1000
MEMORY = Path("/dev/shm")
MANIFEST = Manifest(
    (
        TensorSpec("kernel", (12, 16), initial=Uniform(0.1), prunable=True),
        TensorSpec("bias", (16,)),
        TensorSpec("variance", (16,), Role.NONNEGATIVE),
    )
)
CLIENTS = ("c0", "c1", "c2")
CODECS = {"uplink": "topk(0.3) | quantize(4)", "downlink": "quantize(8) | zstd"}

Figures = dict[str, Any]


class Server:
    """A run of three rounds and three clients, without gRPC."""

    def __init__(self, folder: Path) -> None:
        changed = settings(folder, compression=CODECS, output="run")
        self.settings = changed
        self.store = Store(folder / "run.db")
        try:
            self.coordinator = Coordinator(
                changed, self.store, make_plan(changed, TASK, "{}", MANIFEST), MANIFEST,
                TASK, DistanceEvaluator(), time.time, secret=1,
            )  # fmt: skip
        except BaseException:
            self.store.close()
            raise

    def play(self, until: int, last: tuple[str, ...]) -> None:
        """Play rounds up to `until`, in which only the clients of `last` send."""
        run = self.coordinator
        sessions = {n: run.admission.join(join_request(n)).session for n in CLIENTS}
        while run.phase is not Phase.FINISHED:
            for name in CLIENTS:
                run.tasks.next_task(name)
            run.tick()
            round_ = run.run.state.round
            for name in last if round_ == until else CLIENTS:
                task = run.tasks.next_task(name).train
                if task.round:
                    self._send(name, sessions[name], task)
            if run.phase is not Phase.AGGREGATING:
                return
            run.aggregate()

    def _send(self, name: str, session: int, task: pb.Train) -> None:
        draw = np.random.default_rng([CLIENTS.index(name), task.round])
        update = [(0.1 * draw.standard_normal(s.shape)).astype(np.float32) for s in MANIFEST]
        context = RoundContext(round_key(0, task.round), task.slots, [None] * len(MANIFEST), None)
        payload = encode_update(
            parse_codec(task.codec), MANIFEST, update, context=context.for_slot(task.slot)
        ).payload
        header = pb.UpdateHeader(
            session=session, round=task.round, version=task.version, num_examples=100,
            size=len(payload), train_loss=0.25,
        )  # fmt: skip
        self.coordinator.updates.submit(name, header, payload, len(payload) + 40)

    def outcome(self) -> Figures:
        """Return all that the run's files say of it, but for times and sessions of this process."""
        store, rounds = self.store, self.store.journal.rounds()
        metrics = metrics_json.collect(store, self.settings, TASK, MANIFEST, {})
        for round_ in metrics["rounds"][1:]:
            del round_["seconds"], round_["opened"]
            for client in round_["clients"]:
                client.pop("arrived", None)
        return {
            "metrics": metrics,
            "state": str(store.load_state().phase),
            "digests": [v.digest.hex() for v in store.versions.all()],
            "journal": [str(u) for r in rounds for u in store.journal.updates(r.round)],
            "cohorts": [r.cohort for r in rounds],
            "ledger": [str(entry) for entry in store.ledger.entries()],
            "refusals": [str(row) for row in store.refusals.all()],
            "clients": {n: (r.num_examples, r.stages) for n, r in store.clients.all().items()},
        }  # fmt: skip


def begin(folder: Path, *, dies: bool) -> None:
    """Make a run in whose second round two of three have sent; `dies`: its -wal stays."""
    folder.mkdir()
    if os.fork():
        assert os.wait()[1] == 0
        return
    server = Server(folder)
    store = server.store
    server.play(2, CLIENTS[:2])
    for name in CLIENTS:
        store.ledger.count(LedgerEntry(1, name, "downlink", "transfer", 700, 760))
        store.ledger.count(LedgerEntry(1, name, "downlink", "control", 0, 33))
    store.refusals.add(1, "c1", "LATE", "round 1 is not open", 5.0)
    store.transfers.add_chunk(StoredChunk("c2", 0, 2, b"12345678", 900, 340, bytes(range(256))))
    key = DownloadKey("c2", "transfer", 2, b"0123456789abcdef")
    store.transfers.save_sent(key, TransferredBytes(100, 140))
    store.flush()
    if not dies:
        store.close()
    os._exit(0)


def judge_run(folder: Path, expected: Figures) -> str:
    """Return what the start of the server and the rest of its run make of the files."""
    try:
        server = Server(folder)
    except ServerError:
        return "start"
    except Exception:  # a traceback, but nothing silent
        return "start_untyped"
    try:
        server.play(99, ())
        same = server.outcome() == expected
    except ServerError:
        return "serving"
    except Exception:
        return "serving_untyped"
    finally:
        with contextlib.suppress(Exception):
            server.store.close()
    return "harmless" if same else "silent"


def judge_client(folder: Path, expected: Figures) -> str:
    """Return what a client that uses its files makes of them."""
    try:
        found = read_client(folder)
    except (DigestMismatch, WireError):
        return "start"  # and the model is fetched whole
    except Exception:
        return "start_untyped"
    if found == expected:
        return "harmless"
    lost = [name for name, value in found.items() if value is None]
    return "start" if all(found[n] == expected[n] or n in lost for n in found) else "silent"


WEIGHTS = [np.full(spec.shape, 0.5, np.float32) for spec in MANIFEST]
STEP = bytes(range(256)) * 2
REQUEST = pb.FetchModelRequest(version=2)


def download() -> tuple[list[pb.Link], bytes]:
    """Return the links and data of a whole model."""
    payload = encode_update(parse_codec("float32"), MANIFEST, WEIGHTS).payload
    digest = weights_digest(WEIGHTS)
    kind = pb.Link.SNAPSHOT
    return [
        pb.Link(kind=kind, version=2, digest=digest, codec="float32", size=len(payload))
    ], payload


def make_client(folder: Path) -> None:
    """Make a state directory with every file that a client keeps."""
    state = ClientState(folder, "run")
    state.save_held(HeldModel(1, weights_digest(WEIGHTS), WEIGHTS))
    state.save_residual(WEIGHTS)
    state.save_pending(PendingUpdate(2, 1, 10, 0.5, b"payload" * 30, WEIGHTS, WEIGHTS))
    state.save_training_step(STEP)
    links, data = download()
    with contextlib.suppress(ConnectionError), partial(folder) as part:
        part.begin(links, 0)
        part.add(data[:700])
        raise ConnectionError


def partial(folder: Path) -> PartialDownload:
    """Return the client's unfinished download; the code of before knows no limit of its size."""
    limit = [10**6] if "limit" in inspect.signature(PartialDownload).parameters else []
    return PartialDownload(folder / FILE_NAME, REQUEST, *limit)


def read_client(folder: Path) -> Figures:
    """Return everything that the client reads of its files, None for what it does without."""
    state = ClientState(folder, "run")
    held, pending, residual = state.held(), state.pending(), state.residual()
    links, data = download()
    with partial(folder) as part:
        at = part.size
        if not part.begin(links, at):
            return {"download": "the client gives up, at every start"}
        part.add(data[at:])
        model = apply_links(MANIFEST, 0, None, *part.finish())
    return {
        "held": held and (held.version, weights_digest(held.weights)),
        "pending": pending and str({**vars(pending), "target": 0, "residual": 0}),
        "target": pending and pending.target and weights_digest(pending.target),
        "residual": residual and weights_digest(residual),
        "step": state.training_step(hashlib.sha256(STEP).digest()),
        "download": model.digest,
    }


def flips(folder: Path, names: list[str], seed: int) -> Iterator[tuple[Path, int, int]]:
    """Yield FLIPS random places in the files together: file, byte and what to flip there."""
    draw = random.Random(seed)
    sizes = {name: (folder / name).stat().st_size for name in names}
    for _ in range(FLIPS):
        name = draw.choices(names, [sizes[n] for n in names])[0]
        yield Path(name), draw.randrange(sizes[name]), draw.randrange(1, 256)


def measure(
    folder: Path, names: list[str], judge: Callable[[Path, Figures], str], expected: Figures
) -> Figures:
    """Return how many flips of the files in `folder` were noticed, harmless or silent."""
    seen: Counter[str] = Counter()
    for path, at, mask in flips(folder, names, 13):
        results = []
        for looked in ("check", "start"):
            copy = folder.parent / f"copy-{looked}"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            data = bytearray((copy / path).read_bytes())
            data[at] ^= mask
            (copy / path).write_bytes(data)
            results.append(judge(copy, expected) if looked == "start" else not good(copy))
        noticed, result = results
        seen[result] += 1
        seen["check"] += bool(noticed)
        if result in ("harmless", "silent"):
            seen[f"{result}_check"] += bool(noticed)
        if result in ("silent", "start_untyped", "serving_untyped") and "-v" in sys.argv:
            print(folder.name, path, at, mask, result, noticed, flush=True)
    return {
        "bytes": sum((folder / name).stat().st_size for name in names),
        "flips": FLIPS,
        "found_by_start": seen["start"] + seen["start_untyped"],
        "found_by_start_as_traceback": seen["start_untyped"],
        "found_while_serving": seen["serving"] + seen["serving_untyped"],
        "found_while_serving_as_traceback": seen["serving_untyped"],
        "harmless": seen["harmless"],
        "silent": seen["silent"],
        "silent_but_found_by_check": seen["silent_check"],
        "found_by_check": seen["check"],
    }


def good(folder: Path) -> bool:
    """Whether `featherfed check` finds nothing, its output hidden."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return check_directory(folder)
        except Exception:
            return False


def damage(scratch: Path) -> Figures:
    """Flip bytes of every kind of file."""
    figures = {}
    for name, dies in {"run.db": False, "run.db with -wal": True}.items():
        folder = scratch / name.replace(" ", "-")
        begin(folder, dies=dies)
        (folder / "run.db-shm").unlink(missing_ok=True)
        names = [path for path in ("run.db", "run.db-wal") if (folder / path).exists()]
        figures[name] = measure(folder, names, judge_run, undisturbed(folder))
    folder = scratch / "backup"
    back_up(scratch / "run.db", folder)
    figures["backup"] = measure(folder, ["run.db"], judge_run, undisturbed(folder))
    folder = scratch / "client"
    make_client(folder)
    for path in list(folder.iterdir()):
        if path.name == ".lock":
            path.unlink()
    shutil.copytree(folder, scratch / "whole-client")
    expected = read_client(scratch / "whole-client")
    assert None not in expected.values()
    names = [path.name for path in folder.iterdir()]
    figures["client state"] = measure(folder, names, judge_client, expected)
    return figures


def undisturbed(folder: Path) -> Figures:
    """Return how a copy of a run ends."""
    copy = folder.with_name(f"{folder.name}-whole")
    shutil.copytree(folder, copy)
    server = Server(copy)
    server.play(99, ())
    expected = server.outcome()
    server.store.close()
    assert expected["state"] == "finished"
    return expected


def cost(disk: Path, memory: Path) -> Figures:
    """Measure acknowledged updates a second, on disk and without one, and a large run's start."""
    return {
        **rates("updates_per_second", disk),
        **rates("updates_per_second_in_memory", memory),
        **large_start(disk / "large"),
    }


def rates(name: str, scratch: Path) -> Figures:
    """Return the median of five measurements, the least and the most, and the processor's time."""
    measured, processor = [], []
    for attempt in range(5):
        folder = scratch / f"rate{attempt}"
        folder.mkdir()
        rate, milliseconds = updates_per_second(folder)
        measured.append(rate)
        processor.append(milliseconds)
    return {
        name: round(statistics.median(measured)),
        f"{name}_least_and_most": [round(min(measured)), round(max(measured))],
        f"{name}_cpu_ms_per_update": round(statistics.median(processor), 3),
    }


def updates_per_second(folder: Path, count: int = 300) -> tuple[float, float]:
    """Return how many updates are accepted a second, one after the other, and CPU ms for each."""
    changed = settings(folder, compression=CODECS, clients={"minimum": count}, output="run")
    store = Store(folder / "run.db")
    run = Coordinator(
        changed, store, make_plan(changed, TASK, "{}", MANIFEST), MANIFEST, TASK,
        DistanceEvaluator(), time.time, secret=1,
    )  # fmt: skip
    names = [f"client-{number}" for number in range(count)]
    sessions = {name: run.admission.join(join_request(name)).session for name in names}
    for name in names:
        run.tasks.next_task(name)
    run.tick()
    calls = []
    for name in names:
        task = run.tasks.next_task(name).train
        context = RoundContext(round_key(0, 1), task.slots, [None] * len(MANIFEST), None)
        update = [np.full(s.shape, 0.1, np.float32) for s in MANIFEST]
        payload = encode_update(
            parse_codec(task.codec), MANIFEST, update, context=context.for_slot(task.slot)
        ).payload
        header = pb.UpdateHeader(
            session=sessions[name], round=1, version=0, num_examples=100, size=len(payload)
        )
        calls.append((name, header, payload, len(payload) + 40))
    began, processor = time.perf_counter(), time.process_time()
    for call in calls:
        run.updates.submit(*call)
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    store.close()
    return count / seconds, 1000 * processor / count


def large_start(folder: Path, rounds: int = 100, clients: int = 1000) -> Figures:
    """Return how long a store with the rows of many rounds and clients takes to open."""
    folder.mkdir()
    store = Store(folder / "run.db")
    with store.transaction():
        for round_ in range(1, rounds + 1):
            for number in range(clients):
                name = f"client-{number}"
                run = store._database.run
                run(
                    "INSERT INTO updates VALUES (?, ?, ?, 'sketch(0.1)', 500, NULL, 0.5, 0.75, "
                    "NULL, NULL)", round_, name, number,
                )  # fmt: skip
                run("INSERT INTO norms VALUES (?, ?, 1.5, 1.25, 0.125)", round_, name)
                for side in ("uplink", "downlink"):
                    for kind in ("transfer", "control"):
                        values = round_, name, side, kind, 800, 900
                        run("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)", *values)
    store.close()
    began, processor = time.perf_counter(), time.process_time()
    Store(folder / "run.db").close()
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    return {
        "large_run_rows": rounds * clients * 6,
        "large_run_mb": round((folder / "run.db").stat().st_size / 1e6),
        "large_run_start_seconds": round(seconds, 1),
        "large_run_start_cpu_seconds": round(processor, 1),
    }


def main() -> None:
    """Measure, and write the results of this code beside those of the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", action="store_true", help="this is the code of before")
    parser.add_argument("--cost", action="store_true", help="measure only what the checks cost")
    parser.add_argument("-v", action="store_true", help="print each flip that was silent")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    known = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() else {}
    side = "before" if options.before else "after"
    figures = known.get(side, {})
    with (
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.exists() else None) as memory,
        tempfile.TemporaryDirectory() as disk,
    ):
        if not options.cost:
            figures = damage(Path(memory))  # flips need no disk
        figures["cost"] = cost(Path(disk), Path(memory))
    print(json.dumps(figures, indent=1))
    known[side] = figures
    known["machine"] = machine()
    RESULT.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
