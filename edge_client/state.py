"""A client's state on disk, in files that are replaced atomically.

model.npz     the newest model version that the client holds
residual.npz  what the codec lost of acknowledged updates
pending.npz   an update that is not acknowledged yet
step.tflite   the exported training step, for LiteRT
model.part    a model download that broke off; see partial_download.py
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featherfed.compression.arrays import Array, make_read_only
from featherfed.compression.exchange.manifest import weights_digest
from featherfed.compression.files import write_whole
from featherfed.compression.importance import Allocation
from featherfed.edge_client.state_directory import StateDirectory
from featherfed.edge_client.statefile import Groups
from featherfed.proto import federation_pb2 as pb

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldModel:
    """A model version that the client holds; weights in manifest order, nobody changes them."""

    version: int
    digest: bytes
    weights: list[Array]
    allocation: Allocation | None = None
    """The importance of coordinates that belongs to this version, None before the first."""

    def __post_init__(self) -> None:
        make_read_only(self.weights)


@dataclass(frozen=True)
class PendingUpdate:
    """An update that is not acknowledged yet.

    The client's residual becomes `residual` once it is accepted, `target` if it comes too late;
    both are None for a codec that keeps none. `before` and `after`: how good the version that it
    started from and its own model are on the client's held-out examples, None if it has none.
    """

    round: int
    version: int
    num_examples: int
    loss: float
    payload: bytes
    target: list[Array] | None
    residual: list[Array] | None
    before: pb.Evaluation | None = None
    after: pb.Evaluation | None = None


class ClientState:
    """What one client keeps of one run: model, residual, update under way and training step."""

    def __init__(self, directory: Path, run: str) -> None:
        """Use `directory`, made if need be; `run` identifies a run and its model."""
        self._files = StateDirectory(directory, run)
        self._held: HeldModel | None = None

    def held(self) -> HeldModel | None:
        """Return the held model version, None if there is no undamaged one.

        It is read and checked once, and then in memory.
        """
        if self._held is None:
            self._held = self._read_held()
        return self._held

    def _read_held(self) -> HeldModel | None:
        found = self._files.load("model")
        if found is None:
            return None
        fields, tensors = found
        codes = [bytes.fromhex(text) for text in fields["allocation"] or ()]
        held = HeldModel(
            fields["version"],
            bytes.fromhex(fields["digest"]),
            tensors["weights"],
            Allocation(*codes) if codes else None,
        )
        return held if weights_digest(held.weights) == held.digest else None

    def save_held(self, held: HeldModel) -> None:
        """Replace the held model version.

        A loss of power cannot undo that any more once an update or residual is saved, or `sync`
        was called.
        """
        self._held = held
        known = held.allocation
        fields = {
            "version": held.version,
            "digest": held.digest.hex(),
            "allocation": known and (known.levels.hex(), known.profile.hex()),
        }
        self._files.save("model", fields, {"weights": held.weights})

    def sync(self) -> None:
        """Make sure that a loss of power cannot undo what was saved."""
        self._files.sync("model")

    def residual(self) -> list[Array] | None:
        """Return the residual, None if there is none."""
        found = self._files.load("residual")
        return found[1]["residual"] if found else None

    def save_residual(self, residual: Sequence[Array] | None) -> None:
        """Replace the residual; None deletes it."""
        if residual is None:
            self._files.delete("residual")
        else:
            self._files.save("residual", {}, {"residual": residual})

    def pending(self) -> PendingUpdate | None:
        """Return the update that is not acknowledged yet, None if there is none."""
        found = self._files.load("pending")
        if found is None:
            return None
        fields, tensors = found
        if isinstance(fields["payload"], str):  # before format 2
            fields["payload"] = bytes.fromhex(fields["payload"])
        fields.pop("accuracy", None)  # before format 3
        for name in ("before", "after"):
            if name in fields:
                fields[name] = pb.Evaluation.FromString(fields[name])
        residual = tensors.get("residual")
        target = None if residual is None else tensors["target"]  # before format 2 always there
        return PendingUpdate(**fields, target=target, residual=residual)

    def save_pending(self, pending: PendingUpdate) -> None:
        """Save an update before it is sent.

        If it cannot be written, it is sent nevertheless: losing the residual is better than losing
        the training. The residual on disk is then deleted, as it is part of this update and must
        not be added to a second one; nor may a loss of power bring back what was deleted.
        """
        fields = {
            name: getattr(pending, name)
            for name in ("round", "version", "num_examples", "loss", "payload")
        }
        for name in ("before", "after"):
            evaluation = getattr(pending, name)
            if evaluation is not None:
                fields[name] = evaluation.SerializeToString()
        tensors: Groups = {}
        if pending.target is not None and pending.residual is not None:
            tensors = {"target": pending.target, "residual": pending.residual}
        self._files.save("pending", fields, tensors)
        if self._files.is_unsaved("pending"):
            residual = self.residual()
            if residual is not None:
                self._files.keep_in_memory("residual", {}, {"residual": residual})
            self._files.sync("pending")

    def settle(self, residual: Sequence[Array] | None) -> None:
        """Delete the pending update and save `residual`; may be repeated after a crash."""
        self.save_residual(residual)
        self._files.delete("pending")
        if self._files.is_unsaved("residual"):  # deleting the pending update may have made room
            self.save_residual(residual)

    def training_step(self, digest: bytes) -> bytes | None:
        """Return the exported training step of this SHA-256, None if it is missing or damaged."""
        try:
            content = (self._files.path / "step.tflite").read_bytes()
        except OSError:
            return None
        return content if hashlib.sha256(content).digest() == digest else None

    def save_training_step(self, content: bytes) -> None:
        """Save a training step for the next start; it belongs to a plan, not to a run."""
        try:
            write_whole(self._files.path / "step.tflite", content)
        except OSError as error:
            log.warning("the training step is downloaded again at the next start: %s", error)
