"""`featherfed join`: build a client from real parts and run it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import secrets
from pathlib import Path
from typing import NoReturn

import click
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from featherfed.compression.manifest import Manifest
from featherfed.datasets.sources import load_client_data
from featherfed.edge_client.session import Profile, Session, Trainer
from featherfed.edge_client.state import ClientState
from featherfed.edge_client.transport import GrpcTransport
from featherfed.proto import federation_pb2 as pb


def join_run(
    address: str,
    data: str,
    name: str | None,
    state_dir: Path | None,
    threads: int,
    give_up_after: float,
) -> None:
    """Take part in the run at `address` until it is finished."""
    dataset = load_client_data(data)
    name = name or _default_name(_state_home())
    directory = state_dir or _state_home() / name
    _limit_threads(threads)
    from featherfed.edge_client.keras_trainer import METHODS, KerasTrainer

    profile = Profile(
        name,
        pb.DataSummary(
            num_examples=len(dataset),
            example_shape=dataset.input_shape,
            class_names=dataset.class_names if dataset.has_class_names else (),
            num_classes=int(dataset.labels.max()) + 1,
        ),
        "keras",
        METHODS,
        importlib.metadata.version("featherfed"),
    )
    with _progress() as bar, logging_redirect_tqdm():

        def make_trainer(plan: pb.Plan, manifest: Manifest) -> Trainer:
            shown = 0

            def on_step(round_: int, done: int, total: int) -> None:
                nonlocal shown
                if round_ != shown or done < bar.n:
                    shown = round_
                    bar.set_description_str(f"round {round_} of {plan.rounds}", refresh=False)
                    bar.reset(total)
                bar.update(done - bar.n)

            return KerasTrainer(
                plan, manifest, dataset.images, dataset.labels, client=name, on_step=on_step
            )

        transport = GrpcTransport(address, give_up_after)
        try:
            session = Session(
                profile, transport, make_trainer, lambda run: ClientState(directory, run)
            )
            held = session.run()
        finally:
            transport.close()
    click.echo(f"run finished; version {held.version} ({held.digest.hex()[:16]}) is in {directory}")


def _progress() -> tqdm[NoReturn]:
    """Return a bar on standard error, gone at the end, and never there in a log file."""
    return tqdm(desc="waiting", unit=" steps", leave=False, disable=None, dynamic_ncols=True)


def _default_name(home: Path) -> str:
    """Return this machine's name and a mark of its own: every fresh Pi is called raspberrypi."""
    path = home / "name"
    if not path.is_file():
        machine = re.sub(r"[^A-Za-z0-9._-]+", "-", platform.node()).strip("-._")[:48] or "client"
        home.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{machine}-{secrets.token_hex(3)}", "utf-8")
    return path.read_text("utf-8").strip()


def _state_home() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "featherfed"


def _limit_threads(threads: int) -> None:
    """Tell TensorFlow before it starts its thread pools."""
    if threads:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
