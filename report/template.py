"""Pages that need nothing but themselves: templates filled and written whole."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


@dataclass(frozen=True)
class Plot:
    """A picture on the page; ``uri`` holds the PNG itself."""

    title: str
    note: str
    alt: str
    uri: str


def fill(template: str, **values: object) -> str:
    """Return a template of this folder filled in, every value escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)


def write(path: Path, text: str) -> Path:
    """Replace a page; a reader that reloads it must never see half of it."""
    draft = path.with_suffix(".html.part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
    return path
