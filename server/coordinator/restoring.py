"""Noticing that a run's database is an older one than clients have seen, such as a backup."""

from __future__ import annotations

from featherfed.server.errors import ServerError
from featherfed.server.observability import events
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.store import Store


def notice_restore(settings: Settings, store: Store, run: str) -> None:
    """Count the rounds that this run repeats because an older database was put in place; log it.

    A client's update of such a round is published a second time, which the privacy spent counts.
    Raises ServerError if a private run may have been published further, and nobody knows how far.
    """
    publications, newest = store.publications, store.versions.newest().version
    in_database, in_file = publications.in_database(), publications.in_file(run)
    if in_file is None and publications.expects_file:
        if settings.private:
            raise _unknown(settings, store, run)
        events.run_restored(run, newest, None)
    lost = max(0, (in_file or 0) - in_database)
    if in_file != in_database or not publications.expects_file:
        with store.transaction():
            publications.set_repeated(publications.repeated + lost)
            publications.write_file(run)
    if lost:
        events.run_restored(run, newest, lost)


def _unknown(settings: Settings, store: Store, run: str) -> ServerError:
    repeated, newest = store.publications.repeated, store.versions.newest().version
    return ServerError(
        f"{store.place} is a copy, such as a backup: {store.publications.path} is "
        f"missing or another run's. It counts the versions that run {run} has published; those "
        f"after version {newest} would be repeated, which costs its clients privacy. Copy the file "
        "from where the run was served last. If it is lost, write this into it, with the newest "
        f"version that any client got in place of N, or with {settings.rounds} if nobody knows"
        f"{f', and {repeated} added to it' if repeated else ''}: "
        f'{{"run": "{run}", "published": N}}'
    )
