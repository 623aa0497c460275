"""The reference of run files: every section and key of the settings' pydantic models."""

from __future__ import annotations

import ast
import enum
import inspect
import itertools
import json
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from featherfed.server.settings.section import Section
from featherfed.server.settings.settings import Settings

_HEAD = """# The run file

{made}

What `featherfed serve` reads, as TOML. Sections and keys may be left out, but for those whose
default is *needed*; an unknown key is an error that names the one that was probably meant.
A default of *none* means that the key is left out. [examples/run.toml](../examples/run.toml)
is a file with comments; [tasks.md](tasks.md) says more about `[task]`.
"""


def run_file(made: str) -> str:
    """Return docs/run-file.md; `made`: the line that says how it is made."""
    return "\n".join([_HEAD.format(made=made), *_section("", Settings)])


def _section(path: str, section: type[Section]) -> Iterator[str]:
    """Yield the lines of a section and of those inside of it; `path`: its name in the file."""
    yield f"## {f'`[{path}]`' if path else 'At the top'}"
    yield ""
    yield inspect.cleandoc(section.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    yield ""
    yield "| key | default | takes | meaning |"
    yield "|---|---|---|---|"
    inner: list[tuple[str, type[Section]]] = []
    told = _told(section)
    for key, field in section.model_fields.items():
        sections = [one for one in _types(field.annotation) if _is_section(one)]
        if sections:
            name = f"{path}.{key}" if path else key
            inner.append((f"[{name}]" if _is_list(field.annotation) else name, sections[0]))
            if not told.get(key):
                continue
        meaning = _cell(
            told[key].replace("; None: ", "; by default ").replace("None: ", "By default ")
        )
        yield f"| `{key}` | {_default(field)} | {_takes(field)} | {meaning} |"
    yield ""
    for name, one in inner:
        yield from _section(name, one)


def _told(section: type[Section]) -> dict[str, str]:
    """Return key -> the docstring below it, in one line, of a section and those it is made from."""
    found: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        if not _is_section(cls):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
        (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef))
        for pair in itertools.pairwise(body):
            match pair:
                case (
                    ast.AnnAssign(target=ast.Name(id=key)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[key] = " ".join(text.split())
    return found


def _is_section(what: Any) -> bool:
    return isinstance(what, type) and issubclass(what, Section) and what is not Section


def _types(annotation: Any) -> list[Any]:
    inner = get_args(annotation)
    return [annotation] if not inner else [one for part in inner for one in _types(part)]


def _is_list(annotation: Any) -> bool:
    return str(annotation).startswith("tuple")


def _default(field: Any) -> str:
    if field.default_factory is not None:
        return "`{}`"
    value = field.default
    if value is PydanticUndefined:
        return "*needed*"
    if value is None:
        return "*none*"
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, tuple):
        value = list(value)
    return f"`{_cell(json.dumps(value))}`"


def _cell(text: str) -> str:
    """Return a text as a table's cell holds it."""
    return text.replace("|", "\\|")


def _takes(field: Any) -> str:
    """Return the type of a key's value, its words, and its bounds."""
    parts = []
    choices = [one for one in get_args(field.annotation) if isinstance(one, str)]
    for one in _types(field.annotation):
        if isinstance(one, type) and issubclass(one, enum.Enum):
            choices += [str(term.value) for term in one]
    kinds = _types(field.annotation)
    if choices:
        parts.append(" or ".join(f'`"{choice}"`' for choice in choices))
    elif _is_list(field.annotation) or any(_is_list(a) for a in get_args(field.annotation)):
        parts.append("list of " + {int: "integers", str: "texts"}.get(_first(kinds), "sections"))
    else:
        parts.append(_KINDS.get(_first(kinds), "section"))
    for item in _bounds(field):
        for attribute, words in _BOUNDS.items():
            bound = getattr(item, attribute, None)
            if bound is not None:
                parts.append(f"{words} {bound:,}")
    return ", ".join(parts)


def _bounds(what: Any) -> Iterator[Any]:
    """Yield what limits a field, also where it may be none."""
    yield from getattr(what, "metadata", ())
    for part in get_args(getattr(what, "annotation", what)):
        if isinstance(part, FieldInfo) or get_origin(part) is Annotated:
            yield from _bounds(part)


def _first(kinds: list[Any]) -> Any:
    return next((kind for kind in kinds if kind in (bool, int, float, str)), None)


_KINDS = {bool: "true or false", int: "integer", float: "number", str: "text"}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
