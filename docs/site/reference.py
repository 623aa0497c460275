"""Makes the reference pages of docs/ from the code; `--check` only says which are stale."""

from __future__ import annotations

import sys
from pathlib import Path

from presets import coefficients, presets_table
from proto_page import protocol
from run_file import run_file

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- presets -->", "<!-- /presets -->"
MADE = "Made by `make reference`: do not edit."


def pages() -> dict[Path, str]:
    """Return every file that is made, with its text."""
    codecs = DOCS / "codecs.md"
    before, _, rest = codecs.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    comment = f"<!-- {MADE} -->"
    return {
        DOCS / "run-file.md": run_file(comment),
        DOCS / "protocol.md": protocol(ROOT / "proto" / "federation.proto", comment),
        DOCS / "site" / "static" / "coefficients.js": coefficients(RESULTS, MADE),
        codecs: f"{before}{BEGIN}\n{presets_table(RESULTS)}\n{END}{after}",
    }


def main() -> None:
    """Write the pages, or end with 1 if one is stale."""
    check = "--check" in sys.argv
    stale = False
    for path, text in pages().items():
        if path.exists() and path.read_text("utf-8") == text:
            continue
        stale = True
        if not check:
            path.write_text(text, "utf-8")
        print(f"{path.relative_to(ROOT)}: {'stale' if check else 'written'}")
    sys.exit(stale and check)


if __name__ == "__main__":
    main()
