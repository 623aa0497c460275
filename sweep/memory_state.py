"""A simulated client's state, which nobody needs after its process: in memory, not in files."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from pathlib import Path

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.edge_client.state import ClientState, HeldModel, PendingUpdate

HeldModels = MutableMapping[tuple[int, bytes], HeldModel]
"""The versions that the clients of a run hold, by number and digest."""


class MemoryState(ClientState):
    """Keeps what one client holds in memory; only an exported training step is a file.

    Clients that hold the same version share it; a held model's weights are read-only.
    """

    def __init__(self, shared: HeldModels, directory: Path, run: str) -> None:
        """Use `directory` for a training step; `shared` is one for all clients of the run."""
        super().__init__(directory, run)
        self._shared = shared
        self._held: HeldModel | None = None
        self._residual: list[Array] | None = None
        self._pending: PendingUpdate | None = None

    def held(self) -> HeldModel | None:
        """Return the held model version, None before the first."""
        return self._held

    def save_held(self, held: HeldModel) -> None:
        """Replace the held model version."""
        self._held = self._shared.setdefault((held.version, held.digest), held)

    def residual(self) -> list[Array] | None:
        """Return the residual, None if there is none."""
        return self._residual

    def save_residual(self, residual: Sequence[Array] | None) -> None:
        """Replace the residual; None deletes it."""
        self._residual = None if residual is None else [np.asarray(r) for r in residual]

    def pending(self) -> PendingUpdate | None:
        """Return the update that is not acknowledged yet, None if there is none."""
        return self._pending

    def save_pending(self, pending: PendingUpdate) -> None:
        """Keep an update until it is acknowledged."""
        self._pending = pending

    def settle(self, residual: Sequence[Array] | None) -> None:
        """Delete the pending update and replace the residual."""
        self.save_residual(residual)
        self._pending = None
