"""What can go wrong when a model is exported."""

from __future__ import annotations

from featherfed.models.errors import ModelError


class ExportError(ModelError):
    """The training step cannot be exported; names the layer and says what to use instead."""
