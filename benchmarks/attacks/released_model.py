"""A server releases models with a few fields changed to devices that only infer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support import model_mutations
from support.model_mutations import CLASSIFIES
from support.step_mutations import REFUSED, TRACEBACK

MUTATIONS = 800


def measure(scratch: Path) -> dict[str, Any]:
    """Return what became of the programs that classified with them; every mutation is one."""
    found = model_mutations.try_seeds(range(MUTATIONS), scratch)
    killed = MUTATIONS - found[CLASSIFIES] - found[REFUSED] - found[TRACEBACK]
    return {
        "mutated_models": MUTATIONS,
        "programs_that_classified": found[CLASSIFIES],
        "programs_that_refused_with_a_typed_error": found[REFUSED],
        "programs_that_ended_in_a_traceback": found[TRACEBACK],
        "programs_killed_by_a_signal_or_hung": killed,
    }
