"""`featherfed follow`: build a follower from real parts and run it."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from featherfed.api.device import device_name
from featherfed.edge_client.credentials import Credentials
from featherfed.edge_client.follower import Follower, ModelFile, Swap
from featherfed.edge_client.grpc_releases import GrpcReleaseSource

log = logging.getLogger(__name__)


def follow_run(
    address: str,
    directory: Path,
    kind: str,
    name: str | None,
    once: bool,
    give_up_after: float | None,
    credentials: Credentials | None = None,
) -> None:
    """Follow the run at `address` until a signal ends it, or with `once` until the file is newest.

    `give_up_after`: seconds without a server, None for never. `credentials`: None for plaintext.
    """
    name = device_name(name, credentials)
    file = ModelFile(directory, kind)

    def log_swap(swap: Swap) -> None:
        log.info(
            "version %d is in %s: %s bytes, received %s",
            swap.version, file.path, f"{swap.size:,}", f"{swap.received:,}",
        )  # fmt: skip

    patience = math.inf if give_up_after is None else give_up_after
    source = GrpcReleaseSource(address, patience, credentials)
    try:
        Follower(name, kind, source, file, on_swap=log_swap).run(once)
    except KeyboardInterrupt:
        log.info("stopped; the file in %s stays as it is", directory)
    finally:
        source.close()
        file.close()
