"""Build a client from real parts and run it."""

from __future__ import annotations

import importlib.metadata
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn, cast

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from featherfed.api.device import device_name, state_home
from featherfed.api.memory import limit_memory, peak_memory
from featherfed.api.progress import progress_bar
from featherfed.api.runtime import choose_runtime
from featherfed.api.staying import Found, Stay
from featherfed.compression.exchange.manifest import Manifest
from featherfed.datasets.dataset import Dataset
from featherfed.datasets.sources import check_client_data, load_client_data
from featherfed.edge_client.credentials import Credentials, choose_credentials
from featherfed.edge_client.discovery import find_server
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.grpc_connection import GrpcConnection
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.health import device_health
from featherfed.edge_client.partial_download import FILE_NAME
from featherfed.edge_client.pause import PauseControl, device_sensors
from featherfed.edge_client.plan import task_of
from featherfed.edge_client.session import Profile, Session
from featherfed.edge_client.state import ClientState, HeldModel
from featherfed.edge_client.state_directory import lock_state
from featherfed.edge_client.trainer import KerasLoop, MakeTrainer, RenewableTrainer, Trainer
from featherfed.proto import federation_pb2 as pb

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JoinOptions:
    """How a client takes part, as the options of `featherfed join` say.

    `address`: None for a client that stays, to look for the server in the local network each time.
    `data`: the text of `--data`, or the data themselves. `trainer`: the user's own, instead of the
    runtime's. `progress`: whether to show a bar; None: where somebody can see it.
    """

    address: str | None
    data: str | Dataset
    name: str | None
    state_dir: Path | None
    runtime: str
    threads: int
    memory: int | None
    pause_above: float | None
    pause_on_battery: bool
    give_up_after: float
    credentials: Path | None = None
    insecure: bool = False
    stay: bool = False
    reread: bool = False
    evaluate: str | None = None
    trainer: KerasLoop | Trainer | None = None
    progress: bool | None = None


class Joined(NamedTuple):
    """What a client has at the end of a run: the final model, and the folder of its state."""

    held: HeldModel
    directory: Path

    def __str__(self) -> str:
        digest = self.held.digest.hex()[:16]
        return f"run finished; version {self.held.version} ({digest}) is in {self.directory}"


def join_run(options: JoinOptions) -> Joined:
    """Take part in the run at the options' address until it is finished.

    A client that stays takes part in the next ones, too, until it is ended from outside.
    """
    if options.memory is not None:
        limit_memory(options.memory)
    known = options.address
    # Names no server yet where one is still to be found: a name of credentials does not need it.
    name = device_name(options.name, _credentials(options, known or "127.0.0.1:0"))
    directory = options.state_dir or state_home() / name
    with lock_state(directory):
        client = _Client(options, name, directory)
        if options.stay:
            Stay(
                lambda: look_for_run(options),
                lambda address: log.info("%s", client.take_part(address)),
            ).forever()
        assert known is not None, "only a client that stays looks for it later"
        return client.take_part(known)


def look_for_run(options: JoinOptions) -> Found:
    """Return the run at the options' address, or that of the server in the local network.

    Raises ClientError, Rejected or Unreachable if there is none.
    """
    address = options.address or find_server()
    connection = GrpcConnection(address, 0, _credentials(options, address))
    try:
        status = connection.status()
    finally:
        connection.close()
    return Found(address, status.run, status.phase)


def _credentials(options: JoinOptions, address: str) -> Credentials | None:
    return choose_credentials(address, options.credentials, options.insecure)


class _Client:
    """This process's client: its runtime, its state directory, and its data."""

    def __init__(self, options: JoinOptions, name: str, directory: Path) -> None:
        self._options = options
        self._name = name
        self._directory = directory
        self._pause = _pause_control(options)
        self._health = device_health()
        if isinstance(options.data, str):
            check_client_data(options.data)  # a wrong name is told before a server is waited for
        self._runtime = choose_runtime(options.runtime, options.threads, options.trainer)
        log.info("training with %s", self._runtime.name)

    def take_part(self, address: str) -> Joined:
        """Take part in the run at an address until its end."""
        options, name = self._options, self._name
        with (
            progress_bar("waiting", " steps", shown=options.progress) as bar,
            logging_redirect_tqdm(),
        ):
            transport = GrpcTransport(
                address,
                options.give_up_after,
                _credentials(options, address),
                self._directory / FILE_NAME,
                self._health,
            )
            try:
                log.info("asking %s for its task", address)
                reply = transport.get_task(name)
                data = ClientData(options, reply, name)
                session = Session(
                    self._profile(data.examples),
                    transport,
                    self._trainer_maker(data.examples, bar),
                    lambda run: ClientState(self._directory, run),
                    data.renew if options.reread else None,
                )
                held = session.run()
            finally:
                transport.close()
        if (peak := peak_memory()) is not None:
            log.info("at most %d MB of memory were in use", peak)
        return Joined(held, self._directory)

    def _profile(self, examples: Examples) -> Profile:
        return Profile(
            self._name,
            examples.summary(),
            self._runtime.name,
            self._runtime.methods,
            importlib.metadata.version("featherfed"),
        )

    def _trainer_maker(self, examples: Examples, bar: tqdm[NoReturn]) -> MakeTrainer:
        pause, runtime, name = self._pause, self._runtime, self._name

        def make_trainer(plan: pb.Plan, manifest: Manifest, step: bytes | None) -> Trainer:
            shown_round = 0

            def on_step(round_: int, done: int, total: int) -> None:
                nonlocal shown_round
                if round_ != shown_round or done < bar.n:
                    shown_round = round_
                    bar.set_description_str(f"round {round_} of {plan.rounds}", refresh=False)
                    bar.reset(total)
                bar.update(done - bar.n)
                if pause is not None:
                    pause.wait_until_ready()

            return runtime.make_trainer(plan, manifest, step, examples, name, on_step)

        return make_trainer


class ClientData:
    """A client's data for one task, which may grow while it takes part."""

    def __init__(self, options: JoinOptions, reply: pb.GetTaskReply, client: str) -> None:
        """Load the data for the task that the server tells.

        Raises ClientError for a task that is unknown here, DatasetError for data that do not fit.
        """
        self._options = options
        self._reply = reply
        self._client = client
        self.examples = self._load()

    def renew(self, trainer: Trainer) -> int:
        """Load the data again and give them to a trainer; return how many it trains on.

        Data that cannot be read now, such as a file that is being written, stay as they were.
        """
        try:
            self.examples = self._load()
        except (ValueError, OSError) as error:
            log.warning("the data cannot be read now; training on what was read before: %s", error)
        cast("RenewableTrainer", trainer).set_examples(self.examples)
        return len(self.examples.training)

    def _load(self) -> Examples:
        options, share = self._options, self._reply.holdout
        task = task_of(self._reply)
        given, evaluation = options.data, None
        data = load_client_data(given, task) if isinstance(given, str) else given
        if options.evaluate is not None and share:
            evaluation = load_client_data(options.evaluate, task)
        elif options.evaluate is not None:
            log.warning("in this run clients do not evaluate: --evaluate has no effect")
        return Examples.of(
            task, data, share, self._client, evaluation=evaluation, growing=options.reread
        )


def _pause_control(options: JoinOptions) -> PauseControl | None:
    if options.pause_above is None and not options.pause_on_battery:
        return None
    return PauseControl(device_sensors(), options.pause_above, options.pause_on_battery)
