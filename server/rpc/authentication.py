"""Who gets in: TLS with the files of `featherfed certs`, and the proof of a name on every call."""

from __future__ import annotations

import contextlib
import inspect
import logging
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from featherfed.proto import federation_pb2 as pb
from featherfed.server.access import enrolment
from featherfed.server.access.enrolment import Watched
from featherfed.server.errors import Refused, ServerError

log = logging.getLogger(__name__)

WARN_DAYS = 30
_BEARER = "Bearer "
_FILES = ("server.pem", "server-key.pem", "ca.pem")

_proven: ContextVar[str | None] = ContextVar("proven", default=None)

Context = Any  # grpc.aio.ServicerContext
Abort = Callable[[Context, Refused], Awaitable[None]]


def proven_name() -> str | None:
    """Return the name that the caller of this call has proven; None on a server without a gate."""
    return _proven.get()


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Lets only enrolled clients call anything.

    Whoever is revoked is refused from the next call on, and in a call from its next message on.
    """

    def __init__(self, folder: Path, client_certificates: bool, refuse: Abort) -> None:
        """Use the files in `folder`; `refuse` ends a call.

        Raises ServerError if they cannot be used.
        """
        self._folder = folder
        self._certificates = client_certificates
        self._refuse = refuse
        self._said = ""
        self._enrolled = Watched([folder / enrolment.FILE_NAME], lambda: enrolment.load(folder))
        self._keys = Watched([folder / name for name in _FILES], self._read_keys)

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials that follow the files: every connection gets the newest."""
        return grpc.dynamic_ssl_server_credentials(
            self._keys.get(),
            self._newest_keys,  # type: ignore[arg-type]  # None is allowed: nothing new
            require_client_authentication=self._certificates,
        )

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Return the call's handler with the check before it."""
        handler = await continuation(details)
        if handler is None:
            return None
        kind = f"{_arity(handler.request_streaming)}_{_arity(handler.response_streaming)}"
        method = getattr(handler, kind)
        if inspect.isasyncgenfunction(method):
            guarded: Callable[..., Any] = self._guarded_replies(method)
        else:
            guarded = self._guarded(method, handler.request_streaming)
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            guarded,
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _guarded(
        self, method: Callable[..., Awaitable[Any]], streaming: bool
    ) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:
            await self._admit(context)
            return await method(self._watched(request, context) if streaming else request, context)

        return call

    async def _watched(
        self, requests: AsyncIterator[Any], context: Context
    ) -> AsyncGenerator[Any, None]:
        """Pass requests on, and refuse in their midst or at their end whoever was revoked."""
        async for request in requests:
            self._name(context)
            yield request
        self._name(context)

    def _guarded_replies(
        self, method: Callable[..., AsyncGenerator[Any, None]]
    ) -> Callable[..., AsyncIterator[Any]]:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            await self._admit(context)
            # Closed with this one, so that a call that broke off is counted at once.
            async with contextlib.aclosing(method(request, context)) as replies:
                async for reply in replies:
                    await self._admit(context)
                    yield reply

        return call

    async def _admit(self, context: Context) -> None:
        try:
            _proven.set(self._name(context))
        except Refused as refusal:
            await self._refuse(context, refusal)
            raise

    def _name(self, context: Context) -> str:
        try:
            enrolled = self._enrolled.get()
        except ServerError as error:  # nobody can be told from a stranger now, but all may wait
            self._say(f"{error}; nobody gets in until then")
            raise Refused(
                pb.STORAGE, "the server cannot read who is enrolled now; its log says why"
            ) from error
        certificate = _certificate(context) if self._certificates else None
        return enrolled.prove(_token(context), certificate, time.time())

    def _newest_keys(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            return self._keys.get()
        except ServerError as error:  # half of the files are new; gRPC keeps what it has
            self._say(f"still using the server certificate from before: {error}")
            return None

    def _say(self, message: str) -> None:
        if message != self._said:  # once, and not for everybody who calls
            log.error("%s", message)
        self._said = message

    def _read_keys(self) -> grpc.ServerCertificateConfiguration:
        try:
            chain, key, trusted = ((self._folder / name).read_bytes() for name in _FILES)
        except OSError as error:
            raise ServerError(
                f"cannot read {error.filename}: {error.strerror}; `featherfed certs init` makes "
                "it, readable for its owner alone"
            ) from error
        _check_pair(self._folder, chain, key, trusted)
        return grpc.ssl_server_certificate_configuration([(key, chain)], trusted)


def _check_pair(folder: Path, chain: bytes, key: bytes, trusted: bytes) -> None:
    """Raise ServerError unless these are a certificate that is valid, its key, and authorities."""
    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
        x509.load_pem_x509_certificates(trusted)
        fits = serialization.load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError) as error:
        raise ServerError(f"{folder} holds a file that is not PEM: {error}") from error
    if fits != certificate.public_key():
        raise ServerError(f"{folder / 'server-key.pem'} is not the key of server.pem")
    left = certificate.not_valid_after_utc.timestamp() - time.time()
    renew = f"featherfed certs rotate {folder}"
    if left < 0:
        raise ServerError(f"{folder / 'server.pem'} has expired; {renew}")
    if left < WARN_DAYS * 86400:
        log.warning("the server's certificate expires in %d days; %s", left // 86400, renew)


def _token(context: Context) -> str | None:
    values = [value for key, value in context.invocation_metadata() if key == "authorization"]
    if len(values) != 1 or not str(values[0]).startswith(_BEARER):
        return None
    return str(values[0]).removeprefix(_BEARER)


def _certificate(context: Context) -> bytes:
    """Return the caller's certificate (DER), which the handshake has verified."""
    (pem,) = context.auth_context()["x509_pem_cert"]
    return ssl.PEM_cert_to_DER_cert(pem.decode())


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"
