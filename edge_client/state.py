"""What a client must not forget, as files that are replaced whole or not at all.

model.npz     the newest model version it holds
residual.npz  what the codec lost of acknowledged updates
pending.npz   an update that was made but not yet acknowledged
step.tflite   the exported training step, for LiteRT
model.part    what came of a model whose download broke off; see partial.py
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featherfed.compression.allocation import Allocation
from featherfed.compression.manifest import Array, weights_digest
from featherfed.edge_client.errors import ClientError


@dataclass(frozen=True)
class Held:
    """A model version the client holds, in manifest order."""

    version: int
    digest: bytes
    weights: list[Array]
    allocation: Allocation | None = None
    """What is known of the importance of coordinates at this version."""


@dataclass(frozen=True)
class Pending:
    """An update under way: acknowledged, `residual` is kept; refused or late, `target` is."""

    round: int
    version: int
    num_examples: int
    loss: float
    accuracy: float
    payload: bytes
    target: list[Array]
    residual: list[Array] | None


class ClientState:
    """The state directory of one client in one run; another run's or model's files are ignored."""

    def __init__(self, directory: Path, run: str) -> None:
        """Use `directory` for what belongs to `run`, a text that also stands for its model."""
        self._directory = directory
        self._run = run
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ClientError(
                f"cannot use state directory {directory}: {error.strerror}; choose another with "
                "--state-dir"
            ) from error

    def held(self) -> Held | None:
        """Return the newest model version, if there is one and it is undamaged."""
        found = self._load("model")
        if found is None:
            return None
        facts, tensors = found
        codes = [bytes.fromhex(text) for text in facts["allocation"] or ()]
        held = Held(
            facts["version"],
            bytes.fromhex(facts["digest"]),
            tensors["weights"],
            Allocation(*codes) if codes else None,
        )
        return held if weights_digest(held.weights) == held.digest else None

    def save_held(self, held: Held) -> None:
        """Replace the held model."""
        known = held.allocation
        facts = {
            "version": held.version,
            "digest": held.digest.hex(),
            "allocation": known and (known.levels.hex(), known.profile.hex()),
        }
        self._save("model", facts, {"weights": held.weights})

    def residual(self) -> list[Array] | None:
        """Return the residual, if any."""
        found = self._load("residual")
        return found[1]["residual"] if found else None

    def save_residual(self, residual: Sequence[Array] | None) -> None:
        """Replace the residual, or drop it."""
        if residual is None:
            (self._directory / "residual.npz").unlink(missing_ok=True)
        else:
            self._save("residual", {}, {"residual": residual})

    def pending(self) -> Pending | None:
        """Return the update that was not yet acknowledged, if any."""
        found = self._load("pending")
        if found is None:
            return None
        facts, tensors = found
        payload = bytes.fromhex(facts.pop("payload"))
        return Pending(
            **facts, payload=payload, target=tensors["target"], residual=tensors.get("residual")
        )

    def save_pending(self, pending: Pending) -> None:
        """Remember an update before it is sent."""
        facts = {
            name: getattr(pending, name)
            for name in ("round", "version", "num_examples", "loss", "accuracy")
        }
        tensors: dict[str, Sequence[Array]] = {"target": pending.target}
        if pending.residual is not None:
            tensors["residual"] = pending.residual
        self._save("pending", {**facts, "payload": pending.payload.hex()}, tensors)

    def settle(self, residual: Sequence[Array] | None) -> None:
        """Forget the pending update and keep `residual`; safe to repeat after a crash."""
        self.save_residual(residual)
        (self._directory / "pending.npz").unlink(missing_ok=True)

    def training_step(self, digest: bytes) -> bytes | None:
        """Return the exported training step of this SHA-256, if it is here and undamaged."""
        try:
            content = (self._directory / "step.tflite").read_bytes()
        except FileNotFoundError:
            return None
        return content if hashlib.sha256(content).digest() == digest else None

    def save_training_step(self, content: bytes) -> None:
        """Keep a training step for the next start; it belongs to a plan, not to a run."""
        scratch = self._directory / "step.tmp"
        scratch.write_bytes(content)
        scratch.replace(self._directory / "step.tflite")

    def _save(self, name: str, facts: dict[str, Any], groups: dict[str, Sequence[Array]]) -> None:
        arrays = {f"{g}/{i:05}": t for g, tensors in groups.items() for i, t in enumerate(tensors)}
        facts_json = json.dumps({**facts, "run": self._run})
        path = self._directory / f"{name}.npz"
        scratch = path.with_suffix(".tmp")
        with scratch.open("wb") as file:
            np.savez(file, facts=np.array(facts_json), **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)

    def _load(self, name: str) -> tuple[dict[str, Any], dict[str, list[Array]]] | None:
        path = self._directory / f"{name}.npz"
        try:
            with np.load(path, allow_pickle=False) as archive:
                facts = json.loads(str(archive["facts"]))
                groups: dict[str, list[Array]] = {}
                for key in sorted(set(archive.files) - {"facts"}):
                    groups.setdefault(key.split("/")[0], []).append(archive[key])
        except FileNotFoundError:
            return None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ClientError(f"{path} is damaged ({error}); delete it and join again") from error
        return (facts, groups) if facts.pop("run") == self._run else None
