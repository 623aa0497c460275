"""A server answers with more than any honest one can: what it costs the client, and how it ends.

The model has 10,000 parameters (40 kB). The client is a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from support.hostile_server import (
    MODEL,
    SEED,
    SEED_LINK,
    HostileServer,
    abort,
    plan,
    run_client,
    stream,
)
from support.releases import sha

from featherfed.compression.exchange.filedelta import encode_file
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.registry import parse_codec
from featherfed.proto import federation_pb2 as pb

PARTS = 100_000
BOMB_BYTES = 256 * 2**20

_NEXT = pb.Train(round=2, version=1, codec="float32", digest=bytes(32), slots=1)


def measure(scratch: Path) -> dict[str, Any]:
    """Return by case how the client ended, and its memory, disk and time."""
    figures: dict[str, Any] = {}
    for name, (answers, seconds) in _cases().items():
        figures |= _figures(name, answers, scratch / name, seconds)
    figures |= _figures("release", _release_bomb(), scratch / "release", 20, "int8")
    figures |= _polls(scratch / "polls")
    return figures


def _figures(
    name: str, answers: dict[str, Any], folder: Path, seconds: float, *follow: str
) -> dict[str, Any]:
    with HostileServer(**answers) as server:
        outcome = run_client(server.address, folder, *follow, limit=seconds)
    return {
        f"{name}: outcome": outcome.kind,
        f"{name}: memory MiB": outcome.peak_mib,
        f"{name}: disk MiB": outcome.disk_mib,
        f"{name}: seconds": outcome.seconds,
    }


def _cases() -> dict[str, tuple[dict[str, Any], float]]:
    """Return by case what the server answers, and the most seconds to wait for an end."""
    return {
        "model of 400 GiB": (_announced(), 15),
        "bundle of 100,000 parts": (_bundle(), 25),
        "million links in one message": ({"FetchModel": _links()}, 10),
        "plan of 5 MB": (_joined(model_json="x" * 5_000_000), 4),
        "plan of 150,000 tensors": (_joined(manifest=[pb.Tensor(role="trainable")] * 150_000), 8),
        "plan of 2 billion parameters": (_joined(manifest=[_tensor(2**31)]), 10),
        "plan of a tensor with 100 axes": (_joined(manifest=[_tensor(*[1] * 100)]), 4),
        "stream of empty messages": ({"FetchModel": _empty}, 5),
        "error text of 20 kB": ({"Join": abort(grpc.StatusCode.NOT_FOUND, "x" * 20_000)}, 4),
    }


def _joined(**changes: Any) -> dict[str, Any]:
    return {"Join": pb.JoinReply(session=1, plan=plan(**changes))}


def _tensor(*shape: int) -> pb.Tensor:
    return pb.Tensor(name="kernel", shape=shape, role="trainable", uniform_limit=0.1)


def _announced() -> dict[str, Any]:
    """Announce 400 GiB, and send 400 MiB of it."""
    link = pb.Link(kind=pb.Link.SNAPSHOT, codec="float32 | zstd", digest=SEED, size=2**32 - 1)
    return {"FetchModel": stream([link] * 100, 400 * 2**20)}


def _bundle() -> dict[str, Any]:
    payload = encode_update(
        parse_codec("float32 | zstd"), MODEL, [np.zeros(s.shape, np.float32) for s in MODEL]
    ).payload
    part = pb.Part(num_examples=1, payload=payload)
    bundle = pb.Bundle(slots=PARTS, codec="float32 | zstd", parts=[part] * PARTS)
    data = bundle.SerializeToString()
    link = pb.Link(kind=pb.Link.BUNDLE, version=1, digest=bytes(32), size=len(data))

    def answer(request: Any, context: Any) -> Iterator[pb.ModelChunk]:
        yield pb.ModelChunk(links=[SEED_LINK, link])
        for at in range(0, len(data), 2**16):
            yield pb.ModelChunk(data=data[at : at + 2**16])

    return {"NextTask": pb.NextTaskReply(train=_NEXT), "FetchModel": answer}


def _links() -> list[pb.ModelChunk]:
    """Return a message of 2 MB: its links are empty and take two bytes each."""
    return [pb.ModelChunk.FromString(b"\x0a\x00" * 1_000_000)]


def _empty(request: Any, context: Any) -> Iterator[pb.ModelChunk]:
    yield pb.ModelChunk(links=[pb.Link(kind=pb.Link.SNAPSHOT, size=1000)])
    while True:
        yield pb.ModelChunk()


def _release_bomb() -> dict[str, Any]:
    content = bytes(BOMB_BYTES)
    data = encode_file(content)
    release = pb.Release(
        version=1, digest=sha(content), size=len(content), compressed=len(data), delta=False
    )
    return {"FetchRelease": [pb.ReleaseChunk(release=release, data=data)]}


def _polls(folder: Path) -> dict[str, Any]:
    """Count the calls of a client to a server that says Wait, and at once."""
    with HostileServer(NextTask=pb.NextTaskReply(wait=pb.Wait())) as server:
        began = time.monotonic()
        run_client(server.address, folder, limit=5)
        seconds = time.monotonic() - began
        calls = server.calls.get("NextTask", 0)
    return {"no task, said at once: calls per second": round(calls / seconds, 1)}
