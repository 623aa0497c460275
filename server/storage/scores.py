"""Scores as they stand in rows: JSON, NULL while they are unknown."""

from __future__ import annotations

import json

from featherfed.server.storage.records import Scores


def to_json(scores: Scores | None) -> str | None:
    """Return scores as text; None for none."""
    return json.dumps(scores) if scores else None


def from_json(text: str | None) -> Scores | None:
    """Return the scores in a row, None if it has none."""
    return None if text is None else dict(json.loads(text))
