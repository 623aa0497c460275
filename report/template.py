"""Fills the templates of pages and cards, every value escaped, and writes them whole."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from featherfed.compression.files import write_whole


@dataclass(frozen=True)
class Plot:
    """A picture on the page; ``uri`` holds the PNG itself."""

    title: str
    note: str
    alt: str
    uri: str


def fill(template: str, **values: object) -> str:
    """Return an HTML template of this folder filled in, every value escaped."""
    return _html().get_template(template).render(values)


def fill_block(template: str, block: str, **values: object) -> str:
    """Return one block of an HTML template filled in, every value escaped, without outer space."""
    found = _html().get_template(template)
    table = _html().get_template("parts.html").make_module().table  # type: ignore[attr-defined]
    context = found.new_context({"table": table, **values})
    return "".join(found.blocks[block](context)).strip()


def fill_markdown(
    template: str, filters: Mapping[str, Callable[..., str]], **values: object
) -> str:
    """Return a Markdown template of this folder filled in, every value escaped.

    `filters` make texts of values; `code` makes a code span, `name` is for file names in a block
    of code.
    """
    environment = _environment(autoescape=False, finalize=_escape_markdown)
    environment.filters.update({**filters, "code": _code, "name": _name})
    return environment.get_template(template).render(values)


@functools.cache
def _html() -> Environment:
    return _environment(autoescape=True)


def _environment(
    autoescape: bool, finalize: Callable[[object], object] | None = None
) -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _escape_markdown(value: object) -> object:
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return re.sub(r"([\\`*_\[\]<>|#~&!$])", r"\\\1", value)


def _code(value: str) -> Markup:
    # Nothing escapes a backtick inside a code span, and a bar ends a table's cell even there.
    return Markup(f"`{value.replace('`', chr(39)).replace('|', '/')}`")


def _name(value: str) -> Markup:
    return Markup(re.sub(r"[^\w.-]", "_", value))


def write(path: Path, text: str) -> Path:
    """Replace a page; a reader that reloads it must never see half of it."""
    write_whole(path, text)
    return path
