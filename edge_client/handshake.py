"""Why a secure connection does not come about: gRPC calls every cause "unavailable".

Makes the same handshake with the standard library's ssl, which tells what is wrong.
"""

from __future__ import annotations

import math
import socket
import ssl
from dataclasses import dataclass

from featherfed.edge_client.credentials import (
    EXPIRED,
    NOT_YET_VALID,
    SERVER_NAME,
    Credentials,
    clock,
    explain_own,
    own_fault,
)

SECONDS = 5.0
_NAME_MISMATCH, _IP_MISMATCH = 62, 64
_HANG_UPS = 5  # a server that is being stopped, or a bad link, may look like a refusal
_GIVE = (
    "give --credentials FOLDER, the folder that `featherfed certs client` on the server made for "
    "this device"
)


@dataclass(frozen=True)
class Fault:
    """What is wrong, and how often it must be seen in a row to be the truth."""

    message: str
    tries: float = 1


def diagnose(address: str, credentials: Credentials | None) -> Fault | None:
    """Return why gRPC cannot speak with `address` (host:port); None if no handshake is at fault."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), SECONDS) as plain:
            if credentials is None:
                return _speaks_tls(plain)
            return _shake_hands(plain, host, credentials)
    except (OSError, ValueError):
        return None


def _speaks_tls(plain: socket.socket) -> Fault | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.wrap_socket(plain).close()
    return Fault(f"the server speaks TLS, and this client does not: {_GIVE}")


def _shake_hands(plain: socket.socket, host: str, credentials: Credentials) -> Fault | None:
    context = credentials.context()
    context.set_alpn_protocols(["h2"])
    name = host if credentials.folder is None else SERVER_NAME
    try:
        secure = context.wrap_socket(plain, server_hostname=name)
    except ssl.SSLCertVerificationError as error:
        return _explain_server(error, host, credentials)
    except ssl.SSLError as error:
        return _no_tls() if error.reason == "WRONG_VERSION_NUMBER" else None
    with secure:
        try:
            # Only now the server sees the client's certificate; if it likes it, it says something.
            heard = secure.recv(1)
        except TimeoutError:
            return None
        except OSError:
            heard = b""
    return None if heard else _explain_client(credentials)


def _no_tls() -> Fault:
    return Fault(
        "the server does not speak TLS: give it credentials (featherfed certs init), or use "
        "--insecure here if nobody else is in the network"
    )


def _explain_server(
    error: ssl.SSLCertVerificationError, host: str, credentials: Credentials
) -> Fault:
    if error.verify_code == EXPIRED:
        return Fault(
            f"the server's certificate has expired ({clock()}); on the server: featherfed certs "
            "rotate DIR",
        )
    if error.verify_code == NOT_YET_VALID:
        return Fault(
            f"the server's certificate is not valid yet: {clock()}; set the clock, or wait until "
            "the network has set it",
            tries=math.inf,
        )
    if error.verify_code in (_NAME_MISMATCH, _IP_MISMATCH):
        if credentials.folder is None:
            return Fault(f"the server's certificate is not for the name {host}; {_GIVE}")
        return Fault(
            f"the server's certificate lacks the name {SERVER_NAME}, so it is not one that "
            "`featherfed certs` made for a server"
        )
    if credentials.folder is None:
        return Fault(f"this system trusts no authority of the server: {_GIVE}")
    return Fault(
        f"the server's certificate is not from an authority in {credentials.folder}/ca.pem "
        f"({error.verify_message}): the credentials are another server's, or older than its "
        "authority; copy this device's folder from the server again",
    )


def _explain_client(credentials: Credentials) -> Fault:
    """The server hung up when it had seen the client's certificate."""
    if credentials.certificate is None:
        return Fault(f"the server wants a client certificate: {_GIVE}", _HANG_UPS)
    fault = own_fault(credentials)
    if fault is not None:
        tries = math.inf if fault.verify_code == NOT_YET_VALID else 1
        return Fault(explain_own(credentials, fault), tries)
    return Fault(
        "the server hangs up when it sees this device's certificate: it does not trust its "
        f"authority; copy the folder {credentials.folder} from the server again",
        _HANG_UPS,
    )
