"""Finds data files inside installed packages, whose code is not needed and not run."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def package_file(package: str, path: str) -> Path:
    """Return a file of an installed package; raise SystemExit with how to install it."""
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or []) if found else []:
        if (Path(folder) / path).is_file():
            return Path(folder) / path
    name = package.replace("_", "-")
    raise SystemExit(f"this example reads a file of {name}: pip install --no-deps {name}")
