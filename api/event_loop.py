"""Calls of code with an event loop of its own, from where one runs already, as in a notebook."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def outside_of_loop(function: Callable[[], T], on_interrupt: Callable[[], None]) -> T:
    """Return `function()`, called in a thread of its own if an event loop runs in this one.

    `on_interrupt` shall make the function end, on Ctrl-C or a notebook's stop button; this waits
    for it, and then raises KeyboardInterrupt.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function()
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="featherfed")
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        on_interrupt()
        thread.join()
        raise
    if errors:
        raise errors[0]
    return results[0]
