"""Who may read a live page and who may act on it: tokens, and what a browser says of a request.

A page elsewhere must neither read this one nor act through a visitor's browser: by the name under
which it is reached (DNS rebinding), and by the origin of what is posted.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Access:
    """Decides about requests to one page.

    `open_to_read`: reading needs no token. `names`: hosts under which the page may be reached,
    besides the address that a connection came to.
    """

    open_to_read: bool
    names: frozenset[str]
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @classmethod
    def of(cls, local: bool, names: Iterable[str]) -> Access:
        """Return the rules of a page that only this machine can reach, or others too."""
        more = _LOCAL if local else frozenset({"localhost"})
        return cls(local, more | {name.lower().rstrip(".") for name in names})

    @property
    def cookie(self) -> str:
        """The value of the cookie that lets read; nobody can act with it."""
        return hmac.digest(self.token.encode(), b"read", hashlib.sha256).hex()

    def may_act(self, authorization: str) -> bool:
        """Whether a request's header Authorization holds the token."""
        scheme, _, given = authorization.partition(" ")
        return scheme.lower() == "bearer" and _equal(given.strip(), self.token)

    def may_read(self, authorization: str, cookie: str) -> bool:
        """Whether a request may read, by its header or its cookie."""
        return self.open_to_read or self.may_act(authorization) or _equal(cookie, self.cookie)

    def is_token(self, given: str) -> bool:
        """Whether a text is the token."""
        return _equal(given, self.token)

    def knows_host(self, host: str, address: str | None) -> bool:
        """Whether a header Host names this page; `address`: that the connection came to."""
        name = _host_name(host)
        if name is None:
            return False
        return name in self.names or (address is not None and _same_address(name, address))


def is_own_origin(origin: str, scheme: str, host: str) -> bool:
    """Whether a header Origin is that of the page itself, which was reached as `host`."""
    return origin.lower() == f"{scheme}://{host}".lower()


def write_token(path: Path, token: str) -> None:
    """Write a token for its owner's eyes alone, in place of an older one; raises OSError."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)


def header(headers: Mapping[bytes, bytes], name: bytes) -> str:
    """Return a header's text; empty if there is none."""
    return headers.get(name, b"").decode("latin-1")


def _equal(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), right.encode())


def _host_name(host: str) -> str | None:
    """Return the name or address in a header Host, without brackets and port."""
    if host.startswith("["):
        name, closed, _ = host[1:].partition("]")
        return name.lower() if closed else None
    name, colon, port = host.partition(":")
    if not name or (colon and not port.isdecimal()):
        return None
    return name.lower().rstrip(".")


def _same_address(name: str, address: str) -> bool:
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(address)
    except ValueError:
        return False
