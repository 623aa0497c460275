"""The error of tasks, scores and statistics that do not fit."""

from __future__ import annotations


class TaskError(ValueError):
    """A task that cannot be, or data that do not fit one; the message says what and what to do."""
