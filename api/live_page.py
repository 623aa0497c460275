"""The live page of a server: what it shows, what can be done on it, and where it is."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherfed.api.announce import is_local_only
from featherfed.api.server_status import join_line
from featherfed.compression.files import write_whole
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import NotNow, ServerError
from featherfed.server.observability.log_lines import LogLines
from featherfed.server.observability.recent_metrics import RecentMetrics
from featherfed.server.observability.snapshot import Snapshots, steady
from featherfed.server.settings.settings import Settings

if TYPE_CHECKING:
    from featherfed.page.server import PageSocket
    from featherfed.page.source import Action

log = logging.getLogger(__name__)

TOKEN_FILE = "page.token"
"""In a run's output folder: what a request shows to act, and to read from another machine."""
ADDRESS_FILE = "page.address"
"""Beside it: the URL of the page while it is served."""
_PACKAGES = ("starlette", "uvicorn", "jinja2")


def check_page(settings: Settings) -> None:
    """Raise an error if the live page that settings ask for cannot be served.

    ModuleNotFoundError if a package is missing; ServerError if others could reach the page, and
    read along what it says, token included.
    """
    address = settings.server.page
    if address is None:
        return
    for module in _PACKAGES:
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"{module} is not installed", name=module)
    security = settings.security
    local = _is_local(address)
    if not local and security.credentials is None and not security.insecure:
        raise ServerError(
            f"others can reach a live page at {address}, and without encryption they can read its "
            "token; let it listen at 127.0.0.1 and forward it with ssh -L, or give the run "
            "credentials (featherfed certs), which encrypt the page too, or allow it with "
            "[security] insecure"
        )


def _is_local(address: str) -> bool:
    return is_local_only(address.rpartition(":")[0].strip("[]"))


class LivePage:
    """The page of one server process, from before its start until its end."""

    def __init__(self, settings: Settings) -> None:
        """Take the page's address, if there is to be one; raise ServerError if that cannot be."""
        self._settings = settings
        self._lines = LogLines()
        self._socket: PageSocket | None = None
        if settings.server.page is not None:
            from featherfed.page.server import PageSocket

            self._socket = PageSocket(settings.server.page)

    @contextlib.contextmanager
    def prepared(self) -> Iterator[LivePage]:
        """Collect the log inside of this block, and give the address back in the end."""
        with contextlib.ExitStack() as stack:
            if self._socket is not None:
                stack.callback(self._socket.close)
                stack.enter_context(self._lines.collecting())
            yield self

    @contextlib.contextmanager
    def served(
        self,
        coordinator: Coordinator,
        address: str,
        facts: dict[str, Any],
        export: Callable[[], Path],
    ) -> Iterator[None]:
        """Serve the page inside of this block, if there is to be one.

        `address`: where clients find the server. `facts`: entries of metrics.json that the store
        does not know. `export` makes the files of the newest version.
        """
        where = self._settings.server.page
        if self._socket is None or where is None:
            yield
            return
        from featherfed.page.access import Access, write_token
        from featherfed.page.live_sections import LiveSections
        from featherfed.page.server import Keys, PageServer
        from featherfed.report.sections import shell

        store, settings, task = coordinator.store, self._settings, coordinator.task
        local = _is_local(where)
        folder = settings.security.credentials
        keys = None
        if folder is not None and not local:
            keys = Keys(Path(folder) / "server.pem", Path(folder) / "server-key.pem")
        sent = coordinator.manifest.sent.num_values
        snapshots = Snapshots(
            store, task, 4 * sent, coordinator.moment, self._lines, join_line(settings, address)
        )
        metrics = RecentMetrics(
            store, lambda: coordinator.settings, task, coordinator.manifest, facts
        )
        access = Access.of(local, settings.server.page_hosts)
        exports = Exports(coordinator, export)
        server = PageServer(
            self._socket, access, LiveSections(snapshots.make, metrics.collect),
            _actions(coordinator, exports), shell, steady, keys,
        )  # fmt: skip
        token = Path(settings.output) / TOKEN_FILE
        address_file = Path(settings.output) / ADDRESS_FILE
        write_token(token, access.token)
        server.start()
        write_whole(address_file, server.url)
        log.info(
            "live page: %s (its actions need the token in %s)", server.url, token,
            extra={"event": "page", "url": server.url},
        )  # fmt: skip
        try:
            yield
        finally:
            server.close()
            token.unlink(missing_ok=True)
            address_file.unlink(missing_ok=True)
            exports.close()


class Exports:
    """Makes the files of the newest version in a thread, one at a time."""

    def __init__(self, coordinator: Coordinator, export: Callable[[], Path]) -> None:
        self._run = coordinator.plan.run
        self._export = export
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self) -> str:
        """Begin an export; raise NotNow while another one goes on."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise NotNow("an export is being made; the log says when it is done")
            self._thread = threading.Thread(target=self._work, name="export")
            self._thread.start()
        return "the files of the newest version are being made; the log says where they are"

    def close(self) -> None:
        """Wait for the export that goes on."""
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        fields = {"event": "exported", "run": self._run}
        try:
            folder = self._export()
        except (ValueError, OSError) as error:  # whose texts are made for people
            log.warning("no export: %s", error, extra={**fields, "folder": None})
        else:
            log.info("exported: %s", folder, extra={**fields, "folder": str(folder)})


def _actions(coordinator: Coordinator, exports: Exports) -> dict[str, Action]:
    from featherfed.page.source import Action

    operator = coordinator.operator
    return {
        "pause": Action(operator.pause),
        "resume": Action(operator.resume),
        "end": Action(operator.end),
        "extend": Action(operator.extend, {"rounds": int}),
        "exclude": Action(operator.exclude, {"client": str}),
        "include": Action(operator.include, {"client": str}),
        "export": Action(exports.begin),
    }
