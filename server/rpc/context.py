"""Types of gRPC calls that the modules of this folder share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from featherfed.server.errors import Refused

Context = Any
"""A grpc.aio.ServicerContext; its type parameters, request and reply, matter to no module here."""

Refuse = Callable[[Context, Refused], Awaitable[None]]
"""Ends a call with a refusal."""
