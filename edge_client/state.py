"""A client's state on disk, in files that are replaced atomically.

model.npz     the newest model version that the client holds
residual.npz  what the codec lost of acknowledged updates
pending.npz   an update that is not acknowledged yet
step.tflite   the exported training step, for LiteRT
model.part    a model download that broke off; see partial_download.py

No problem with a file stops the client, since nobody may be there to help: a damaged file is put
aside, a file that cannot be written is kept in memory, and a warning in the log names the loss.
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
from featherfed.edge_client.statefile import Content, Damaged, Groups, warn_unwritable

log = logging.getLogger(__name__)

_LOSS = {  # what it costs to lose a file
    "model": "the model is downloaded again",
    "residual": "what the codec lost of earlier updates is lost",
    "pending": "the update is lost, and made again if its round is still open",
}


@dataclass(frozen=True)
class Held:
    """A model version that the client holds; weights in manifest order."""

    version: int
    digest: bytes
    weights: list[Array]
    allocation: Allocation | None = None
    """The importance of coordinates that belongs to this version, None before the first."""


@dataclass(frozen=True)
class Pending:
    """An update that is not acknowledged yet.

    Once it is accepted, `residual` becomes the client's residual; if it comes too late, `target`.
    """

    round: int
    version: int
    num_examples: int
    loss: float
    accuracy: float
    payload: bytes
    target: list[Array]
    residual: list[Array] | None


class ClientState:
    """The state directory of one client in one run; files of other runs or models are ignored."""

    def __init__(self, directory: Path, run: str) -> None:
        """Use `directory`, made if need be; `run` identifies a run and its model."""
        self._directory = directory
        self._run = run
        self._unsaved: dict[str, Content] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(directory, error) from error

    def held(self) -> Held | None:
        """Return the held model version, None if there is no undamaged one."""
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
        """Replace the held model version."""
        known = held.allocation
        facts = {
            "version": held.version,
            "digest": held.digest.hex(),
            "allocation": known and (known.levels.hex(), known.profile.hex()),
        }
        self._save("model", facts, {"weights": held.weights})

    def residual(self) -> list[Array] | None:
        """Return the residual, None if there is none."""
        found = self._load("residual")
        return found[1]["residual"] if found else None

    def save_residual(self, residual: Sequence[Array] | None) -> None:
        """Replace the residual; None deletes it."""
        if residual is None:
            self._drop("residual")
        else:
            self._save("residual", {}, {"residual": residual})

    def pending(self) -> Pending | None:
        """Return the update that is not acknowledged yet, None if there is none."""
        found = self._load("pending")
        if found is None:
            return None
        facts, tensors = found
        payload = bytes.fromhex(facts.pop("payload"))
        return Pending(
            **facts, payload=payload, target=tensors["target"], residual=tensors.get("residual")
        )

    def save_pending(self, pending: Pending) -> None:
        """Save an update before it is sent.

        If it cannot be written, it is sent nevertheless: losing the residual is better than losing
        the training. The residual on disk is then deleted, as it is part of this update and must
        not be added to a second one.
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
        """Delete the pending update and save `residual`; may be repeated after a crash."""
        self.save_residual(residual)
        self._drop("pending")
        if "residual" in self._unsaved:  # deleting the pending update may have made room
            self.save_residual(residual)

    def training_step(self, digest: bytes) -> bytes | None:
        """Return the exported training step of this SHA-256, None if it is missing or damaged."""
        try:
            content = (self._directory / "step.tflite").read_bytes()
        except OSError:
            return None
        return content if hashlib.sha256(content).digest() == digest else None

    def save_training_step(self, content: bytes) -> None:
        """Save a training step for the next start; it belongs to a plan, not to a run."""
        try:
            write_whole(self._directory / "step.tflite", content)
        except OSError as error:
            log.warning("the training step is downloaded again at the next start: %s", error)

    def _save(self, name: str, facts: dict[str, Any], groups: Groups) -> None:
        """Replace a file; what cannot be written is kept in memory until it can be.

        The old file is deleted then: a client that restarts from it would add its residual to a
        second update, or send its update twice.
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
        warn_unwritable(self._path(name), error, "The work", _LOSS[name])


def lock_state(directory: Path) -> IO[bytes]:
    """Lock a state directory, so that no other client uses it, and check that it can be written.

    The lock is held until the returned file is closed or the process ends. Raises ClientError.
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
