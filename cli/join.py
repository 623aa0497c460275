"""`featherfed join`: build a client from real parts and run it."""

from __future__ import annotations

import importlib.metadata
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import click
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from featherfed.cli.device import device_name, state_home
from featherfed.cli.memory import limit_memory, peak_memory
from featherfed.cli.runtime import choose_runtime
from featherfed.compression.exchange.manifest import Manifest
from featherfed.datasets.sources import check_client_data, load_client_data
from featherfed.edge_client.credentials import Credentials, choose_credentials
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.partial_download import FILE_NAME
from featherfed.edge_client.pause import PauseControl, device_sensors
from featherfed.edge_client.plan import task_of
from featherfed.edge_client.session import Profile, Session
from featherfed.edge_client.state import ClientState
from featherfed.edge_client.state_directory import lock_state
from featherfed.edge_client.trainer import Trainer
from featherfed.proto import federation_pb2 as pb

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JoinOptions:
    """The options of `featherfed join`."""

    address: str
    data: str
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


def join_run(options: JoinOptions) -> None:
    """Take part in the run at the options' address until it is finished."""
    if options.memory is not None:
        limit_memory(options.memory)
    credentials = choose_credentials(options.address, options.credentials, options.insecure)
    name = device_name(options.name, credentials)
    directory = options.state_dir or state_home() / name
    with lock_state(directory):
        _take_part(options, name, directory, credentials)


def _take_part(
    options: JoinOptions, name: str, directory: Path, credentials: Credentials | None
) -> None:
    pause = _pause_control(options)
    check_client_data(options.data)  # a wrong name is told before a server is waited for
    runtime = choose_runtime(options.runtime, options.threads)
    log.info("training with %s", runtime.name)
    with _progress() as bar, logging_redirect_tqdm():

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

        transport = GrpcTransport(
            options.address, options.give_up_after, credentials, directory / FILE_NAME
        )
        try:
            examples = load_examples(transport.get_task(name), options.data, name)
            profile = Profile(
                name,
                examples.summary(),
                runtime.name,
                runtime.methods,
                importlib.metadata.version("featherfed"),
            )
            session = Session(
                profile, transport, make_trainer, lambda run: ClientState(directory, run)
            )
            held = session.run()
        finally:
            transport.close()
    if (peak := peak_memory()) is not None:
        log.info("at most %d MB of memory were in use", peak)
    click.echo(f"run finished; version {held.version} ({held.digest.hex()[:16]}) is in {directory}")


def load_examples(reply: pb.GetTaskReply, data: str, client: str) -> Examples:
    """Return a client's examples for the task that the server tells.

    Raises ClientError for a task that is unknown here, DatasetError for data that do not fit it.
    """
    task = task_of(reply)
    return Examples.of(task, load_client_data(data, task), reply.holdout, client)


def _pause_control(options: JoinOptions) -> PauseControl | None:
    if options.pause_above is None and not options.pause_on_battery:
        return None
    return PauseControl(device_sensors(), options.pause_above, options.pause_on_battery)


def _progress() -> tqdm[NoReturn]:
    """Return a progress bar on standard error, erased at the end; none without a terminal."""
    return tqdm(desc="waiting", unit=" steps", leave=False, disable=None, dynamic_ncols=True)
