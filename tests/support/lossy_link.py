"""A run whose clients all sit behind a lossy link, and the same run without it."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from support.kills import check_acks, numpy_processes, numpy_spec, outcome
from support.proxy import Link, Proxy

CLIENTS = 4


def undisturbed_digests(directory: Path, uplink: str, rounds: int, model: str = "cnn") -> list[str]:
    """Return the digests, by version, of the run without the link."""
    spec = numpy_spec(uplink, rounds, CLIENTS, model=model)
    with numpy_processes(directory, spec, CLIENTS) as run:
        run.wait(120)
    return outcome(directory / "run.db").digests


def run_over_link(
    directory: Path, uplink: str, rounds: int, link: Link, limit: float, model: str = "cnn"
) -> dict[str, Any]:
    """Return digests and figures of a run over `link`; raise RuntimeError if it takes too long."""
    spec = numpy_spec(uplink, rounds, CLIENTS, model=model, give_up_after=3600.0)
    # A last download that is cut after gRPC has taken all of it over is asked for again.
    spec.settings["server"]["stay"] = True
    port = spec.settings["server"]["port"]
    with Proxy(("127.0.0.1", port), link, seed=1) as proxy:
        spec = replace(spec, address=proxy.address)
        begin = time.monotonic()
        with numpy_processes(directory, spec, CLIENTS) as run:
            run.wait(limit, [name for name in run.running if name != "server"])
            seconds = time.monotonic() - begin
            run.running["server"].terminate()
            run.wait(60)
        traffic = asdict(proxy.traffic)
    left = outcome(directory / "run.db")
    check_acks(directory, left)
    return {
        "digests": left.digests,
        "uplink": uplink,
        "loss": link.loss,
        "seconds": round(seconds, 1),
        "payload_bytes": sum(left.journal.values()),
        "retry_bytes": left.retry_bytes,
        **traffic,
    }
