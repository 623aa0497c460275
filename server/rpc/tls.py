"""The server's TLS key and certificates, reloaded when their files change."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from featherfed.server.access.watched_files import WatchedFiles
from featherfed.server.errors import ServerError
from featherfed.server.observability.once import LogOnce

log = logging.getLogger(__name__)

WARN_DAYS = 30
"""Days before its expiry from which on the log warns of it."""

_FILES = ("server.pem", "server-key.pem", "ca.pem")


class ServerKeys:
    """Serves every new connection with the newest certificate in a folder of `featherfed certs`."""

    def __init__(self, folder: Path, client_certificates: bool) -> None:
        """Read the files; raise ServerError if they cannot be used.

        `client_certificates`: whether clients must present one.
        """
        self._folder = folder
        self._client_certificates = client_certificates
        self._log = LogOnce(log)
        self._files = WatchedFiles([folder / name for name in _FILES], self._read)

    def credentials(self) -> grpc.ServerCredentials:
        """Return gRPC credentials that follow the files."""
        return grpc.dynamic_ssl_server_credentials(
            self._files.get(),
            self._newest,  # type: ignore[arg-type]  # None is allowed: nothing new
            require_client_authentication=self._client_certificates,
        )

    def _newest(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            return self._files.get()
        except ServerError as error:  # only some of the files are new; gRPC keeps what it has
            self._log.error(f"still using the server certificate from before: {error}")
            return None

    def _read(self) -> grpc.ServerCertificateConfiguration:
        try:
            chain, key, trusted = ((self._folder / name).read_bytes() for name in _FILES)
        except OSError as error:
            raise ServerError(
                f"cannot read {error.filename}: {error.strerror}; `featherfed certs init` makes "
                "it, readable for its owner alone"
            ) from error
        _check(self._folder, chain, key, trusted)
        return grpc.ssl_server_certificate_configuration([(key, chain)], trusted)


def _check(folder: Path, chain: bytes, key: bytes, trusted: bytes) -> None:
    """Raise ServerError unless these are a valid certificate, its key, and authorities (PEM)."""
    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
        x509.load_pem_x509_certificates(trusted)
        public = serialization.load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError) as error:
        raise ServerError(f"{folder} holds a file that is not PEM: {error}") from error
    if public != certificate.public_key():
        raise ServerError(f"{folder / 'server-key.pem'} is not the key of server.pem")
    left = certificate.not_valid_after_utc.timestamp() - time.time()
    renew = f"featherfed certs rotate {folder}"
    if left < 0:
        raise ServerError(f"{folder / 'server.pem'} has expired; {renew}")
    if left < WARN_DAYS * 86400:
        log.warning("the server's certificate expires in %d days; %s", left // 86400, renew)
