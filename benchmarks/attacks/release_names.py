"""A stranger asks for releases under 16,000 made-up names, on a server without credentials."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
from support.federation import Federation, settings

from featherfed.edge_client.grpc_releases import GrpcReleaseSource
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc

NAMES = 16_000
SECONDS = 60.0
"""How long the attack may take, at the most."""
TABLES = ("ledger", "downloads", "refused", "clients")


def measure(scratch: Path) -> dict[str, Any]:
    """Return what the names leave behind, and whether devices are served beside them."""
    run = scratch / "run"
    run.mkdir()
    limits = {"requests_per_second": 1e6}  # a patient attacker stays below any rate
    changes: dict[str, object] = {
        "rounds": 1, "clients": {"minimum": 1}, "limits": limits,
        "server": {"port": 0, "linger": 0, "stay": True},
    }  # fmt: skip
    server = Federation(run, settings(run, **changes)).start()
    try:
        server.run_clients(server.client("a"))
        known = _fetches(server, "known")
        begin = time.monotonic()
        codes = asyncio.run(_attack(server.address, begin + SECONDS))
        seconds = time.monotonic() - begin
        server.store.flush()
        figures = {
            "names": codes.total(),
            "seconds": round(seconds, 1),
            "calls_by_status": dict(codes),
            **_rows(run / "run.db"),
            "devices_in_memory": len(server.coordinator.devices._devices),
            "database_kb": round((run / "run.db").stat().st_size / 1000),
            "a_known_device_is_served": known and _fetches(server, "known"),
            "a_device_that_comes_later_is_served": _fetches(server, "late"),
        }
    finally:
        server.close()
    return figures


async def _attack(address: str, until: float) -> Counter[str]:
    """Ask under one name after the other, 64 at a time; return the calls by status."""
    codes: Counter[str] = Counter()
    numbers = iter(range(NAMES))
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.FederationStub(channel)

        async def ask() -> None:
            for number in numbers:
                if time.monotonic() > until:
                    return
                request = pb.FetchReleaseRequest(device=f"made-up-{number}")
                try:
                    async for _ in stub.FetchRelease(request, timeout=60):
                        pass
                    codes["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    codes[error.code().name] += 1

        await asyncio.gather(*(ask() for _ in range(64)))
    return codes


def _fetches(server: Federation, device: str) -> bool:
    source = GrpcReleaseSource(server.address, 60)
    try:
        return source.fetch_release(pb.FetchReleaseRequest(device=device), 2**20) is not None
    finally:
        source.close()


def _rows(database: Path) -> dict[str, int]:
    with sqlite3.connect(database) as db:
        return {
            f"{table}_rows": db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in TABLES
        }
