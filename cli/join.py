"""`featherfed join`: build a client from real parts and run it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from featherfed.cli.device import default_name, state_home
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
    name = name or default_name(state_home())
    directory = state_dir or state_home() / name
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
    with _progress() as progress:

        def make_trainer(plan: pb.Plan, manifest: Manifest) -> Trainer:
            bar = progress.add_task("waiting", total=None)

            def on_step(round_: int, done: int, total: int) -> None:
                text = f"round {round_} of {plan.rounds}"
                progress.update(bar, completed=done, total=total, description=text)

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
    typer.echo(f"run finished; version {held.version} ({held.digest.hex()[:16]}) is in {directory}")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
        transient=True,
    )


def _limit_threads(threads: int) -> None:
    """Tell TensorFlow before it starts its thread pools."""
    if threads:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
