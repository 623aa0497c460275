"""Runs the sessions of some clients in one process: a thread each, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from featherfed.edge_client.session import Session
from featherfed.edge_client.state import HeldModel


def run_sessions(
    sessions: Sequence[Session],
    lock: AbstractContextManager[Any],
    fail: Callable[[BaseException], None],
) -> list[HeldModel]:
    """Run sessions to the end; return what they hold then, in no order.

    Each holds `lock`, except while its transport lets go of it. `fail` is called with each error,
    and makes all others give up; the first error is raised.
    """
    held: list[HeldModel] = []
    errors: list[BaseException] = []

    def run(session: Session) -> None:
        with lock:
            try:
                held.append(session.run())
            except BaseException as error:
                errors.append(error)
                fail(error)

    threads = [threading.Thread(target=run, args=(s,), daemon=True) for s in sessions]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt as interrupt:
        fail(interrupt)
        for thread in threads:  # each ends at its next call
            thread.join()
        raise
    if errors:
        raise errors[0]
    return held
