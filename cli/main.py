"""The command line: `featherfed demo | serve | join | sweep | report | predict`."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from featherfed.cli import log
from featherfed.compression.errors import CodecError
from featherfed.edge_client.errors import Rejected, Unreachable

app = typer.Typer(
    help="Federated learning for small devices on thin links.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]


def _errors_for_people(command: Callable[..., None]) -> Callable[..., None]:
    """Print what a user can mend as one message; anything else is a bug and keeps its traceback."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] == "featherfed":
                raise
            _fail(f"{error.name} is not installed; {_extra_for(error.name or '')}")
        except (Rejected, Unreachable, CodecError) as error:
            _fail(str(error))
        except ValueError as error:
            if not type(error).__module__.startswith("featherfed."):
                raise
            _fail(str(error))

    return wrapper


def _extra_for(module: str) -> str:
    extras = {
        "tensorflow": "tensorflow",
        "tf_keras": "tensorflow",
        "tensorflow_model_optimization": "tensorflow",
        "pydantic": "server",
        "grpc_health": "server",
        "grpc_reflection": "server",
        "matplotlib": "report",
        "jinja2": "report",
        "PIL": "images",
        "pyarrow": "sweep",
    }
    return f"pip install 'featherfed[{extras.get(module.split('.')[0], 'demo')}]'"


def _fail(message: str) -> None:
    typer.echo(f"featherfed: {message}", err=True)
    raise typer.Exit(1)


@app.command()
@_errors_for_people
def demo(
    dataset: Annotated[str, typer.Option(help="digits, fashion-mnist or a folder.")] = "digits",
    clients: Annotated[int, typer.Option(min=1)] = 5,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    epochs: Annotated[int, typer.Option(min=1, help="Local epochs a round.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    learning_rate: Annotated[
        float | None, typer.Option(help="0.01, or 0.1 for digits.", show_default=False)
    ] = None,
    uplink: Annotated[
        str,
        typer.Option(
            "--uplink",
            "--budget",
            metavar="TEXT",
            help="exact, transparent, balanced, extreme; a budget of all clients together, such as "
            "4kB/round; or codec text.",
        ),
    ] = "balanced",
    downlink: Annotated[
        str, typer.Option(metavar="CODEC", help="Of the mean, where updates are not forwarded.")
    ] = "deadzone(0.15) | zstd(1)",
    optimize: Annotated[
        str, typer.Option(metavar="METHOD", help="none, prune, cluster, qat or prune+qat.")
    ] = "none",
    partition: Annotated[str, typer.Option(help="iid or dirichlet:ALPHA.")] = "iid",
    model: Annotated[
        str, typer.Option(help="cnn, mlp, mobile, gru or a Keras configuration (.json).")
    ] = "cnn",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    output: Annotated[Path, typer.Option(help="Replaced if it holds a demo.")] = Path("runs/demo"),
    verbose: Verbose = False,
) -> None:
    """Train over real gRPC on this machine: a server and CLIENTS processes of their own."""
    log.set_up(verbose)
    from featherfed.cli.demo import DemoOptions, run_demo

    run_demo(
        DemoOptions(
            dataset, clients, rounds, epochs, batch_size, learning_rate, uplink, downlink,
            optimize, partition, model, seed, output,
        )
    )  # fmt: skip


@app.command()
@_errors_for_people
def serve(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml")],
    host: Annotated[str | None, typer.Option(help="Instead of the run file's.")] = None,
    port: Annotated[int | None, typer.Option(help="Instead of the run file's; 0: any.")] = None,
    verbose: Verbose = False,
) -> None:
    """Serve a run; started again after any kind of death, it goes on where it was."""
    log.set_up(verbose)
    from featherfed.server.settings import load_settings

    settings = load_settings(run_file)  # first, since what the rest imports takes seconds
    from featherfed.cli.serve import serve_run

    sys.exit(0 if serve_run(settings, host, port) else 3)


@app.command()
@_errors_for_people
def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT")],
    data: Annotated[
        str, typer.Option(help="FILE.npz, a folder of images by class, or MODULE:FUNCTION.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Default: this machine's name and a mark.")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Default: ~/.local/state/featherfed/NAME.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="For training; 0: all cores.")] = 0,
    give_up_after: Annotated[float, typer.Option(help="Seconds without a server.")] = 3600.0,
    verbose: Verbose = False,
) -> None:
    """Train on this machine's data for the run at HOST:PORT until it is finished."""
    log.set_up(verbose)
    from featherfed.cli.join import join_run

    join_run(address, data, name, state_dir, threads, give_up_after)


@app.command()
@_errors_for_people
def sweep(
    sweep_file: Annotated[Path, typer.Argument(metavar="SWEEP.toml")],
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Instead of the sweep file's.")] = None,
    verbose: Verbose = False,
) -> None:
    """Run a grid of federations without gRPC: accuracy against bytes; started again, it goes on."""
    log.set_up(verbose)
    from featherfed.cli.sweep import run_sweep

    run_sweep(sweep_file, workers, output)


@app.command()
@_errors_for_people
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run's output directory.")],
) -> None:
    """Make report.html and the plots from metrics.json, and print the tables."""
    log.set_up(False)
    from featherfed.cli.tables import show_tables
    from featherfed.report.render import render

    path = render(directory)
    show_tables(directory)
    typer.echo(f"report: {path}")


@app.command()
@_errors_for_people
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL.tflite")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IMAGES]...", help="Pictures or camera frames; .npy or .npz."),
    ] = None,
) -> None:
    """Classify images with an exported model; without any, the run's own sample images."""
    log.set_up(False)
    from featherfed.cli.predict import predict_images

    predict_images(model, images or [])


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(importlib.metadata.version("featherfed"))


if __name__ == "__main__":
    app()
