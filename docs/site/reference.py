"""Makes the reference pages of docs/ from the code; `--check` only says whether they are stale.

docs/run-file.md from the settings' pydantic models, docs/protocol.md from the comments of the proto
file, the table of presets in docs/codecs.md and what the calculator there computes with.
"""

from __future__ import annotations

import ast
import csv
import enum
import inspect
import json
import re
import statistics
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from featherfed.proto import federation_pb2 as pb
from featherfed.server.rounds.promise import MAX_FACTOR
from featherfed.server.rounds.uplink import PRESETS, PROMISES, Preset
from featherfed.server.settings.section import Section
from featherfed.server.settings.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- presets -->", "<!-- /presets -->"
MADE = "<!-- Made by docs/site/reference.py (`make reference`): do not edit. -->"


# ---- The run file ----


def run_file() -> str:
    """Return docs/run-file.md: every section and key, with its default and what it means."""
    return "\n".join(
        [
            "# The run file",
            "",
            MADE,
            "",
            "What `featherfed serve` reads, as TOML. Sections and keys may be left out, but for those whose",
            "default is *needed*; an unknown key is an error that names the one that was probably meant.",
            "A default of *none* means that the key is left out. [examples/run.toml](../examples/run.toml)",
            "is a file with comments; [tasks.md](tasks.md) says more about `[task]`.",
            "",
            *_section("", Settings),
        ]
    )


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
        meaning = _cell(told[key].replace("; None: ", "; by default ").replace("None: ", "By default "))
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
        for key, text in zip(body, body[1:], strict=False):
            if isinstance(key, ast.AnnAssign) and isinstance(text, ast.Expr):
                if isinstance(text.value, ast.Constant) and isinstance(key.target, ast.Name):
                    found[key.target.id] = " ".join(str(text.value.value).split())
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


# ---- The protocol ----


def protocol() -> str:
    """Return docs/protocol.md: calls and messages with the comments of the proto file."""
    text = (ROOT / "proto" / "federation.proto").read_text("utf-8")
    head, _, rest = text.partition("syntax =")
    lines = [re.sub(r"^// ?", "", line) for line in head.splitlines()]
    made = [
        "# Protocol", "", MADE, "",
        lines[0], "", "```text", *[line[2:] for line in lines[2:]], "```", "",
        "This page has what [federation.proto](../proto/federation.proto) says of itself;",
        "[wire-format.md](wire-format.md) says what is inside of payloads.", "",
    ]  # fmt: skip
    return "\n".join([*made, *_calls(rest), *_messages(rest)])


def _calls(text: str) -> Iterator[str]:
    yield from ("## Calls", "", "| call | request | reply | |", "|---|---|---|---|")
    told: list[str] = []
    for line in map(str.strip, text.partition("service Federation {")[2].partition("}")[0].split("\n")):
        if line.startswith("//"):
            told.append(line.removeprefix("//").strip())
        elif found := re.match(r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\)", line):
            name, many, request, stream, reply = found.groups()
            ask, answer = _link(request, bool(many)), _link(reply, bool(stream))
            yield f"| `{name}` | {ask} | {answer} | {' '.join(told)} |"
            told = []
    yield ""


def _messages(text: str) -> Iterator[str]:
    """Yield the lines of all messages and enums, in the order of the file."""
    told: list[str] = []  # comments before a message or field
    table, prefix = False, ""  # whether a table has begun; the message around an inner enum
    for raw in text.partition("service Federation {")[2].partition("\n}\n")[2].split("\n"):
        line = raw.strip()
        if found := re.match(r"// ---- (.*) ----$", line):
            yield from (f"## {found[1]}", "")
        elif line.startswith("//"):
            told.append(line.removeprefix("//").strip())
        elif found := re.match(r"(message|enum) (\w+) \{(\})?", line):
            inside = raw.startswith("  ")
            if inside:
                prefix, table = f"{found[2]}.", False
                told = []
                continue
            if table:
                yield ""
            yield from (f"### {found[2]}", "")
            if told:
                yield from (" ".join(told), "")
            told, table, prefix = [], False, ""
        elif found := re.match(
            r"((?:repeated |optional )?[\w.]+ )?(\w+) = (\d+);\s*(?://\s*(.*))?$", line
        ):
            if not table:
                yield from ("| field | number | type | |", "|---|---|---|---|")
                table = True
            kind = (found[1] or "").strip() or "value"
            words = " ".join([*told, *([found[4]] if found[4] else [])])
            yield f"| `{prefix}{found[2]}` | {found[3]} | {kind} | {words} |"
            told = []
        elif line == "}":
            prefix, told = "", []
            if not raw.startswith("  "):
                yield ""
        elif not line:
            told = []


def _link(message: str, stream: bool) -> str:
    return f"{'stream of ' if stream else ''}[{message}](#{message.lower()})"


# ---- Presets ----


def presets() -> str:
    """Return the table of what presets take and promise."""
    lines = [
        "| preset | a client's update takes, of five clients | loses at most |",
        "|---|---|---|",
    ]
    for name, preset in PRESETS.items():
        if isinstance(preset, Preset):
            takes = f"1/{preset.ratio:,.0f} of the float32 model, {preset.floor} bytes at least"
            lines.append(f"| `{name}` | {takes} | {PROMISES[name]} points, or % |")
        else:
            ratios = [1 / share for share in measured_shares()]
            takes = f"what `{preset.replace('|', chr(92) + '|')}` gives: measured 1/{min(ratios):.1f} to 1/{max(ratios):.1f} of it"
            lines.append(f"| `{name}` | {takes} | promises nothing; see [results.md](results.md) |")
    return "\n".join(lines)


def measured_shares() -> list[float]:
    """Return what `exact` took up, as a share of the float32 model, in each run of the sweeps."""
    shares = []
    for name in ("presets", "peers", "models"):
        with (RESULTS / name / "results.csv").open(encoding="utf-8") as file:
            shares += [
                float(row["up_payload_bytes"]) / float(row["float32_bytes"])
                for row in csv.DictReader(file)
                if row["codec"] == "exact"
            ]
    return shares


def coefficients() -> str:
    """Return what the calculator computes with, as JavaScript."""
    part = pb.Part(slot=1, num_examples=1, payload=bytes(400))
    many, none = pb.Bundle(slots=5, server_rate=333, codec=_SKETCH), pb.Bundle()
    for _ in range(100):
        many.parts.append(part)
    each = (many.ByteSize() - none.ByteSize()) / 100 - 400
    empty = pb.Bundle(slots=5, server_rate=333, codec=_SKETCH).ByteSize()
    values = {
        "presets": {
            name: {"ratio": preset.ratio, "floor": preset.floor, "promise": PROMISES[name]}
            for name, preset in PRESETS.items()
            if isinstance(preset, Preset)
        },
        "presetClients": 5,
        "mostTimes": MAX_FACTOR,
        "exactShare": round(statistics.mean(measured_shares()), 4),
        "envelope": 21,
        "bundle": empty,
        "part": round(each - empty / 100),
        "around": {"up": 38 + 44 + 170, "down": _around_down() + 190, "connection": 1000},
    }
    text = json.dumps(values, indent=2)
    return f"// Made by docs/site/reference.py (`make reference`): do not edit.\nconst FEATHERFED = {text};\n"


_SKETCH = "sketch(0.0273, 0.1875)"


def _around_down() -> int:
    """Return the messages' bytes around a download, a client and round, without what comes once.

    From runs of 7 and 30 rounds with the same model.
    """
    sums = {}
    for name, rounds in (("clients", 7), ("rounds", 30)):
        with (RESULTS / name / "results.csv").open(encoding="utf-8") as file:
            around = [
                float(row["down_sent_bytes"]) - float(row["down_payload_bytes"])
                for row in csv.DictReader(file)
                if (row["codec"], row["clients"], row["model"]) == ("balanced", "5", "mlp")
            ]
        sums[rounds] = rounds * statistics.mean(around)
    return round((sums[30] - sums[7]) / 23)


def pages() -> dict[Path, str]:
    """Return every file that is made, with its text."""
    codecs = DOCS / "codecs.md"
    before, _, rest = codecs.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    return {
        DOCS / "run-file.md": run_file(),
        DOCS / "protocol.md": protocol(),
        DOCS / "site" / "static" / "coefficients.js": coefficients(),
        codecs: f"{before}{BEGIN}\n{presets()}\n{END}{after}",
    }


def main() -> None:
    """Write the pages, or end with 1 if one is stale."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        if "--check" not in sys.argv:
            path.write_text(pages()[path], "utf-8")
        print(f"{path.relative_to(ROOT)}: {'stale' if '--check' in sys.argv else 'written'}")
    sys.exit(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    main()
