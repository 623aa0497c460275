"""The settings of `featherfed serve`: the run file's, with the command line's options."""

from __future__ import annotations

from pathlib import Path

from featherfed.api.announce import is_local_only
from featherfed.api.live_page import check_page
from featherfed.api.tracker_choice import check_trackers
from featherfed.server.access.enrolment import load
from featherfed.server.errors import ServerError
from featherfed.server.settings.settings import SecuritySettings, Settings, is_address
from featherfed.server.storage.postgres_address import PostgresAddress


def serve_settings(
    settings: Settings,
    host: str | None,
    port: int | None,
    credentials: Path | None,
    insecure: bool,
    page: str | None = None,
    postgres: str | None = None,
    advertise: str | None = None,
) -> Settings:
    """Return the settings with those options that are given; they replace the run file's.

    `page`: HOST:PORT of the live page. `postgres`: the database that holds the run. `advertise`:
    HOST:PORT at which the run's other servers reach this one. Raises
    ServerError if credentials cannot be loaded, for a database's address that cannot be used, and
    for a server or a page that other machines can reach without TLS unless `insecure` is set;
    ModuleNotFoundError if the page or the database needs packages that are not installed.
    """
    given = {
        "host": host, "port": port, "page": page, "postgres": postgres, "advertise": advertise,
    }  # fmt: skip
    address = {k: v for k, v in given.items() if v is not None}
    if page is not None and not is_address(page):
        raise ServerError(f"--page {page!r}: use HOST:PORT")
    if advertise is not None and not is_address(advertise):
        raise ServerError(f"--advertise {advertise!r}: use HOST:PORT")
    server = settings.server.model_copy(update=address)
    security = settings.security
    if credentials is not None or insecure:
        folder = None if credentials is None else str(credentials)
        changed = security.model_dump() | {"credentials": folder, "insecure": insecure}
        security = _security(changed)
    if security.credentials is None and not security.insecure and not is_local_only(server.host):
        raise ServerError(
            f"{server.host} can be reached by others, and the run has no credentials. Make them:\n"
            "  featherfed certs init certs --host NAME_OR_ADDRESS_OF_THIS_MACHINE\n"
            "  featherfed certs client certs NAME_OF_A_DEVICE ...\n"
            'and use them with --credentials certs, or [security] credentials = "certs"; or, if '
            "everybody in the network may read and send everything, --insecure"
        )
    if server.postgres is not None:
        from featherfed.server.storage.postgres_connection import parameters  # needs psycopg

        parameters(PostgresAddress(server.postgres, server.postgres_schema))
    check_trackers(server.trackers)
    if security.credentials is not None:
        load(Path(security.credentials))  # checked before the rest of the start, which takes long
    settings = settings.model_copy(update={"server": server, "security": security})
    check_page(settings)
    return settings


def _security(values: dict[str, object]) -> SecuritySettings:
    if values["credentials"] is not None and values["insecure"]:
        raise ServerError("--credentials and --insecure contradict each other; drop one")
    return SecuritySettings.model_validate(values)
