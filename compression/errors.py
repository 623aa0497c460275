"""Errors of this package; their type says whose fault it was.

ValueError
├── CodecError          the caller's: codec text or tensors that cannot be encoded
└── WireError           the peer's: bytes that do not decode
    ├── NonFiniteError  well-formed bytes that hold NaN or infinity
    └── OutOfRangeError well-formed bytes with weights beyond any that training gives
"""

from __future__ import annotations


class CodecError(ValueError):
    """A codec that does not exist or fit, or tensors that cannot be encoded."""


class WireError(ValueError):
    """Bytes from a peer that do not decode; nothing was allocated beyond the manifest's sizes."""


class NonFiniteError(WireError):
    """Bytes from a peer that decode to NaN or infinity."""


class OutOfRangeError(WireError):
    """Bytes from a peer that decode to finite values beyond what any weight may be."""
