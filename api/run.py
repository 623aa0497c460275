"""`featherfed.Run`: serve a run from Python, as `featherfed serve` does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from featherfed.api.control import Observer, Outcome, StopSwitch
from featherfed.api.event_loop import outside_of_loop
from featherfed.api.extras import explained
from featherfed.api.progress import progress_bar
from featherfed.api.serve_settings import serve_settings
from featherfed.api.trackers.hook import Tracker
from featherfed.models.importing import importing_tensorflow
from featherfed.server.settings.settings import Settings, load_settings


class Run:
    """One run of a server: `serve` takes it to its end, `stop` ends the server before.

    Its state is on disk, in the run file's `output`: served again after any kind of end, also by
    `featherfed serve`, it goes on where it was.
    """

    def __init__(self, settings: Settings) -> None:
        """Take settings that are checked; see `from_toml`."""
        self.settings = settings
        self._switch = StopSwitch()
        self._address: str | None = None

    @classmethod
    def from_toml(
        cls,
        path: str | os.PathLike[str],
        *,
        host: str | None = None,
        port: int | None = None,
        credentials: str | os.PathLike[str] | None = None,
        insecure: bool = False,
    ) -> Run:
        """Return the run of a run file; the other arguments replace what it says.

        Args:
            path: The run file; examples/run.toml has all keys.
            host: Where to listen: 0.0.0.0 to be reached from other machines.
            port: 0 for any that is free; see `address`.
            credentials: The folder that `featherfed certs init` made.
            insecure: Whether others may reach the server without encryption.

        Raises ServerError, naming each wrong key, for a file that cannot be used.
        """
        folder = None if credentials is None else Path(credentials)
        loaded = load_settings(Path(path))
        return cls(serve_settings(loaded, host, port, folder, insecure))

    @property
    def address(self) -> str | None:
        """Where the server listens, for clients: host:port; None while it does not."""
        return self._address

    def serve(
        self, *, progress: bool | None = None, trackers: Sequence[str | Tracker] = ()
    ) -> Outcome:
        """Serve until the run's end, or until `stop`; return which it was.

        In the main thread, Ctrl-C and SIGTERM stop it, too. Where an event loop runs, as in a
        notebook, the server gets a thread and a loop of its own, and this waits for it all the
        same; `await asyncio.to_thread(run.serve)` does not hold up the loop. It needs TensorFlow to
        make and export models: pip install 'featherfed[server,tensorflow]'.

        Args:
            progress: Whether to show a bar; None: in a terminal or a notebook.
            trackers: What else is told of each round, besides those of the run file: texts as
                there, or objects of yours; see `Tracker` in docs/observability.md.

        Raises ServerError, or ModelError or DatasetError of what the run file names.
        """
        try:
            with importing_tensorflow():
                from featherfed.api.serve import serve_run
        except ModuleNotFoundError as error:
            raise explained(error, "serve") from error

        with progress_bar("rounds", " rounds", self.settings.rounds, progress) as bar:

            def on_listening(address: str) -> None:
                self._address = address

            def on_round(round_: int, scores: Mapping[str, float]) -> None:
                bar.update(min(round_, self.settings.rounds) - bar.n)
                bar.set_postfix({name: f"{value:.4f}" for name, value in scores.items()})

            observer = Observer(on_listening, on_round, self._switch, trackers)
            try:
                return outside_of_loop(lambda: serve_run(self.settings, observer), self.stop)
            finally:
                self._address = None
                self._switch = StopSwitch()

    def stop(self) -> None:
        """Tell the server to end, from any thread; uploads under way may end first.

        Does not wait for it. The next `serve` goes on with the run.
        """
        self._switch.press()
