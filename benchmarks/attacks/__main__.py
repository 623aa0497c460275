"""Makes attacks that once succeeded, and measures what they do now: `python benchmarks/attacks`.

An attack is a module of this folder with a function `measure(scratch)` that returns what it
measured. Results go to benchmarks/results/attacks/after/NAME.json; those in `before/` were made by
the same modules on the code of before (`--before`, with that code on PYTHONPATH).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "attacks"
sys.path.insert(0, str(ROOT / "tests"))  # attacks use tests/support

from support.scripts import load_script  # noqa: E402

ATTACKS = sorted(path.stem for path in HERE.glob("*.py") if path.stem != "__main__")


def measure(name: str) -> dict[str, Any]:
    """Return the figures of one attack."""
    module = load_script(HERE / f"{name}.py")
    with tempfile.TemporaryDirectory() as scratch:
        figures: dict[str, Any] = module.measure(Path(scratch))
    return figures


def main() -> None:
    """Make the attacks asked for, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    parser.add_argument("--before", action="store_true", help="this is the code of before")
    options = parser.parse_args()
    folder = RESULTS / ("before" if options.before else "after")
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.attacks or ATTACKS:
        figures = measure(name)
        print(json.dumps({name: figures}, indent=1), flush=True)
        (folder / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
