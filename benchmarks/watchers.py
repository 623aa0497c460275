"""What watchers of the live page cost a server: processor time, memory and seconds a round.

`featherfed serve` serves a run of the model `cnn` on digits to 20 clients that train nothing, so
that rounds follow each other as fast as they can: the worst case, since every snapshot shows
something new. Without a page, with one that nobody watches, and with one whose 20 watchers read all
of it, several times in turns. Measured from the first round's start to the last one's end.

Writes benchmarks/results/watchers.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tomli_w

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.kills import free_port  # noqa: E402
from support.load import ManyClients, cpu_seconds, memory_mb  # noqa: E402

from featherfed.api.machine import machine  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "watchers.json"
CLIENTS, ROUNDS, WATCHERS, REPEATS = 20, 40, 20, 3
SHAPE = (8, 8, 1)
KINDS = ("no page", "page", f"{WATCHERS} watchers")


async def watch(url: str, count: int) -> None:
    """Read the page's events over so many connections, until it ends."""
    where = urllib.parse.urlsplit(url)
    received = await asyncio.gather(*(_read(where.hostname, where.port) for _ in range(count)))
    print(json.dumps({"bytes": sum(received)}))


async def _read(host: str | None, port: int | None) -> int:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET /api/page HTTP/1.1\r\nHost: localhost\r\n\r\n")
    received = 0
    with suppress(ConnectionError):  # the server is killed in the end
        while piece := await reader.read(2**16):
            received += len(piece)
    writer.close()
    return received


@contextmanager
def server(folder: Path, page: bool) -> Any:
    """Serve a run in a process; yield the process, the server's address and the page's."""
    run: dict[str, Any] = {
        "name": "watched", "output": ".", "rounds": ROUNDS,
        "server": {"port": free_port()} | ({"page": "127.0.0.1:0"} if page else {}),
        "clients": {"minimum": CLIENTS, "quorum": 1.0, "deadline": 3600},
        "limits": {"requests_per_second": 1000},
        "evaluation": {"dataset": "digits", "clients": 0},
    }  # fmt: skip
    (folder / "run.toml").write_text(tomli_w.dumps(run), "utf-8")
    with (folder / "server.log").open("wb") as log:
        command = [sys.executable, "-m", "featherfed.cli.main", "serve", "run.toml"]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        while not (folder / "server.address").exists():
            assert process.poll() is None, (folder / "server.log").read_text("utf-8")
            time.sleep(0.05)
        where = (folder / "page.address").read_text("utf-8") if page else ""
        yield process, (folder / "server.address").read_text("utf-8").strip(), where
    finally:
        process.kill()  # its model files are of no use here
        process.wait()


def measure(kind: str) -> dict[str, float]:
    """Return what one run cost."""
    used: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        with server(Path(scratch), kind != "no page") as (process, address, page):
            watchers = None
            if kind == KINDS[2]:
                command = [sys.executable, __file__, "watch", page]
                watchers = subprocess.Popen(command, stdout=subprocess.PIPE)
            clients = ManyClients(
                address, CLIENTS, ROUNDS, SHAPE,
                on_round=lambda _: used.append((time.perf_counter(), cpu_seconds(process.pid))),
            )  # fmt: skip
            asyncio.run(clients.run())
            memory = memory_mb(process.pid)
        received = 0
        if watchers is not None:
            received = json.loads(watchers.communicate(timeout=60)[0])["bytes"]
    (begin, cpu_begin), (end, cpu_end) = used[0], used[-1]
    return {
        "seconds_a_round": (end - begin) / ROUNDS,
        "server_cpu_seconds": cpu_end - cpu_begin,
        "server_cpu_share": (cpu_end - cpu_begin) / (end - begin),
        "sent_mb": received / 1e6,
        **memory,
    }


def main() -> None:
    """Measure all kinds in turns; print the medians and write the result."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    loads = []
    for repeat in range(REPEATS):
        for kind in KINDS:
            loads.append(os.getloadavg()[0])
            found[kind].append(measure(kind))
            print(repeat, kind, json.dumps(found[kind][-1]), flush=True)
    medians = {
        kind: {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
        for kind, runs in found.items()
    }
    for kind, figures in medians.items():
        print(kind, figures)
    result = {
        "machine": machine(), "clients": CLIENTS, "rounds": ROUNDS, "repeats": REPEATS,
        "load_before_runs": [round(load, 2) for load in loads],
        "median": medians, "runs": found,
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["watch"]:
        asyncio.run(watch(sys.argv[2], WATCHERS))
    else:
        main()
