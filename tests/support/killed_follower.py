"""A follower that is killed again and again: started by test_follower.py as a process of its own.

`python killed_follower.py DIR SEED KILLS` forks a follower KILLS times. Each is killed with
SIGKILL during a swap: half of them kill themselves, each at the next step of a swap, half are
killed from outside at a random moment. Checks the file after each; prints the counts as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featherfed.compression.exchange.filedelta import encode_file
from featherfed.edge_client.follower import Follower, ModelFile
from featherfed.proto import federation_pb2 as pb

SIZE = 200_000
STEPS = ("fsync", "replace", "fsync")
WHENS = ("before", "half", "after")


def versions(rng: np.random.Generator, count: int = 12) -> list[bytes]:
    """Return files of one size, each a few steps from the one before."""
    files = [rng.integers(0, 256, SIZE, np.uint8)]
    for _ in range(count - 1):
        moved = rng.random(SIZE) < 0.1
        files.append(files[-1] + (moved * rng.integers(1, 4, SIZE)).astype(np.uint8))
    return [file.tobytes() for file in files]


class Carousel:
    """Serves the version after the device's own, and the first after the last."""

    def __init__(self, files: list[bytes]) -> None:
        self.digests = [hashlib.sha256(file).digest() for file in files]
        self._sizes = [len(file) for file in files]
        self._whole = [encode_file(file) for file in files]
        self._deltas = [encode_file(file, files[i - 1]) for i, file in enumerate(files)]

    def fetch_release(
        self, request: pb.FetchReleaseRequest, limit: int
    ) -> tuple[pb.Release, bytes]:
        known = request.have_digest in self.digests
        i = (self.digests.index(request.have_digest) + 1) % len(self.digests) if known else 0
        data = self._deltas[i] if known else self._whole[i]
        release = pb.Release(
            version=i + 1, digest=self.digests[i], size=self._sizes[i], compressed=len(data),
            delta=known,
        )  # fmt: skip
        return release, data


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(step: int, when: str) -> None:
    """Make this process die before, during or after the given one of a swap's STEPS."""
    calls = 0

    def wrap(name: str) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            due = STEPS[calls] == name and calls == step
            calls += 1
            if due and when == "half" and calls == 1:
                # What a write that was cut off leaves; the descriptor is for reading only.
                os.truncate(f"/proc/self/fd/{args[0]}", SIZE // 2)
            if due and when != "after":
                die()
            try:
                return real(*args, **kwargs)
            finally:
                if due:
                    die()

        setattr(os, name, call)

    for name in set(STEPS):
        wrap(name)


def sleepy() -> None:
    """Delay every step of a swap."""

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            time.sleep(0.001)
            return real(*args, **kwargs)

        setattr(os, name, call)

    for name in set(STEPS):
        wrap(name)


def follow(directory: Path, source: Carousel, disturb: Callable[[], None]) -> None:
    file = ModelFile(directory, "int8")
    disturb()  # after the start, which unlinks what was left
    follower = Follower("device", "int8", source, file)
    while True:
        follower.refresh()


def main(directory: Path, seed: int, kills: int) -> None:
    rng = random.Random(seed)
    source = Carousel(versions(np.random.default_rng(seed)))
    path = directory / "model_int8.tflite"
    seen: Counter[str] = Counter()
    places = [(step, when) for step in range(len(STEPS)) for when in WHENS]
    for number in range(kills):
        before = path.read_bytes() if path.exists() else None
        step, when = places[number // 2 % len(places)]
        delay = rng.uniform(0.002, 0.05)
        pid = os.fork()
        if pid == 0:
            follow(directory, source, sleepy if number % 2 else partial(kill_at, step, when))
        if number % 2:
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        seen["kills"] += 1
        after = path.read_bytes() if path.exists() else None
        if after is None:
            assert before is None, "the file is gone"
            seen["none yet"] += 1
            continue
        seen["whole"] += hashlib.sha256(after).digest() in source.digests
        seen["swapped"] += after != before
        seen["left over"] += (directory / ".new-model_int8.tflite").exists()
    last = ModelFile(directory, "int8")
    assert {entry.name for entry in directory.iterdir()} == {".lock", path.name}
    Follower("device", "int8", source, last).refresh()
    seen["goes on"] = int(hashlib.sha256(path.read_bytes()).digest() in source.digests)
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
