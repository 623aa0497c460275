"""Every fault of support/faults.py is refused or survived, and changes nothing for the honest."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.faults import DEADLINE, FAULTS, Fault, face


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_changes_nothing_for_honest_clients(fault: Fault, tmp_path: Path) -> None:
    result = face(fault, tmp_path)
    assert fault.expected in result.told
    assert result.unchanged, "the honest clients' model differs from the undisturbed run's"
    assert fault.alone or result.seconds < DEADLINE + fault.slack
