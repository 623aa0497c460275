"""A server sends LiteRT clients training steps with a few fields changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support import step_mutations
from support.step_mutations import CRASHED, REFUSED, STOPPED, TRACEBACK, TRAINS

MUTATIONS = 1500


def measure(scratch: Path) -> dict[str, Any]:
    """Return what became of the clients; every mutation is one, with two steps of training."""
    found = step_mutations.try_seeds(range(MUTATIONS))
    contained = found[CRASHED] + found[STOPPED]
    fine = found[TRAINS] + found[REFUSED] + contained
    return {
        "mutated_steps": MUTATIONS,
        "clients_that_trained": found[TRAINS],
        "clients_that_refused_with_a_typed_error": found[REFUSED] + contained,
        "of_these_after_a_crash_of_the_steps_own_process": contained,
        "clients_that_ended_in_a_traceback": found[TRACEBACK],
        "clients_killed_by_a_signal_or_hung": MUTATIONS - fine - found[TRACEBACK],
    }
