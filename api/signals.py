"""End commands on SIGTERM and Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading

log = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_on_sigterm(message: str, status: int | None = None) -> None:
    """End this process on SIGTERM, at once, after logging `message`.

    The exit status is `status`; without one the signal itself ends the process, so that shells and
    systemd see it. Call this before any thread is started: threads inherit the signal mask.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait_for_sigterm() -> None:
        signal.sigwait({signal.SIGTERM})
        log.warning(message)
        if status is not None:
            os._exit(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(128 + signal.SIGTERM)  # a container's first process: the signal does nothing to it

    threading.Thread(target=wait_for_sigterm, name="sigterm", daemon=True).start()


def stop_on_signal(stop: asyncio.Event) -> None:
    """Set `stop` on the first SIGTERM or SIGINT; the second one ends the process at once.

    Only Python's main thread gets signals: in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()

    def on_first_signal() -> None:
        for signal_ in _STOP_SIGNALS:
            loop.remove_signal_handler(signal_)
            signal.signal(signal_, signal.SIG_DFL)
        log.warning("going down; a second signal ends at once, which loses nothing either")
        stop.set()

    for signal_ in _STOP_SIGNALS:
        loop.add_signal_handler(signal_, on_first_signal)
    # The parent process may have blocked them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
