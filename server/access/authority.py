"""A certificate authority in a folder: the server's and the clients' certificates, and tokens.

ca.pem                trusted authorities, the newest first
ca-key.pem            the newest authority's key; the server does not need it
server.pem            the server's certificate, then those that lead from it to older authorities
server-key.pem
enrolled.json         who is enrolled (enrolment.py)
clients/NAME/         all that belongs on the device NAME; the server does not need it

Every file is replaced whole or not at all, private ones have mode 0600.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from featherfed.compression.files import write_whole
from featherfed.server.access.certificates import (
    Key,
    common_name,
    cross_certify,
    host_names,
    issue,
    new_authority,
    pem,
)
from featherfed.server.access.enrolment import FILE_NAME, Enrolled, Enrolment, digest, dump, load
from featherfed.server.access.names import check_name
from featherfed.server.errors import Refused, ServerError

SERVER_NAME = "featherfed.internal"
"""In every server certificate: devices check this name, whatever address led them there."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
CA_DAYS, DAYS = 3650, 730
"""Days for which authorities, and other certificates, are valid unless told otherwise."""


class Authority:
    """Manages the certificates and tokens in one folder.

    Every method raises ServerError if the folder cannot be used, or does not allow what is asked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, hosts: Sequence[str], ca_days: float = CA_DAYS, days: float = DAYS) -> None:
        """Make the authority and the server's certificate for `hosts`, names or IP addresses."""
        names = _names(hosts)
        with self._changing(new=True):
            for name in ("ca.pem", "ca-key.pem", "server.pem", "server-key.pem", FILE_NAME):
                if (self.folder / name).exists():
                    raise ServerError(
                        f"{self.folder / name} is there already, and nothing is overwritten; "
                        "`featherfed certs rotate` renews, or choose another folder"
                    )
            key, ca = new_authority(ca_days)
            self._write("ca-key.pem", pem(key), private=True)
            self._write("ca.pem", pem(ca))
            self._write_server(key, [ca], names, days)
            self._write(FILE_NAME, dump(Enrolment({})), private=True)

    def rotate(
        self, hosts: Sequence[str] = (), days: float = DAYS, *, ca_days: float | None = None
    ) -> None:
        """Issue a new server certificate, for the same hosts if none are given.

        With `ca_days`, make a new authority first. The old ones stay trusted, and the last of them
        certifies the new one: devices that know only one of the two accept the server.
        """
        with self._changing():
            names = _names(hosts) if hosts else self._server_names()
            key, ca = self._newest()
            chain = [ca, *self._certificates("server.pem")[1:]]
            if ca_days is not None:
                old_key, old = key, ca
                key, ca = new_authority(ca_days)
                chain = [ca, cross_certify(ca, key, old, old_key), *chain[1:]]
                # In this order, the files are usable at every moment.
                self._write("ca.pem", pem(ca, *self._certificates("ca.pem")))
            self._write_server(key, chain, names, days)
            if ca_days is not None:
                self._write("ca-key.pem", pem(key), private=True)

    def drop_old(self, days: float = DAYS) -> list[str]:
        """Trust only the newest authority; return the clients that are shut out by that."""
        with self._changing():
            key, newest = self._newest()
            self._write_server(key, [newest], self._server_names(), days)
            self._write("ca.pem", pem(newest))
            enrolment = load(self.folder)
        name = common_name(newest)
        return [n for n, e in enrolment.clients.items() if not e.revoked and e.authority != name]

    def enrol(self, names: Sequence[str], days: float = DAYS, renew: bool = False) -> list[Path]:
        """Make certificates and tokens for clients; return the folders to copy to the devices.

        With `renew`, the former ones of the same names end at once.
        """
        with self._changing():
            key, ca = self._newest()
            enrolment = load(self.folder)
            for name in names:
                _check(name, enrolment, renew)
            folders = []
            for name in names:
                entry, folder = self._issue(name, key, ca, days)
                enrolment = enrolment.with_client(name, entry)
                self._write(FILE_NAME, dump(enrolment), private=True)
                folders.append(folder)
        return folders

    def revoke(self, names: Sequence[str]) -> None:
        """End the access of clients."""
        with self._changing():
            enrolment = load(self.folder)
            for name in names:
                if name not in enrolment.clients:
                    raise ServerError(f"{name!r} is not enrolled in {self.folder}; nothing changed")
                enrolment = enrolment.without_access(name)
            self._write(FILE_NAME, dump(enrolment), private=True)

    def server_expires(self) -> datetime.datetime:
        """Return when the server's certificate expires."""
        return self._certificates("server.pem")[0].not_valid_after_utc

    def authorities(self) -> list[tuple[str, datetime.datetime]]:
        """Return the trusted authorities, the newest first: their name, and when they expire."""
        return [(common_name(c), c.not_valid_after_utc) for c in self._certificates("ca.pem")]

    # ---- files ----

    def _issue(
        self, name: str, key: Key, ca: x509.Certificate, days: float
    ) -> tuple[Enrolled, Path]:
        own, certificate = issue(key, ca, name, ExtendedKeyUsageOID.CLIENT_AUTH, (), days)
        token = f"{name}.{secrets.token_urlsafe(32)}"
        folder = self.folder / "clients" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        place = f"clients/{name}"
        self._write(f"{place}/ca.pem", (self.folder / "ca.pem").read_bytes())
        self._write(f"{place}/client.pem", pem(certificate))
        self._write(f"{place}/client-key.pem", pem(own), private=True)
        self._write(f"{place}/token", token.encode() + b"\n", private=True)
        der = certificate.public_bytes(serialization.Encoding.DER)
        expires = certificate.not_valid_after_utc.timestamp()
        return Enrolled(digest(token.encode()), digest(der), common_name(ca), expires), folder

    def _write_server(
        self, key: Key, chain: Sequence[x509.Certificate], names: Sequence[str], days: float
    ) -> None:
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        own, certificate = issue(key, chain[0], "featherfed server", usage, names, days)
        # A running server waits with the old pair until both are there.
        self._write("server-key.pem", pem(own), private=True)
        self._write("server.pem", pem(certificate, *chain[1:]))

    def _server_names(self) -> list[str]:
        return host_names(self._certificates("server.pem")[0])

    def _certificates(self, name: str) -> list[x509.Certificate]:
        try:
            return x509.load_pem_x509_certificates(self._read(name))
        except ValueError as error:
            raise ServerError(f"{self.folder / name} is not a PEM certificate: {error}") from error

    def _newest(self) -> tuple[Key, x509.Certificate]:
        """Return key and certificate of the newest authority, which issues all others."""
        path = self.folder / "ca-key.pem"
        try:
            key = serialization.load_pem_private_key(self._read(path.name), None)
        except (ValueError, TypeError) as error:
            raise ServerError(f"{path} is not a PEM key: {error}") from error
        for certificate in self._certificates("ca.pem"):
            if isinstance(key, Key) and certificate.public_key() == key.public_key():
                return key, certificate
        raise ServerError(
            f"{path} is the key of no certificate in ca.pem; restore both from a backup"
        )

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise ServerError(
                f"cannot read {self.folder / name}: {error.strerror}; the folder is made by "
                "`featherfed certs init`"
            ) from error

    def _write(self, name: str, content: bytes, private: bool = False) -> None:
        write_whole(self.folder / name, content, 0o600 if private else 0o644)

    @contextlib.contextmanager
    def _changing(self, new: bool = False) -> Iterator[None]:
        """Let one process at a time change the folder; with `new`, create it first."""
        try:
            if new:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self.folder / ".lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise ServerError(
                f"cannot change {error.filename or self.folder}: {error.strerror}; the folder is "
                "made by `featherfed certs init`, and belongs to who made it"
            ) from error


def _check(name: str, enrolment: Enrolment, renew: bool) -> None:
    """Raise ServerError unless `name` may be enrolled."""
    try:
        check_name(name)
    except Refused as refusal:
        raise ServerError(f"{name!r}: {refusal.detail}") from refusal
    if name in enrolment.clients and not renew:
        was = "was revoked" if enrolment.clients[name].revoked else "is enrolled already"
        raise ServerError(
            f"{name!r} {was}; --renew gives it a new certificate and token, and ends the old ones"
        )


def _names(hosts: Sequence[str]) -> list[str]:
    """Return the names of a server that clients reach as `hosts`, each once."""
    return list(dict.fromkeys([SERVER_NAME, *LOOPBACK, *(host.strip("[]") for host in hosts)]))
