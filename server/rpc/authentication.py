"""The proof of a name on every call: an enrolment token and, by default, a client certificate."""

from __future__ import annotations

import logging
import ssl
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import grpc.aio

from featherfed.proto import federation_pb2 as pb
from featherfed.server.access import enrolment
from featherfed.server.access.watched_files import WatchedFiles
from featherfed.server.errors import Refused, ServerError
from featherfed.server.observability.once import LogOnce
from featherfed.server.rpc.context import Context, Refuse
from featherfed.server.rpc.handlers import CheckedRequests, Requests, call_of, handler_of

log = logging.getLogger(__name__)

_BEARER = "Bearer "

_proven: ContextVar[str | None] = ContextVar("proven", default=None)


def proven_name() -> str | None:
    """Return the name that this call's caller has proven; None on a server without credentials."""
    return _proven.get()


class AuthenticationInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses callers that are not enrolled.

    A revoked client is refused from the next call on, and in a call from its next message on.
    """

    def __init__(self, folder: Path, client_certificates: bool, refuse: Refuse) -> None:
        """Read who is enrolled from `folder`; raise ServerError if that cannot be read.

        `client_certificates`: whether a certificate must prove the name too.
        """
        self._certificates = client_certificates
        self._refuse = refuse
        self._log = LogOnce(log)
        path = folder / enrolment.FILE_NAME
        self._enrolled = WatchedFiles([path], lambda: enrolment.load(folder))

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Return the call's handler with the check before it."""
        handler = await continuation(details)
        if handler is None:
            return None
        call = call_of(handler)

        async def guarded(requests: Requests, context: Context) -> Any:
            await self._admit(context)
            return await call(CheckedRequests(context, lambda: self._prove(context)), context)

        return handler_of(guarded, handler)

    async def _admit(self, context: Context) -> None:
        try:
            _proven.set(self._prove(context))
        except Refused as refusal:
            await self._refuse(context, refusal)
            raise

    def _prove(self, context: Context) -> str:
        """Return the name that token and certificate prove; raise Refused if they prove none."""
        try:
            enrolled = self._enrolled.get()
        except ServerError as error:  # nobody can be identified now, so everybody waits
            self._log.error(f"{error}; nobody gets in until then")
            raise Refused(
                pb.STORAGE, "the server cannot read who is enrolled now; its log says why"
            ) from error
        certificate = _certificate(context) if self._certificates else None
        return enrolled.prove(_token(context), certificate, time.time())


def _token(context: Context) -> str | None:
    values = [value for key, value in context.invocation_metadata() if key == "authorization"]
    if len(values) != 1 or not str(values[0]).startswith(_BEARER):
        return None
    return str(values[0]).removeprefix(_BEARER)


def _certificate(context: Context) -> bytes:
    """Return the caller's certificate (DER), which the handshake has verified."""
    (pem,) = context.auth_context()["x509_pem_cert"]
    return ssl.PEM_cert_to_DER_cert(pem.decode())
