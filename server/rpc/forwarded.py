"""What a front end says of a call that it passes on, and why it is believed."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

SECRET_KEY = "featherfed-front-end"
"""Metadata key of the secret by which the leading server knows a front end."""
PEER_KEY = "featherfed-peer"
"""Metadata key of the address of the caller, as the front end's gRPC has it."""

Metadata = Iterable[tuple[str, str | bytes]]


def is_forwarded(metadata: Metadata | None) -> bool:
    """Whether a call says that it was passed on; nothing says whether that is true."""
    return any(key == SECRET_KEY for key, _ in metadata or ())


def forwarded_peer(metadata: Metadata | None, secret: str) -> str | None:
    """Return the address of the caller that a front end names; None if nobody shows the secret.

    `secret`: not empty.
    """
    if not is_forwarded(metadata):
        return None
    values = {key: value for key, value in metadata or () if isinstance(value, str)}
    if not hmac.compare_digest(values.get(SECRET_KEY, "").encode(), secret.encode()):
        return None
    return values.get(PEER_KEY)
