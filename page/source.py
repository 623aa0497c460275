"""What a live page shows and can do, as its server sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from featherfed.page.errors import BadRequest

Snapshot = dict[str, Any]
"""What GET /api/run answers; docs/live-page.md has the schema."""
MOST = 10**9
"""The largest number that an action takes."""
MAX_TEXT = 100
"""Characters of a text that an action takes."""


class Source(Protocol):
    """Says how the run is; both are called in a thread, one at a time."""

    def snapshot(self) -> Snapshot:
        """Return the snapshot of now, which nobody changes."""

    def sections(self, snapshot: Snapshot) -> dict[str, str]:
        """Return the page's parts as HTML by name, in order."""


@dataclass(frozen=True)
class Action:
    """Something that can be done: `work` is called in a thread, and says in words what was done.

    `parameters`: names and types of the arguments that it takes. `work` raises ServerError, or
    CannotStore, if it cannot be done.
    """

    work: Callable[..., str]
    parameters: Mapping[str, type[int] | type[str]] = field(default_factory=dict)

    def arguments(self, values: object) -> dict[str, int | str]:
        """Return the arguments in a request's JSON; raise BadRequest if it holds others."""
        if not isinstance(values, dict) or values.keys() != self.parameters.keys():
            names = ", ".join(f'"{name}"' for name in self.parameters) or "nothing"
            raise BadRequest(f"the body is a JSON object that holds {names}")
        for name, kind in self.parameters.items():
            if type(values[name]) is not kind:
                what = "a whole number" if kind is int else "a text"
                raise BadRequest(f'"{name}" is {what}')
            if isinstance(values[name], int) and abs(values[name]) > MOST:
                raise BadRequest(f'"{name}" is at most {MOST}')
            if isinstance(values[name], str) and len(values[name]) > MAX_TEXT:
                raise BadRequest(f'"{name}" has at most {MAX_TEXT} characters')
        return values
