"""What a client must not forget, as files that are replaced whole or not at all.

model.npz     the newest model version it holds
residual.npz  what the codec lost of acknowledged updates
pending.npz   an update that was made but not yet acknowledged
step.tflite   the exported training step, for LiteRT
model.part    what came of a model whose download broke off; see partial.py

None of them stops a device that nobody looks at: what is damaged is put aside, what cannot be
written is kept in memory, and the log says what that costs.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import weights_digest
from featherfed.compression.files import lock_file, write_whole
from featherfed.compression.importance import Allocation
from featherfed.edge_client import statefile
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.statefile import Content, Damaged, Groups

log = logging.getLogger(__name__)

_LOSS = {
    "model": "the model is downloaded again",
    "residual": "what the codec lost of earlier updates is lost",
    "pending": "the update is lost, and made again if its round is still open",
}


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
        self._unsaved: dict[str, Content] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(directory, error) from error

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
            self._drop("residual")
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
        """Remember an update before it is sent.

        If it cannot be written, it is sent all the same: an hour of training is worth more than
        what the codec lost. The residual on disk is in it and must not go into a second one.
        """
        facts = {
            name: getattr(pending, name)
            for name in ("round", "version", "num_examples", "loss", "accuracy")
        }
        tensors: Groups = {"target": pending.target}
        if pending.residual is not None:
            tensors["residual"] = pending.residual
        residual = self.residual()
        self._save("pending", {**facts, "payload": pending.payload.hex()}, tensors)
        if "pending" in self._unsaved and residual is not None:
            self._drop("residual")
            self._unsaved["residual"] = {"run": self._run}, {"residual": residual}

    def settle(self, residual: Sequence[Array] | None) -> None:
        """Forget the pending update and keep `residual`; safe to repeat after a crash."""
        self.save_residual(residual)
        self._drop("pending")
        if "residual" in self._unsaved:  # a full disk has the pending update's room now
            self.save_residual(residual)

    def training_step(self, digest: bytes) -> bytes | None:
        """Return the exported training step of this SHA-256, if it is here and undamaged."""
        try:
            content = (self._directory / "step.tflite").read_bytes()
        except OSError:
            return None
        return content if hashlib.sha256(content).digest() == digest else None

    def save_training_step(self, content: bytes) -> None:
        """Keep a training step for the next start; it belongs to a plan, not to a run."""
        try:
            write_whole(self._directory / "step.tflite", content)
        except OSError as error:
            log.warning("the training step is downloaded again at the next start: %s", error)

    def _save(self, name: str, facts: dict[str, Any], groups: Groups) -> None:
        """Replace a file; what cannot be written is kept in memory until it can be.

        A file older than what was to replace it would be worse than none: it would go into a second
        update, or be sent again.
        """
        content = {**facts, "run": self._run}, {g: list(tensors) for g, tensors in groups.items()}
        path = self._path(name)
        try:
            statefile.save(path, content[0], groups)
        except OSError as error:
            self._unsaved[name] = content
            with suppress(OSError):
                path.unlink(missing_ok=True)
            self._warn(name, error)
        else:
            self._unsaved.pop(name, None)

    def _load(self, name: str) -> Content | None:
        found = self._unsaved.get(name) or self._read(name)
        if found is None or found[0].get("run") != self._run:
            return None
        facts = {key: value for key, value in found[0].items() if key != "run"}
        return facts, found[1]

    def _read(self, name: str) -> Content | None:
        path = self._path(name)
        try:
            return statefile.load(path)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise _unusable(self._directory, error) from error
        except Damaged as error:
            aside = path.with_suffix(".damaged")
            log.warning(
                "%s is damaged (%s) and was put aside as %s: %s",
                path, error, aside.name, _LOSS[name],
                extra={"event": "state_damaged", "file": path.name},
            )  # fmt: skip
            with suppress(OSError):
                path.replace(aside)
            return None

    def _drop(self, name: str) -> None:
        self._unsaved.pop(name, None)
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            self._warn(name, error)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.npz"

    def _warn(self, name: str, error: OSError) -> None:
        log.warning(
            "cannot write %s: %s; make room or allow writing there. The work goes on in memory; "
            "should this process end before that, %s",
            self._path(name), error.strerror, _LOSS[name],
            extra={"event": "state_unsaved", "file": f"{name}.npz"},
        )  # fmt: skip


def lock_state(directory: Path) -> IO[bytes]:
    """Make sure that a state directory can be written, and that no other client uses it.

    The lock is held until the returned file is closed, or the process ends. Raises ClientError.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = lock_file(directory / ".lock")
        try:
            write_whole(directory / ".room", bytes(4096))
            (directory / ".room").unlink()
        except OSError:
            lock.close()
            raise
    except BlockingIOError as error:
        raise ClientError(
            f"another client uses the state directory {directory}; stop it, or choose another with "
            "--state-dir"
        ) from error
    except OSError as error:
        raise _unusable(directory, error) from error
    return lock


def _unusable(directory: Path, error: OSError) -> ClientError:
    return ClientError(
        f"cannot use state directory {directory}: {error.strerror}; make room, allow writing "
        "there, or choose another with --state-dir"
    )
