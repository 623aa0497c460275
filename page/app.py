"""The live page's addresses: the page, its JSON, its events and its actions."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Route
from starlette.types import ASGIApp

from featherfed.page.access import Access
from featherfed.page.errors import BadRequest
from featherfed.page.feed import Feed, begin
from featherfed.page.guard import Guard
from featherfed.page.source import Action
from featherfed.page.stream import EventStream
from featherfed.server.errors import CannotStore, ServerError

MAX_BODY = 4096
"""Bytes of an action's JSON."""
SCRIPT = Path(__file__).with_name("live.js").read_text("utf-8")
CONTROLS = Path(__file__).with_name("controls.html").read_text("utf-8")
"""The part of the page with the connection's state and the actions; it never changes."""


def policy() -> str:
    """Return the page's Content-Security-Policy: its own script, nothing from elsewhere."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


class PageApp:
    """Answers the requests that the guard lets through."""

    def __init__(
        self,
        feed: Feed,
        access: Access,
        actions: Mapping[str, Action],
        shell: Callable[[str, Mapping[str, str], str], str],
        cookie: str,
    ) -> None:
        """`shell`: (title, parts, script) -> a whole page. `cookie`: the name of the page's."""
        self._feed = feed
        self._access = access
        self._actions = actions
        self._shell = shell
        self._cookie = cookie

    def asgi(self) -> ASGIApp:
        """Return the application with its guard."""
        routes = [
            Route("/", self._page),
            Route("/favicon.ico", self._no_icon),
            Route("/api/run", self._run),
            Route("/api/events", self._events),
            Route("/api/page", self._changes),
            Route("/api/actions/{name}", self._act, methods=["POST"]),
        ]
        app = Starlette(routes=routes, exception_handlers={BadRequest: _refused})
        return Guard(app, self._access, policy())

    async def _page(self, request: Request) -> Response:
        if (given := request.query_params.get("token")) is not None:
            return self._let_in(request, given)
        self._check_reader(request)
        frame = await self._feed.current(with_sections=True)
        if not frame.sections:
            raise BadRequest("nothing can be shown yet; the server's log says why", 503)
        parts = {}
        for name, html in frame.sections.items():
            parts[name] = html
            if name == "nav":
                parts["controls"] = CONTROLS
        title = str(frame.snapshot["run"])
        html = await asyncio.to_thread(self._shell, title, parts, SCRIPT)
        return HTMLResponse(html)

    def _let_in(self, request: Request, given: str) -> Response:
        """Take a token out of the address, and give a cookie that lets read."""
        if not self._access.is_token(given):
            raise _unknown()
        answer = RedirectResponse(request.url.path, 303)
        answer.set_cookie(
            self._cookie, self._access.cookie, httponly=True, samesite="strict", path="/",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return answer

    async def _no_icon(self, request: Request) -> Response:
        return Response(status_code=204)

    async def _run(self, request: Request) -> Response:
        self._check_reader(request)
        frame = await self._feed.current(with_sections=False)
        if not frame.number:
            raise BadRequest("nothing is known of the run yet; the server's log says why", 503)
        return JSONResponse(frame.snapshot)

    async def _events(self, request: Request) -> ASGIApp:
        self._check_reader(request)
        return EventStream(self._feed.snapshots(), begin(), self._feed.watching(False))

    async def _changes(self, request: Request) -> ASGIApp:
        self._check_reader(request)
        return EventStream(self._feed.changes(), begin(), self._feed.watching(True))

    def _check_reader(self, request: Request) -> None:
        cookie = request.cookies.get(self._cookie, "")
        if not self._access.may_read(request.headers.get("authorization", ""), cookie):
            given = request.query_params.get("token")
            if given is None or not self._access.is_token(given):
                raise _unknown()

    async def _act(self, request: Request) -> Response:
        if not self._access.may_act(request.headers.get("authorization", "")):
            raise _unknown()
        name = request.path_params["name"]
        action = self._actions.get(name)
        if action is None:
            known = ", ".join(self._actions)
            raise BadRequest(f"there is no such action; there are {known}", 404)
        arguments = action.arguments(await _body(request))
        try:
            done = await asyncio.to_thread(action.work, **arguments)
        except CannotStore as error:
            raise BadRequest(error.detail, 503) from error
        except ServerError as error:
            raise BadRequest(str(error), 409) from error
        return JSONResponse({"done": done})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, BadRequest), "registered for no other"
    return PlainTextResponse(
        f"{error.text}\n", error.status, {"Retry-After": "5"} if error.status == 503 else None
    )


async def _body(request: Request) -> object:
    """Return the JSON of a request's body, `{}` for an empty one."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BadRequest("the body is JSON, with Content-Type: application/json", 415)
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise BadRequest(f"the body has at most {MAX_BODY} bytes", 413)
    try:
        return json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is not JSON") from error


def _unknown() -> BadRequest:
    return BadRequest(
        "the token is missing or wrong; it is in page.token of the run's output folder, another "
        "one after each start of the server",
        401,
    )
