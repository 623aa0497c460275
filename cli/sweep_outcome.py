"""How one case of a sweep went."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from featherfed.sweep.grid import Case


@dataclass(frozen=True)
class Outcome:
    """A case's metrics, or why there are none: `error` in a line, `details` with a traceback."""

    case: Case
    metrics: dict[str, Any] | None = None
    error: str = ""
    details: str = ""

    @classmethod
    def of_error(cls, case: Case, error: Exception) -> Outcome:
        """Return that a case ended with an error."""
        text = "".join(traceback.format_exception(error))
        line = next(iter(str(error).splitlines()), "")
        return cls(case, error=f"{type(error).__name__}: {line}", details=text)


class Runner(Protocol):
    """Runs cases somewhere."""

    def run(self, cases: Sequence[Case]) -> Iterator[Outcome]:
        """Yield how each case went, as they end."""
