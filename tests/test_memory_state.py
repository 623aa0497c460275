"""Simulated clients keep in memory what others keep in files, and share the versions they hold."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import pytest

from featherfed.edge_client.state import HeldModel, PendingUpdate
from featherfed.sweep.memory_state import HeldModels, MemoryState


def held(version: int) -> HeldModel:
    weights = [np.full(3, version, np.float32), np.full((), version, np.float32) * 2]
    return HeldModel(version, bytes([version] * 32), weights)


def test_clients_share_a_version_that_none_can_change(tmp_path: Path) -> None:
    shared: HeldModels = WeakValueDictionary()
    first, second = (MemoryState(shared, tmp_path / name, "run") for name in "ab")
    assert first.held() is None
    first.save_held(held(1))
    second.save_held(held(1))
    found = second.held()
    assert found is not None
    assert found is first.held()
    assert not any(tensor.flags.writeable for tensor in found.weights)
    with pytest.raises(ValueError, match="read-only"):
        found.weights[0] += 1
    del found
    first.save_held(held(2))
    second.save_held(held(2))
    assert list(shared) == [(2, bytes([2] * 32))], "what nobody holds takes no memory"


def test_the_residual_follows_the_settled_update(tmp_path: Path) -> None:
    state = MemoryState({}, tmp_path, "run")
    assert state.residual() is None
    ones = [np.ones(2, np.float32)]
    pending = PendingUpdate(1, 0, 10, 0.5, b"payload", ones, ones)
    state.save_pending(pending)
    assert state.pending() is pending
    state.settle(pending.residual)
    assert state.pending() is None
    assert state.residual() == ones
    state.settle(None)
    assert state.residual() is None
