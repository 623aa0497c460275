"""Find out why a TLS handshake fails, for which gRPC only reports "unavailable".

Repeats the handshake with the standard library's ssl, whose errors name the cause.
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
    clock_text,
    describe_certificate_error,
    own_certificate_error,
)
from featherfed.edge_client.errors import Rejected, Unreachable

TIMEOUT = 5.0
"""Seconds to connect, and for each read."""
_NAME_MISMATCH, _IP_MISMATCH = 62, 64
_HANG_UPS = 5  # fewer may also come from a bad link, or from a server that is being stopped
_HINT = (
    "give --credentials FOLDER, the folder that `featherfed certs client` on the server made for "
    "this device"
)


@dataclass(frozen=True)
class Fault:
    """The cause of a failed handshake."""

    message: str
    tries: float = 1
    """Consecutive failures for this cause before the client gives up; infinite: it never does."""


class HandshakeCheck:
    """Decides whether a failed call is due to bad credentials or to a bad link."""

    def __init__(self, address: str, credentials: Credentials | None) -> None:
        self._address = address
        self._credentials = credentials
        self._answered = False
        self._faults = 0

    def answered(self) -> None:
        """Record that the server answered a call."""
        self._answered, self._faults = True, 0

    def failed(self, unavailable: bool) -> Rejected | Unreachable | None:
        """Record a failed call; return the error to raise if the handshake is at fault, else None.

        Only an unavailable server is examined, and not at the first failure after an answer.
        """
        if self._answered or not unavailable:
            self._answered = False
            return None
        fault = diagnose(self._address, self._credentials)
        if fault is None:
            return None
        self._faults += 1
        kind = Rejected if self._faults >= fault.tries else Unreachable
        return kind(f"{self._address}: {fault.message}")


def diagnose(address: str, credentials: Credentials | None) -> Fault | None:
    """Return why the handshake with `address` (host:port) fails; None for any other cause."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), TIMEOUT) as plain:
            if credentials is None:
                return _fault_of_plaintext(plain)
            return _fault_of_tls(plain, host, credentials)
    except (OSError, ValueError):
        return None


def _fault_of_plaintext(plain: socket.socket) -> Fault | None:
    """Return a fault if the server speaks TLS; raise ssl.SSLError otherwise."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.wrap_socket(plain).close()
    return Fault(f"the server speaks TLS, and this client does not: {_HINT}")


def _fault_of_tls(plain: socket.socket, host: str, credentials: Credentials) -> Fault | None:
    context = credentials.ssl_context()
    context.set_alpn_protocols(["h2"])
    name = host if credentials.folder is None else SERVER_NAME
    try:
        secure = context.wrap_socket(plain, server_hostname=name)
    except ssl.SSLCertVerificationError as error:
        return _fault_of_server_certificate(error, host, credentials)
    except ssl.SSLError as error:
        return _fault_of_server_without_tls() if error.reason == "WRONG_VERSION_NUMBER" else None
    with secure:
        try:
            # The server checks the client's certificate only now, and sends data if it is good.
            received = secure.recv(1)
        except TimeoutError:
            return None
        except OSError:
            received = b""
    return None if received else _fault_of_client_certificate(credentials)


def _fault_of_server_without_tls() -> Fault:
    return Fault(
        "the server does not speak TLS: give it credentials (featherfed certs init), or use "
        "--insecure here if nobody else is in the network"
    )


def _fault_of_server_certificate(
    error: ssl.SSLCertVerificationError, host: str, credentials: Credentials
) -> Fault:
    if error.verify_code == EXPIRED:
        return Fault(
            f"the server's certificate has expired ({clock_text()}); on the server: featherfed "
            "certs rotate DIR",
        )
    if error.verify_code == NOT_YET_VALID:
        return Fault(
            f"the server's certificate is not valid yet: {clock_text()}; set the clock, or wait "
            "until the network has set it",
            tries=math.inf,
        )
    if error.verify_code in (_NAME_MISMATCH, _IP_MISMATCH):
        if credentials.folder is None:
            return Fault(f"the server's certificate is not for the name {host}; {_HINT}")
        return Fault(
            f"the server's certificate lacks the name {SERVER_NAME}, so it is not one that "
            "`featherfed certs` made for a server"
        )
    if credentials.folder is None:
        return Fault(f"this system trusts no authority of the server: {_HINT}")
    return Fault(
        f"the server's certificate is not from an authority in {credentials.folder}/ca.pem "
        f"({error.verify_message}): the credentials are another server's, or older than its "
        "authority; copy this device's folder from the server again",
    )


def _fault_of_client_certificate(credentials: Credentials) -> Fault:
    """Return why the server hung up after it received the client's certificate."""
    if credentials.certificate is None:
        return Fault(f"the server wants a client certificate: {_HINT}", _HANG_UPS)
    error = own_certificate_error(credentials)
    if error is not None:
        tries = math.inf if error.verify_code == NOT_YET_VALID else 1
        return Fault(describe_certificate_error(credentials, error), tries)
    return Fault(
        "the server hangs up when it sees this device's certificate: it does not trust its "
        f"authority; copy the folder {credentials.folder} from the server again",
        _HANG_UPS,
    )
