"""What SIGTERM and Ctrl-C do to a command."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading

log = logging.getLogger(__name__)

_ENDS = (signal.SIGINT, signal.SIGTERM)


def say_on_sigterm(message: str, status: int | None = None) -> None:
    """Log `message` when SIGTERM comes, and end with `status`.

    Without one, die of the signal, so that shells and systemd see what it was.
    At once, whatever the main thread is in the middle of. To be called before threads are started:
    they inherit that the signal is not for them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        signal.sigwait({signal.SIGTERM})
        log.warning(message)
        if status is not None:
            os._exit(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="sigterm", daemon=True).start()


def stop_on_signal(stop: asyncio.Event) -> None:
    """Set `stop` on the first SIGTERM or SIGINT; the second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        for signal_ in _ENDS:
            loop.remove_signal_handler(signal_)
            signal.signal(signal_, signal.SIG_DFL)
        log.warning("going down; a second signal ends at once, which loses nothing either")
        stop.set()

    for signal_ in _ENDS:
        loop.add_signal_handler(signal_, first)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)  # whoever started this may have blocked them
