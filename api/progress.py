"""Progress bars: in a terminal on standard error, in a notebook below the cell, else none."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any, NoReturn

from tqdm import tqdm


def progress_bar(
    what: str, unit: str, total: int | None = None, shown: bool | None = None
) -> tqdm[NoReturn]:
    """Return a progress bar that is erased at its end; a context manager.

    `shown`: None for wherever somebody can see it.
    """
    options: dict[str, Any] = {"desc": what, "unit": unit, "total": total, "leave": False}
    if not in_notebook():
        hidden = None if shown is None else not shown
        return tqdm(**options, disable=hidden, dynamic_ncols=True)
    hidden = shown is False
    if importlib.util.find_spec("ipywidgets"):
        from tqdm.notebook import tqdm as notebook_bar

        bar: tqdm[NoReturn] = notebook_bar(**options, disable=hidden)
        return bar
    return tqdm(**options, disable=hidden, file=sys.stdout)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"
