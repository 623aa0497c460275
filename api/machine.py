"""Describe the machine and the version of the code that a measurement was made on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path


def machine() -> dict[str, str]:
    """Return architecture, cores and Python version, and the commit if this is a checkout."""
    fields = {
        "architecture": platform.machine(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
    }
    if shutil.which("git") is None:  # in a container, say
        return fields
    repository = Path(__file__).resolve().parent.parent
    found = subprocess.run(
        ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {**fields, "commit": found.stdout.strip()} if found.returncode == 0 else fields
