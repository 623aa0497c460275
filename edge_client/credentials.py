"""A device's credentials: the folder that `featherfed certs client` made for it.

ca.pem                      the authorities whose server certificates are trusted
token                       NAME.SECRET
client.pem, client-key.pem  both, or neither where the server asks for tokens alone
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from featherfed.edge_client.errors import ClientError

SERVER_NAME = "featherfed.internal"
"""The name in every server certificate that `featherfed certs` makes. Devices check it instead of
the address, which may change or come from multicast DNS."""

EXPIRED, NOT_YET_VALID = 10, 9
"""OpenSSL's verification codes (X509_V_ERR_...)."""

_HINT = "`featherfed certs client DIR NAME` on the server makes the folder; copy it as a whole"


@dataclass(frozen=True)
class Credentials:
    """What TLS with a server needs; without a folder, only the system's trusted authorities."""

    folder: Path | None = None
    authorities: bytes | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str | None:
        """The client's name, from the token; None without a token."""
        return self.token.rpartition(".")[0] if self.token else None

    def ssl_context(self) -> ssl.SSLContext:
        """Return a client's context for the standard library's ssl."""
        context = ssl.create_default_context()
        if self.folder is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(self.folder / "ca.pem")
        if self.folder is not None and self.certificate is not None:
            context.load_cert_chain(self.folder / "client.pem", self.folder / "client-key.pem", "-")
        return context


def choose_credentials(address: str, folder: Path | None, insecure: bool) -> Credentials | None:
    """Return the credentials for the server at `address` (host:port), None for plaintext.

    Raises ClientError if the folder cannot be used.
    """
    if folder is not None:
        if insecure:
            raise ClientError("--insecure would send the token unencrypted; drop it")
        return load_credentials(folder)
    if insecure or is_loopback(address):
        return None
    return Credentials(authorities=_system_authorities())


def is_loopback(address: str) -> bool:
    """Return whether `address` (host:port) is a loopback IP address or localhost."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_credentials(folder: Path) -> Credentials:
    """Return the credentials in `folder`; raise ClientError if they cannot be used."""
    authorities, token = _read(folder, "ca.pem"), _read(folder, "token")
    certificate = key = None
    if (folder / "client.pem").exists() or (folder / "client-key.pem").exists():
        certificate, key = _read(folder, "client.pem"), _read(folder, "client-key.pem")
    text = token.decode("ascii", "replace").strip()
    if not text.isprintable() or not text.rpartition(".")[0]:
        raise ClientError(f"{folder / 'token'} is damaged; {_HINT}")
    credentials = Credentials(folder, authorities, certificate, key, text)
    try:
        credentials.ssl_context()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ClientError(
            f"the certificates in {folder} are damaged, or client-key.pem is not the key of "
            f"client.pem ({_reason(error)}); {_HINT}"
        ) from error
    fault = own_certificate_error(credentials)
    if fault is not None and fault.verify_code != NOT_YET_VALID:  # the clock may be set any moment
        raise ClientError(describe_certificate_error(credentials, fault))
    return credentials


def own_certificate_error(credentials: Credentials) -> ssl.SSLCertVerificationError | None:
    """Return the error that a server finds in the client's certificate, None if it is valid.

    A gRPC server hangs up without saying why, so its check is made here, in memory.
    """
    if credentials.folder is None or credentials.certificate is None:
        return None
    folder = credentials.folder
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "client.pem", folder / "client-key.pem", "-")
    server.load_verify_locations(folder / "ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    client = credentials.ssl_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (ours, theirs, ours, theirs):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error
    return None


def describe_certificate_error(
    credentials: Credentials, error: ssl.SSLCertVerificationError
) -> str:
    """Return a message for the user: what is wrong with the certificate, and what to do."""
    path = f"{credentials.folder}/client.pem"
    if error.verify_code == EXPIRED:
        return (
            f"the client certificate {path} has expired ({clock_text()}); on the server: "
            f"featherfed certs client --renew DIR {credentials.name}, and copy the folder here "
            "again"
        )
    if error.verify_code == NOT_YET_VALID:
        return f"the client certificate {path} is not valid yet: {clock_text()}; set the clock"
    return (
        f"the client certificate {path} was not issued by an authority in ca.pem beside it "
        f"({error.verify_message}); {_HINT}"
    )


def clock_text() -> str:
    """Return the device's time, for messages: without a battery its clock may be wrong."""
    return f"this device's clock says {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ClientError(
            f"cannot read credentials {folder / name}: {error.strerror}; {_HINT}, readable for the "
            "user that featherfed runs as"
        ) from error


def _reason(error: Exception) -> str:
    return (isinstance(error, ssl.SSLError) and error.reason) or type(error).__name__


def _system_authorities() -> bytes | None:
    """Return the system's trusted authorities (PEM), None (gRPC's own) if it has no such file."""
    paths = ssl.get_default_verify_paths()
    for path in (paths.cafile, os.path.join(paths.capath or "", "ca-certificates.crt")):
        if path and os.path.isfile(path):
            return Path(path).read_bytes()
    return None
