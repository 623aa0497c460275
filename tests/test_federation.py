"""End to end over real gRPC on loopback, with a numpy model whose result can be computed by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from conftest import MANIFEST, Federation


def test_all_sides_end_with_the_same_model(federation: Callable[..., Federation]) -> None:
    server = federation()
    sessions = [server.client(f"client-{i}", value=float(i)) for i in range(3)]
    held = server.run_clients(*sessions)
    server.join()
    assert server.finished
    final = server.store.versions()[-1]
    assert final.version == 3
    assert {h.digest for h in held} == {final.digest}
