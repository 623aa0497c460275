"""`featherfed.Client`: take part in a run from Python, as `featherfed join` does."""

from __future__ import annotations

import os
from pathlib import Path

from featherfed.api.data import Data, as_dataset
from featherfed.api.extras import explained
from featherfed.datasets.dataset import Dataset
from featherfed.edge_client.state import HeldModel
from featherfed.edge_client.trainer import KerasLoop, Trainer


class Client:
    """A client with its data; `run` trains on them for the run of a server, until it has ended."""

    def __init__(
        self,
        address: str | None = None,
        *,
        data: Data | str,
        name: str | None = None,
        trainer: KerasLoop | Trainer | None = None,
        runtime: str = "auto",
        threads: int = 0,
        state_dir: str | os.PathLike[str] | None = None,
        memory: int | None = None,
        pause_above: float | None = None,
        pause_on_battery: bool = False,
        give_up_after: float = 3600.0,
        credentials: str | os.PathLike[str] | None = None,
        insecure: bool = False,
    ) -> None:
        """Connect to nothing yet.

        Args:
            address: The server's host:port; None: the one that is found in the local network.
            data: (x, y), x alone where the input itself is the target, a `Dataset`, or the text of
                `featherfed join --data`: a file, a folder or module:function.
            name: The client's in the run; None: the credentials', or this machine's and a suffix.
            trainer: Your own training loop for Keras' model (`KerasLoop`), or a whole `Trainer`.
            runtime: keras, litert, or auto for Keras where TensorFlow is installed.
            threads: For training; 0: all cores.
            state_dir: Where it keeps what it must not lose; None: ~/.local/state/featherfed/NAME.
            memory: MB above which the whole process is ended.
            pause_above: Degrees Celsius above which it rests.
            pause_on_battery: Whether it rests without mains power.
            give_up_after: Seconds without a server.
            credentials: The folder that `featherfed certs client` made for it.
            insecure: Whether to connect to another machine without encryption.

        Raises DatasetError for data that are none.
        """
        self.data: Dataset | str = data if isinstance(data, str) else as_dataset(data, "data")
        self.address = address
        self._name = name
        self._trainer = trainer
        self._runtime = runtime
        self._threads = threads
        self._state_dir = None if state_dir is None else Path(state_dir)
        self._memory = memory
        self._pause_above = pause_above
        self._pause_on_battery = pause_on_battery
        self._give_up_after = give_up_after
        self._credentials = None if credentials is None else Path(credentials)
        self._insecure = insecure

    def run(self, *, progress: bool | None = None) -> HeldModel:
        """Take part until the run has ended; return the final model: version, digest, weights.

        It may be broken off at any moment and run again. It works where an event loop runs, as in a
        notebook, but holds it up: `await asyncio.to_thread(client.run)` does not.

        Args:
            progress: Whether to show a bar; None: in a terminal or a notebook.

        Raises ClientError, Rejected or Unreachable, saying what to do.
        """
        try:
            from featherfed.api.join import JoinOptions, join_run
            from featherfed.edge_client.discovery import find_server

            options = JoinOptions(
                self.address or find_server(),
                self.data,
                self._name,
                self._state_dir,
                self._runtime,
                self._threads,
                self._memory,
                self._pause_above,
                self._pause_on_battery,
                self._give_up_after,
                self._credentials,
                self._insecure,
                trainer=self._trainer,
                progress=progress,
            )
            return join_run(options).held
        except ModuleNotFoundError as error:
            raise explained(error, "join") from error
