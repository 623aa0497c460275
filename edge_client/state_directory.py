"""A state directory that one client uses, and its .npz files, kept despite damage and full disks.

No problem with a file stops the client, since nobody may be there to help: a damaged file is put
aside, a file that cannot be written is kept in memory, and a warning in the log names the loss.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from featherfed.compression.files import lock_file, sync_names, write_whole
from featherfed.edge_client import statefile
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.statefile import Content, Damaged, Groups, warn_unwritable

log = logging.getLogger(__name__)

_LOSS = {  # what it costs to lose a file
    "model": "the model is downloaded again",
    "residual": "what the codec lost of earlier updates is lost",
    "pending": "the update is lost, and made again if its round is still open",
}

_SYNCED_LATER = {"model"}
"""The files whose names are synced with those of the next file, or by `sync`.

Until then a loss of power may bring back the version before, and costs one download.
"""


class StateDirectory:
    """The .npz files of one run in a directory; files of other runs or models are ignored."""

    def __init__(self, path: Path, run: str) -> None:
        """Use the directory `path`, made if need be; `run` identifies a run and its model."""
        self.path = path
        self._run = run
        self._unsaved: dict[str, Content] = {}
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(path, error) from error

    def save(self, name: str, fields: dict[str, Any], groups: Groups) -> None:
        """Replace NAME.npz; content that cannot be written is kept in memory until it can be.

        The old file is deleted then: a client that restarts from it would add its residual to a
        second update, or send its update twice.
        """
        content = self._content(fields, groups)
        try:
            path, now = self._file(name), name not in _SYNCED_LATER
            statefile.save(path, content[0], groups, sync_name=now)
        except OSError as error:
            self._unsaved[name] = content
            with suppress(OSError):
                self._file(name).unlink(missing_ok=True)
            self._warn(name, error)
        else:
            self._unsaved.pop(name, None)

    def sync(self, name: str) -> None:
        """Sync the names of all files, above all that of NAME.npz."""
        try:
            sync_names(self.path)
        except OSError as error:
            self._warn(name, error)

    def load(self, name: str) -> Content | None:
        """Return the content of NAME.npz, None if there is none of this run, or it is damaged."""
        found = self._unsaved.get(name) or self._read(name)
        if found is None or found[0].get("run") != self._run:
            return None
        fields = {key: value for key, value in found[0].items() if key != "run"}
        return fields, found[1]

    def delete(self, name: str) -> None:
        """Delete NAME.npz and what memory holds of it."""
        self._unsaved.pop(name, None)
        try:
            self._file(name).unlink(missing_ok=True)
        except OSError as error:
            self._warn(name, error)

    def keep_in_memory(self, name: str, fields: dict[str, Any], groups: Groups) -> None:
        """Delete NAME.npz, and keep this content in memory instead."""
        self.delete(name)
        self._unsaved[name] = self._content(fields, groups)

    def is_unsaved(self, name: str) -> bool:
        """Return whether the content of NAME.npz is in memory only."""
        return name in self._unsaved

    def _content(self, fields: dict[str, Any], groups: Groups) -> Content:
        return {**fields, "run": self._run}, {g: list(tensors) for g, tensors in groups.items()}

    def _read(self, name: str) -> Content | None:
        path = self._file(name)
        try:
            return statefile.load(path)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise _unusable(self.path, error) from error
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

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.npz"

    def _warn(self, name: str, error: OSError) -> None:
        warn_unwritable(self._file(name), error, "The work", _LOSS[name])


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
