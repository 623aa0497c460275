"""Who is enrolled: names with the SHA-256 of their token and certificate, in one small file.

Knows neither gRPC nor X.509. The file is read again whenever it has changed, so a running server
knows of new and revoked clients at once. A token has 256 random bits, so its hash needs neither
salt nor a slow function.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused, ServerError

FILE_NAME = "enrolled.json"
ADMINISTRATOR = "ask the server's administrator for new credentials (featherfed certs client)"

T = TypeVar("T")


@dataclass(frozen=True)
class Enrolled:
    """One client: what proves its name, and until when."""

    token: str
    """SHA-256, hexadecimal."""
    certificate: str
    """SHA-256 of its DER form, hexadecimal."""
    authority: str
    """The name of the CA that issued the certificate."""
    expires: float
    """Seconds since the epoch."""
    revoked: bool = False


class Enrolment:
    """The enrolled clients by name; immutable."""

    def __init__(self, clients: dict[str, Enrolled]) -> None:
        self.clients = clients
        self._by_token = {entry.token: name for name, entry in clients.items()}
        self._by_certificate = {entry.certificate: name for name, entry in clients.items()}

    def with_client(self, name: str, entry: Enrolled) -> Enrolment:
        """Return the enrolment with `name` added or replaced."""
        return Enrolment({**self.clients, name: entry})

    def without_access(self, name: str) -> Enrolment:
        """Return the enrolment in which `name` is revoked; raise KeyError if it is unknown."""
        return self.with_client(name, replace(self.clients[name], revoked=True))

    def prove(self, token: str | None, certificate: bytes | None, now: float) -> str:
        """Return the name that a token, and the certificate (DER) if there is one, belong to.

        Raises Refused: BAD_TOKEN, or WRONG_IDENTITY if the two are not of one client.
        """
        if token is None:
            raise Refused(
                pb.BAD_TOKEN,
                "no enrolment token: use the credentials that `featherfed certs client` made for "
                "this device (--credentials FOLDER)",
            )
        name = self._by_token.get(digest(token.encode()))
        if name is None:
            raise Refused(
                pb.BAD_TOKEN, f"this token is not enrolled here, or was replaced; {ADMINISTRATOR}"
            )
        entry = self.clients[name]
        if entry.revoked:
            raise Refused(pb.BAD_TOKEN, f"the access of {name!r} was revoked; {ADMINISTRATOR}")
        if now > entry.expires:
            raise Refused(pb.BAD_TOKEN, f"the access of {name!r} has expired; {ADMINISTRATOR}")
        if certificate is not None and digest(certificate) != entry.certificate:
            raise Refused(
                pb.WRONG_IDENTITY,
                f"the token belongs to {name!r}, {self._owner(certificate)}; use the files of one "
                "device's credentials together",
            )
        return name

    def _owner(self, certificate: bytes) -> str:
        owner = self._by_certificate.get(digest(certificate))
        if owner is None:
            return "the certificate to nobody who is enrolled (any more)"
        return f"the certificate to {owner!r}"


def digest(secret: bytes) -> str:
    """Return the SHA-256 as hexadecimal text."""
    return hashlib.sha256(secret).hexdigest()


def load(folder: Path) -> Enrolment:
    """Return what is enrolled in `folder`; raise ServerError if the file cannot be used."""
    path = folder / FILE_NAME
    try:
        data = json.loads(path.read_text("utf-8"))
        clients = {name: _entry(value) for name, value in data["clients"].items()}
    except OSError as error:
        raise ServerError(
            f"cannot read {path}: {error.strerror}; the folder is made by `featherfed certs init`"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServerError(f"{path} is damaged ({error!r}); restore it from a backup") from error
    return Enrolment(clients)


def _entry(value: dict[str, Any]) -> Enrolled:
    entry = Enrolled(**value)
    texts = (entry.token, entry.certificate, entry.authority)
    if not all(isinstance(text, str) for text in texts) or not isinstance(entry.revoked, bool):
        raise TypeError("an entry of the wrong types")
    return replace(entry, expires=float(entry.expires))


def dump(enrolment: Enrolment) -> bytes:
    """Return the file's content."""
    clients = {name: asdict(entry) for name, entry in sorted(enrolment.clients.items())}
    return json.dumps({"format": 1, "clients": clients}, indent=1).encode() + b"\n"


class WatchedFiles(Generic[T]):
    """A value read from files, and read again when one of them was replaced or changed."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """Call `read`, which reads the files at `paths`; raise what it raises."""
        self._paths = paths
        self._read = read
        self._seen = self._signature()
        self._value = read()

    def get(self) -> T:
        """Return the value; raise what `read` raises, until the files can be used again."""
        signature = self._signature()  # before reading: what changes meanwhile is read again
        if signature != self._seen:
            self._value = self._read()
            self._seen = signature
        return self._value

    def _signature(self) -> list[tuple[int, int, int] | None]:
        return [_identity(path) for path in self._paths]


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Return what changes with a file's content, None if there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
