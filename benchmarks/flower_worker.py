"""The part of rounds.py that runs where Flower is installed, without featherfed.

`server ADDRESS DIR ROUNDS CLIENTS` and `client ADDRESS DIR NUMBER`; DIR/model.npz holds the model.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def load_model(directory: Path) -> list[Array]:
    """Return the tensors of the model that the first round starts from."""
    with np.load(directory / "model.npz") as file:
        return [file[name] for name in file.files]


def note_close(directory: Path) -> None:
    """Append the time at which a round was closed, on the clock that all processes share."""
    with (directory / "closes").open("a") as file:
        file.write(f"{time.monotonic()}\n")


class NullTraining:
    """Moves the weights by an update that was drawn before the first round, and trains nothing."""

    def __init__(self, tensors: Sequence[Array], number: int) -> None:
        rng = np.random.default_rng(number)
        self._update = [0.001 * rng.standard_normal(x.shape, np.float32) for x in tensors]

    def moved(self, tensors: Sequence[Array]) -> list[Array]:
        """Return what the client sends as its trained weights."""
        return [x + update for x, update in zip(tensors, self._update, strict=True)]


def serve(address: str, directory: Path, rounds: int, clients: int) -> None:
    """Run Flower's gRPC server with FedAvg over all clients."""
    from flwr.common import ndarrays_to_parameters
    from flwr.server import ServerConfig, start_server
    from flwr.server.strategy import FedAvg

    class Strategy(FedAvg):
        def evaluate(self, server_round: int, parameters: Any) -> None:  # called after each round
            if server_round:
                note_close(directory)

    strategy = Strategy(
        fraction_evaluate=0.0,
        min_fit_clients=clients,
        min_available_clients=clients,
        initial_parameters=ndarrays_to_parameters(load_model(directory)),
    )
    config = ServerConfig(num_rounds=rounds)
    start_server(server_address=address, config=config, strategy=strategy)


def join(address: str, directory: Path, number: int) -> None:
    """Run a Flower client."""
    from flwr.client import NumPyClient, start_client

    training = NullTraining(load_model(directory), number)

    class Client(NumPyClient):  # type: ignore[misc]
        def fit(self, parameters: Any, config: Any) -> tuple[list[Array], int, dict[str, Any]]:
            return training.moved(parameters), 100, {}

    start_client(server_address=address, client=Client().to_client())


if __name__ == "__main__":
    role, where, folder, *numbers = sys.argv[1:]
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_HOME": folder}
    {"server": serve, "client": join}[role](where, Path(folder), *map(int, numbers))
