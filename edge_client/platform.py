"""Check that a client can run on this machine, without importing anything else."""

from __future__ import annotations

import platform
import struct

from featherfed.edge_client.errors import ClientError

_POINTER_BITS = struct.calcsize("P") * 8


def check_platform() -> None:
    """Raise ClientError on 32-bit ARM, for which there is no build of LiteRT.

    A 64-bit kernel under a 32-bit system reports aarch64, so Python's pointer size counts too.
    """
    machine = platform.machine()
    if machine.startswith("armv") or (machine in ("aarch64", "arm64") and _POINTER_BITS == 32):
        raise ClientError(
            f"this is 32-bit ARM ({machine} with a {_POINTER_BITS}-bit Python), and ai-edge-litert "
            "has no build for it: install the 64-bit Raspberry Pi OS (any Raspberry Pi 3, 4, 5 or "
            "Zero 2 runs it) and featherfed anew"
        )
