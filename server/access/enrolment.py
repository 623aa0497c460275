"""Who is enrolled: names with the SHA-256 of their token and certificate, in one small file.

Knows neither gRPC nor X.509. A token has 256 random bits, so its hash needs neither salt nor a slow
function.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused, ServerError

FILE_NAME = "enrolled.json"
_ASK = "ask the server's administrator for new credentials (featherfed certs client)"


@dataclass(frozen=True)
class Enrolled:
    """What proves the name of one client, and until when."""

    token: str
    """SHA-256 of the token, hexadecimal."""
    certificate: str
    """SHA-256 of the certificate's DER form, hexadecimal."""
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
        """Return the name of the client that a token belongs to.

        `certificate`: the caller's, in DER form, None if only tokens are checked. `now`: seconds
        since the epoch. Raises Refused: BAD_TOKEN, or WRONG_IDENTITY if token and certificate are
        of different clients.
        """
        if token is None:
            raise Refused(
                pb.BAD_TOKEN,
                "no enrolment token: use the credentials that `featherfed certs client` made for "
                "this device (--credentials FOLDER)",
            )
        name = self._by_token.get(digest(token.encode()))
        if name is None:
            raise Refused(pb.BAD_TOKEN, f"this token is not enrolled here, or was replaced; {_ASK}")
        entry = self.clients[name]
        if entry.revoked:
            raise Refused(pb.BAD_TOKEN, f"the access of {name!r} was revoked; {_ASK}")
        if now > entry.expires:
            raise Refused(pb.BAD_TOKEN, f"the access of {name!r} has expired; {_ASK}")
        if certificate is not None and digest(certificate) != entry.certificate:
            raise Refused(
                pb.WRONG_IDENTITY,
                f"the token belongs to {name!r}, {self._owner(certificate)}; use the files of one "
                "device's credentials together",
            )
        return name

    def _owner(self, certificate: bytes) -> str:
        """Return the half of an error message that says whose certificate this is."""
        owner = self._by_certificate.get(digest(certificate))
        if owner is None:
            return "the certificate to nobody who is enrolled (any more)"
        return f"the certificate to {owner!r}"


def digest(secret: bytes) -> str:
    """Return the SHA-256 of a token or certificate as hexadecimal text."""
    return hashlib.sha256(secret).hexdigest()


def load(folder: Path) -> Enrolment:
    """Return the enrolment stored in `folder`; raise ServerError if the file cannot be used."""
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
    """Return the content of the file that stores `enrolment`."""
    clients = {name: asdict(entry) for name, entry in sorted(enrolment.clients.items())}
    return json.dumps({"format": 1, "clients": clients}, indent=1).encode() + b"\n"
