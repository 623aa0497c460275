"""What every request to the live page passes, and what every answer says to the browser."""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featherfed.page.access import Access, header, is_own_origin
from featherfed.page.errors import BadRequest

log = logging.getLogger(__name__)

_SAFE = ("GET", "HEAD")


class Guard:
    """Refuses requests that come by another name or from another page; adds headers to answers."""

    def __init__(self, app: ASGIApp, access: Access, policy: str) -> None:
        """`policy`: the Content-Security-Policy of the page."""
        self._app = app
        self._access = access
        self._headers = [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"x-frame-options", b"DENY"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cache-control", b"no-store"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the page do it."""
        if scope["type"] != "http":
            raise RuntimeError(f"the page answers HTTP, not {scope['type']}")
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, answer)
        except BadRequest as error:
            await _say(answer, error.status, error.text)
        except Exception:
            log.exception("the live page could not answer %s", scope["path"])
            if not started:
                await _say(answer, 500, "a failure of the server's own; its log says why")

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        host = hosts[0].decode("latin-1") if len(hosts) == 1 else ""
        server = scope.get("server")
        if not self._access.knows_host(host, server[0] if server else None):
            raise BadRequest(
                "this page does not answer under this name; use the address that the server "
                "prints, or name it in [server] page_hosts",
                403,
            )
        origin = header(headers, b"origin")
        foreign = origin and not is_own_origin(origin, scope["scheme"], host)
        if scope["method"] not in _SAFE and foreign:
            raise BadRequest("actions come from the page itself, not from another one", 403)


async def _say(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})
