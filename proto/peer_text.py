"""Texts of a peer, made fit for a terminal, a log, a report or an error message."""

from __future__ import annotations

MAX_CHARACTERS = 500
"""How much of a peer's text is shown, if no other limit is given."""


def escape(text: str) -> str:
    """Return `text` with line ends, control characters and marks of direction escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def cut(text: str, limit: int) -> str:
    """Return `text`, cut after `limit` characters with a note of how many are left out."""
    more = len(text) - limit
    return f"{text[:limit]}... ({more:,} characters more)" if more > 0 else text


def printable(text: str, limit: int = MAX_CHARACTERS) -> str:
    """Return a peer's text on one line: cut after `limit` of its characters, and escaped."""
    return escape(cut(text, limit))
