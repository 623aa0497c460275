"""The error of this folder; needs no TensorFlow."""

from __future__ import annotations


class ModelError(ValueError):
    """A model that cannot be used: it could run code, is too large, or does not fit the data."""
