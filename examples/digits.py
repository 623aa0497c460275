"""Data of two clients for examples/run.toml: each has half of scikit-learn's digits.

On a real device, write a function like these that returns (images, labels): images as uint8
[N, height, width, channels] or floats from 0 to 1, labels as integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

Examples = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def _load() -> Examples:
    digits = load_digits()
    return digits.images / 16, digits.target


def even() -> Examples:
    """Return the examples of even index."""
    images, labels = _load()
    return images[::2], labels[::2]


def odd() -> Examples:
    """Return the examples of odd index."""
    images, labels = _load()
    return images[1::2], labels[1::2]
