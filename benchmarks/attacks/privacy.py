"""Taking the noise of differential privacy away: by a backup that is served again, and by bits."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from support.coordinator import DirectRun
from support.evaluator import NO_CLIENT
from support.models import MANIFEST
from support.updates import flat

from featherfed.api.backup import back_up
from featherfed.compression.arrays import Array
from featherfed.compression.exchange.update import decode_update
from featherfed.compression.registry import parse_codec
from featherfed.server.errors import ServerError

CLIENTS = 3
NOISE, CLIP = 1.0, 1.0
RUNS = 20
LARGE = 2.0**-8
"""A value that a client adds to the mean or not; a power of two, as its bits are looked at."""
PRIVATE: dict[str, Any] = {
    "clients": {"minimum": CLIENTS, "quorum": 1.0, "patience": 0},
    "compression": {
        "uplink": "float32",
        "fallback": "float32",
        "downlink": "float32",
        "broadcast": "aggregate",
    },
    "evaluation": NO_CLIENT,
    "privacy": {"noise_multiplier": NOISE, "clip": CLIP, "adaptive": False},
}


def measure(scratch: Path) -> dict[str, Any]:
    """Restore a private run, and tell from the last bits of noisy values what a client sent."""
    return {**_restore(scratch), **_elsewhere(scratch), **_bits(scratch), **_speed()}


def _restore(scratch: Path) -> dict[str, Any]:
    """Serve a backup again with an update that differs a little, in the place of the run."""
    first = DirectRun(scratch / "run", **PRIVATE)
    copy = back_up(scratch / "run", scratch / "backup")
    noise, told = _play(first, _updates(0.0))
    first.store.close()
    for path in (scratch / "run").glob("run.db*"):
        path.unlink()
    shutil.copy(copy, scratch / "run" / "run.db")
    second = DirectRun(scratch / "run", **PRIVATE)
    again, twice = _play(second, _updates(0.01))
    second.store.close()
    return {
        "correlation of the noise before and after a restore": _round(
            np.corrcoef(noise, again)[0, 1]
        ),
        "deviation of the difference of both versions, promised": _round(
            math.sqrt(2) * NOISE * CLIP / CLIENTS
        ),
        "deviation of the difference of both versions, measured": _round(np.std(noise - again)),
        "epsilon that the run reported for its round": _round(told),
        "epsilon that it reported when the round was repeated": _round(twice),
    }


def _elsewhere(scratch: Path) -> dict[str, Any]:
    """Serve the backup in another folder, where nothing tells what was published."""
    (scratch / "elsewhere").mkdir()
    shutil.copy(scratch / "backup" / "run.db", scratch / "elsewhere" / "run.db")
    try:
        DirectRun(scratch / "elsewhere", **PRIVATE).store.close()
    except ServerError:
        return {"a backup served where nothing tells what was published": "refused"}
    return {"a backup served where nothing tells what was published": "goes on as if new"}


def _bits(scratch: Path) -> dict[str, Any]:
    """Count values whose last bits prove what a client sent (Mironov 2012).

    A small sum of LARGE and float noise is a multiple of the noise's last bit, which is coarse near
    -LARGE; small noise alone has finer bits. So a fine value proves that LARGE was not added.
    """
    value = LARGE * CLIENTS
    fine = {
        sent: sum(_fine_values(scratch / f"bits{sent}-{i}", sent * value) for i in range(RUNS))
        for sent in (0, 1)
    }
    proofs = fine[0] if not fine[1] else 0
    return {"values of 20 rounds whose bits prove that a client did not send one": proofs}


def _fine_values(folder: Path, value: float) -> int:
    """Play a round in which a client sends `value` in each weight; count the small fine values."""
    run = DirectRun(folder, **PRIVATE)
    updates = {f"c{i}": [np.zeros(spec.shape, np.float32) for spec in MANIFEST] for i in range(3)}
    updates["c0"][0] += np.float32(value)
    run.step(updates)
    version = run.store.versions.get(1)
    released = decode_update(parse_codec(version.codec), MANIFEST, version.payload)[0]
    run.store.close()
    shutil.rmtree(folder)
    small = released[np.abs(released) < LARGE / 2].astype(np.float64)
    coarse = float(np.spacing(np.float32(LARGE / 2)))
    return int(np.count_nonzero(small % coarse))


def _play(run: DirectRun, updates: dict[str, list[Array]]) -> tuple[Any, float]:
    """Play a round; return the noise on its version's trained values, and the epsilon it reports.

    The mean of the updates is known here; it is taken from the version that clients decode.
    """
    run.step(updates)
    version = run.store.versions.get(1)
    released = decode_update(parse_codec(version.codec), MANIFEST, version.payload)
    mean = np.mean([flat(update).astype(np.float64) for update in updates.values()], axis=0)
    epsilon = run.store.journal.aggregation(1).epsilon
    assert epsilon is not None
    return flat(released) - mean, epsilon


def _updates(more: float) -> dict[str, list[Array]]:
    """Return an update of norm below the clip for each client; the first sends `more` besides."""
    draw = np.random.default_rng(0)

    def one() -> list[Array]:
        return [(0.001 * draw.standard_normal(s.shape)).astype(np.float32) for s in MANIFEST]

    updates = {f"c{i}": one() for i in range(CLIENTS)}
    updates["c0"] = [tensor + np.float32(more / 64) for tensor in updates["c0"]]
    return updates


def _speed() -> dict[str, Any]:
    """Time the noise alone, for the example's model and for one of 14 MB."""
    return {
        f"seconds of CPU for the noise of {count:,} values": _round(_seconds(count))
        for count in (225_034, 3_500_000)
    }


def _seconds(count: int) -> float:
    try:
        from featherfed.server.aggregation.discrete_gaussian import DiscreteGaussian
    except ImportError:  # the code of before
        from featherfed.compression.key import Key
        from featherfed.server.aggregation.privacy import _normal

        begin = time.process_time()
        _normal(Key.root(0), count)
    else:
        begin = time.process_time()
        DiscreteGaussian().draw(count)
    return time.process_time() - begin


def _round(value: float) -> float:
    return float(f"{value:.4g}")
