"""The reference of the protocol: calls and messages with the comments of the proto file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_RPC = re.compile(r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\)")
_FIELD = re.compile(r"((?:repeated |optional )?[\w.]+ )?(\w+) = (\d+);\s*(?://\s*(.*))?$")
_BLOCK = re.compile(r"(?:message|enum) (\w+) \{")


def protocol(proto: Path, made: str) -> str:
    """Return docs/protocol.md; `made`: the line that says how it is made."""
    head, _, rest = proto.read_text("utf-8").partition("syntax =")
    calls, _, messages = rest.partition("service Federation {")[2].partition("\n}\n")
    first, _, *others = [re.sub(r"^// {0,3}", "", line) for line in head.splitlines()]
    return "\n".join(
        [
            "# Protocol", "", made, "", first, "", "```text", *others, "```", "",
            "This page has what [federation.proto](../proto/federation.proto) says of itself;",
            "[wire-format.md](wire-format.md) says what is inside of payloads.", "",
            *_calls(calls), *_Messages().lines(messages),
        ]
    )  # fmt: skip


def _calls(text: str) -> Iterator[str]:
    yield from ("## Calls", "", "| call | request | reply | |", "|---|---|---|---|")
    told: list[str] = []
    for line in map(str.strip, text.split("\n")):
        if line.startswith("//"):
            told.append(line.removeprefix("//").strip())
        elif found := _RPC.match(line):
            name, many, request, stream, reply = found.groups()
            ask, answer = _link(request, bool(many)), _link(reply, bool(stream))
            yield f"| `{name}` | {ask} | {answer} | {' '.join(told)} |"
            told = []
    yield ""


def _link(message: str, stream: bool) -> str:
    return f"{'stream of ' if stream else ''}[{message}](#{message.lower()})"


class _Messages:
    """Turns messages and enums into tables, line by line."""

    def __init__(self) -> None:
        self._told: list[str] = []  # comments that no block or field has had yet
        self._in_table = False
        self._inner = ""  # the enum inside of a message, and a dot

    def lines(self, text: str) -> Iterator[str]:
        """Yield the lines of all tables, in the order of the file."""
        for raw in text.split("\n"):
            line = raw.strip()
            if heading := re.match(r"// ---- (.*) ----$", line):
                yield from (f"## {heading[1]}", "")
            elif line.startswith("//"):
                self._told.append(line.removeprefix("//").strip())
            elif block := _BLOCK.match(line):
                yield from self._begin(block[1], inside=raw.startswith("  "))
            elif field := _FIELD.match(line):
                yield from self._row(field)
            elif line == "}":
                self._inner = ""
                yield from [] if raw.startswith("  ") else [""]
            elif not line:
                self._told.clear()

    def _begin(self, name: str, inside: bool) -> Iterator[str]:
        if inside:
            self._inner = f"{name}."
            self._told.clear()
            return
        self._in_table, self._inner = False, ""
        yield from (f"### {name}", "")
        if words := self._words():
            yield from (words, "")

    def _row(self, field: re.Match[str]) -> Iterator[str]:
        if not self._in_table:
            yield from ("| field | number | type | |", "|---|---|---|---|")
            self._in_table = True
        kind, name, number, comment = field.groups()
        words = self._words(comment or "")
        yield f"| `{self._inner}{name}` | {number} | {(kind or 'value').strip()} | {words} |"

    def _words(self, more: str = "") -> str:
        words = " ".join([*self._told, more]).strip()
        self._told.clear()
        return words
