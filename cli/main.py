"""The command line: `featherfed demo | serve | join | follow | watch | certs | sweep | ...`."""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import Any

import click

from featherfed.api.signals import end_on_sigterm
from featherfed.cli import log
from featherfed.cli.commandline import Group, logging_options, print_errors
from featherfed.edge_client.platform import check_platform
from featherfed.models.importing import importing_tensorflow, without_noise

AT_LEAST_0, AT_LEAST_1 = click.IntRange(min=0), click.IntRange(min=1)
PATH = click.Path(path_type=Path)


@click.group(
    cls=Group,
    no_args_is_help=True,
    context_settings={"show_default": True, "max_content_width": 100},
)
@click.version_option(package_name="featherfed", message="%(version)s")
def app() -> None:
    """Federated learning for small devices on thin links."""


credentials_option = click.option(
    "--credentials",
    type=PATH,
    metavar="FOLDER",
    envvar="FEATHERFED_CREDENTIALS",
    help="What `featherfed certs client` made for this device.",
)
insecure_option = click.option(
    "--insecure", is_flag=True, help="Without encryption also to another machine."
)


@app.command()
@click.option("--dataset", default="digits", help="digits, fashion-mnist or a folder.")
@click.option("--clients", type=AT_LEAST_1, default=5)
@click.option("--rounds", type=AT_LEAST_1, default=7)
@click.option("--epochs", type=AT_LEAST_1, default=5, help="Local epochs a round.")
@click.option("--batch-size", type=AT_LEAST_1, default=32)
@click.option("--learning-rate", type=float, help="0.01, or 0.1 for digits.")
@click.option(
    "--uplink",
    "--budget",
    default="balanced",
    metavar="TEXT",
    help="exact, transparent, balanced, extreme; a budget of all clients together, such as "
    "4kB/round; or codec text.",
)
@click.option(
    "--downlink",
    default="deadzone(0.15) | zstd(1)",
    metavar="CODEC",
    help="Of the mean, where updates are not forwarded.",
)
@click.option(
    "--optimize",
    default="none",
    metavar="METHOD",
    help="none, prune, cluster, qat or prune+qat.",
)
@click.option("--partition", default="iid", help="iid or dirichlet:ALPHA.")
@click.option(
    "--model", default="cnn", help="cnn, mlp, mobile, gru or a Keras configuration (.json)."
)
@click.option(
    "--runtime",
    type=click.Choice(["auto", "keras", "litert", "mixed"]),
    default="auto",
    help="What clients train with; auto: LiteRT, which starts sooner, where it is installed and "
    "can do it; mixed: every other one with LiteRT.",
)
@click.option("--seed", type=AT_LEAST_0, default=0)
@click.option(
    "--page",
    default="127.0.0.1:0",
    metavar="HOST:PORT",
    help="Of the live page; port 0: any; off: none.",
)
@click.option("--output", type=PATH, default="runs/demo", help="Replaced if it holds a demo.")
@logging_options
@print_errors
def demo(**options: Any) -> None:
    """Train over real gRPC on this machine: a server and CLIENTS processes of their own."""
    from featherfed.cli.demo import DemoOptions, run_demo

    run_demo(DemoOptions(**options))


@app.command()
@click.argument("run_file", type=PATH, metavar="RUN.toml")
@click.option("--host", help="Instead of the run file's.")
@click.option("--port", type=int, help="Instead of the run file's; 0: any.")
@click.option(
    "--rounds",
    type=AT_LEAST_1,
    help="Instead of the run file's; with more, a run goes on.",
)
@click.option("--page", metavar="HOST:PORT", help="Where the live page is; 127.0.0.1:8780, say.")
@click.option("--credentials", type=PATH, metavar="DIR", help="What `featherfed certs init` made.")
@click.option("--insecure", is_flag=True, help="Without encryption where others can listen.")
@click.option(
    "--postgres",
    metavar="DSN",
    help="Keep the run in this PostgreSQL database, postgresql://USER@HOST/NAME, say; the password "
    "is taken from PGPASSWORD or ~/.pgpass.",
)
@click.option(
    "--advertise",
    metavar="HOST:PORT",
    help="Where the run's other servers reach this one, with --postgres.",
)
@logging_options
@print_errors
def serve(
    run_file: Path,
    host: str | None,
    port: int | None,
    rounds: int | None,
    page: str | None,
    credentials: Path | None,
    insecure: bool,
    postgres: str | None,
    advertise: str | None,
) -> None:
    """Serve a run; started again after any kind of death, it goes on where it was.

    With more --rounds than it had, a run goes on, also one that has ended.

    With --postgres, further servers of the same run pass calls on to the first, and one of them
    takes over when that dies.

    SIGTERM and Ctrl-C let uploads under way end first; a second one ends at once. Exit status: 0
    after the run's end, 4 if none of its rounds gave a usable model, 3 before the end, 1 after an
    error, 130 or 143 after a second signal.
    """
    from featherfed.api.serve_settings import serve_settings
    from featherfed.server.settings.settings import load_settings

    # Before the imports below, which take seconds.
    loaded = load_settings(run_file)
    loaded = loaded if rounds is None else loaded.wanting_rounds(rounds)
    settings = serve_settings(loaded, host, port, credentials, insecure, page, postgres, advertise)
    log.say("loading TensorFlow")
    with importing_tensorflow():
        from featherfed.api.serve import serve_run

    status = serve_run(settings)
    gc.freeze()  # or Python looks at all of TensorFlow's objects once more: a second
    sys.exit(status)


@app.command()
@click.argument("address", metavar="[HOST:PORT]", required=False)
@click.option(
    "--data",
    required=True,
    help="FILE.npz with x and y, a table (.csv, .csv.gz, .parquet) with the task's columns, a "
    "folder of images by class, or MODULE:FUNCTION.",
)
@click.option("--name", help="Default: this machine's name and a random suffix.")
@click.option("--state-dir", type=PATH, help="Default: ~/.local/state/featherfed/NAME.")
@click.option("--threads", type=AT_LEAST_0, default=0, help="For training; 0: all cores.")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "keras", "litert"]),
    default="auto",
    help="Keras where TensorFlow is installed, else LiteRT.",
)
@click.option(
    "--memory", type=AT_LEAST_1, metavar="MB", help="End rather than use more than so much."
)
@click.option("--pause-above", type=float, metavar="CELSIUS", help="Rest while the device is hot.")
@click.option("--pause-on-battery", is_flag=True, help="Rest while there is no mains power.")
@click.option("--give-up-after", type=float, default=3600.0, help="Seconds without a server.")
@click.option("--stay", is_flag=True, help="After a run's end, wait for the server's next run.")
@click.option("--reread", is_flag=True, help="Read the data anew before each round: they grow.")
@click.option(
    "--evaluate", metavar="DATA", help="Evaluate on these instead of on a share of the data."
)
@credentials_option
@insecure_option
@logging_options
@print_errors
def join(address: str | None, **options: Any) -> None:
    """Train on this machine's data for the run at HOST:PORT until it is finished.

    Without HOST:PORT, the server is looked for in the local network.

    With --stay it never ends by itself: it takes part in each run that the server serves, and looks
    for one every minute.

    It may be ended at any moment and started again. Exit status: 0 after the run's end, 1 after an
    error, 130 after Ctrl-C, 143 after SIGTERM.
    """
    end_on_sigterm("ended by SIGTERM; nothing is lost: the same command goes on with the run")
    check_platform()
    from featherfed.api.join import JoinOptions, join_run
    from featherfed.edge_client.discovery import find_server

    if not address and not options["stay"]:
        address = find_server()
    click.echo(join_run(JoinOptions(address or None, **options)))


@app.command()
@click.argument("address", metavar="[HOST:PORT]", required=False)
@click.option("--model-dir", type=PATH, required=True, help="Where the file is kept.")
@click.option("--kind", default="int8", help="int8, dynamic, float16 or float32.")
@click.option("--name", help="Default: this machine's name and a random suffix.")
@click.option("--once", is_flag=True, help="End once the file is the newest.")
@click.option("--give-up-after", type=float, help="Seconds without a server; default: never.")
@credentials_option
@insecure_option
@logging_options
@print_errors
def follow(
    address: str | None,
    model_dir: Path,
    kind: str,
    name: str | None,
    once: bool,
    give_up_after: float | None,
    credentials: Path | None,
    insecure: bool,
) -> None:
    """Keep the newest model of the run at HOST:PORT as a .tflite file, by compressed deltas.

    Without HOST:PORT, the server is looked for in the local network.
    """
    end_on_sigterm(f"stopped; the file in {model_dir} stays as it is", status=0)
    from featherfed.cli.follow import follow_run
    from featherfed.edge_client.credentials import choose_credentials
    from featherfed.edge_client.discovery import find_server

    address = address or find_server()
    chosen = choose_credentials(address, credentials, insecure)
    follow_run(address, model_dir, kind, name, once, give_up_after, chosen)


@app.command()
@click.argument("address", metavar="HOST:PORT")
@click.option(
    "--token",
    envvar="FEATHERFED_PAGE_TOKEN",
    show_default=False,
    help="For a page that asks for one; it is in page.token of the run's output folder.",
)
@click.option("--give-up-after", type=float, help="Seconds without the page; default: never.")
@print_errors
def watch(address: str, token: str | None, give_up_after: float | None) -> None:
    """Show what the run is doing whose live page is at HOST:PORT, until it has finished.

    In a terminal it is a screen that goes on by itself, elsewhere a line for each change. It looks
    for the page again when the server is away.

    Exit status: 0 after the run's end, 1 after an error, 130 after Ctrl-C.
    """
    from featherfed.cli.watch import watch_run

    watch_run(address, token, give_up_after)


@app.group(cls=Group, no_args_is_help=True)
def certs() -> None:
    """Make the certificates and tokens by which a server knows its clients."""


folder_argument = click.argument("folder", type=PATH, metavar="DIR")
names_argument = click.argument("names", nargs=-1, required=True, metavar="NAME...")
hosts_option = click.option(
    "--host", "hosts", multiple=True, help="A name or IP address of the server; can be repeated."
)
days_option = click.option("--days", type=AT_LEAST_1, default=730, help="How long it is valid.")
ca_days_option = click.option(
    "--ca-days", type=AT_LEAST_1, default=3650, help="How long an authority is valid."
)


@certs.command("init")
@folder_argument
@hosts_option
@days_option
@ca_days_option
@print_errors
def certs_init(folder: Path, hosts: tuple[str, ...], days: int, ca_days: int) -> None:
    """Make an authority and the server's certificate in DIR."""
    from featherfed.cli.certs import init

    init(folder, hosts, ca_days, days)


@certs.command("client")
@folder_argument
@names_argument
@days_option
@click.option(
    "--renew", is_flag=True, help="Replace a name's credentials; the old ones end at once."
)
@print_errors
def certs_client(folder: Path, names: tuple[str, ...], days: int, renew: bool) -> None:
    """Enrol devices: one folder each, DIR/clients/NAME, to copy to the device."""
    from featherfed.cli.certs import enrol

    enrol(folder, names, days, renew)


@certs.command("rotate")
@folder_argument
@hosts_option
@days_option
@click.option("--ca", "new_ca", is_flag=True, help="Make a new authority too; trust both.")
@ca_days_option
@click.option("--drop-old", is_flag=True, help="End the trust in all authorities but the newest.")
@print_errors
def certs_rotate(
    folder: Path, hosts: tuple[str, ...], days: int, new_ca: bool, ca_days: int, drop_old: bool
) -> None:
    """Give the server a new certificate, for the same hosts unless some are given."""
    if drop_old and (new_ca or hosts):
        raise click.UsageError("--drop-old goes alone: devices need time between the two steps")
    from featherfed.cli.certs import rotate

    rotate(folder, hosts, days, new_ca, ca_days, drop_old)


@certs.command("revoke")
@folder_argument
@names_argument
@print_errors
def certs_revoke(folder: Path, names: tuple[str, ...]) -> None:
    """End the access of devices, also to a server that runs."""
    from featherfed.cli.certs import revoke

    revoke(folder, names)


@certs.command("list")
@folder_argument
@print_errors
def certs_list(folder: Path) -> None:
    """List the enrolled devices, and when each certificate expires."""
    from featherfed.cli.certs import show

    show(folder)


@app.command()
@click.argument("sweep_file", type=PATH, metavar="SWEEP.toml")
@click.option("--workers", type=AT_LEAST_0, default=0, help="Runs side by side; 0: for each core.")
@click.option("--output", type=PATH, help="Instead of the sweep file's.")
@click.option(
    "--ray",
    metavar="[ADDRESS]",
    is_flag=False,
    flag_value="auto",
    help="Run on a Ray cluster; without an address on the one that this machine is part of.",
)
@logging_options
@print_errors
def sweep(sweep_file: Path, workers: int, output: Path | None, ray: str | None) -> None:
    """Run a grid of federations without gRPC: quality against bytes; started again, it goes on.

    Exit status: 0 if all runs have a result, 1 if some failed; the others go on then, and the same
    command tries those that failed again.
    """
    for module in ("tensorflow", "tf_keras"):  # the workers import them
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(name=module)
    from featherfed.cli.sweep import run_sweep

    run_sweep(sweep_file, workers, output, ray)


@app.command()
@click.argument("directory", type=PATH, metavar="DIR")
@print_errors
def report(directory: Path) -> None:
    """Make report.html and the plots from metrics.json, and print the tables.

    DIR is a run's output directory.
    """
    log.set_up(False)
    from featherfed.cli.tables import show_tables
    from featherfed.report.render import render

    path = render(directory)
    show_tables(directory)
    click.echo(f"report: {path}")


@app.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--baseline", metavar="NAME", help="The line to compare with; default: the first.")
@click.option("--output", type=PATH, default="compare.html", help="Where the page is written.")
@print_errors
def compare(runs: tuple[str, ...], baseline: str | None, output: Path) -> None:
    """Compare runs of one task: quality, bytes and time, as a table and a page.

    RUN is a run's output directory or a file such as metrics.json, or NAME=RUN. Runs that differ
    only by their seed, and runs of one NAME, are one line, with mean and spread.
    """
    log.set_up(False)
    from featherfed.cli.compare import run_compare

    run_compare(runs, baseline, output)


@app.command()
@click.argument("directory", type=PATH, metavar="DIR")
@click.option("--version", metavar="N", help="Number or digest; default: the newest.")
@click.option("--best", is_flag=True, help="The version with the best leading metric.")
@click.option("--output", type=PATH, metavar="FOLDER", help="Default: DIR/versions/N.")
@click.option(
    "--kind", "kinds", multiple=True, help="int8, dynamic, float16 or float32; default: all."
)
@logging_options
@print_errors
def export(
    directory: Path, version: str | None, best: bool, output: Path | None, kinds: tuple[str, ...]
) -> None:
    """Make the model files of any version of a run, which may be going on, or stopped.

    DIR is the run's output directory.
    """
    if best and version is not None:
        raise click.UsageError("--best and --version name two versions; drop one")
    with importing_tensorflow():
        from featherfed.api.export import export_version
        from featherfed.models.export import KINDS

    if unknown := sorted(set(kinds) - set(KINDS)):
        raise click.UsageError(f"no kind {unknown[0]!r}; use {', '.join(KINDS)}")
    click.echo(f"files: {export_version(directory, version, best, output, kinds or KINDS)}")


@app.command()
@click.argument("model", type=PATH, metavar="MODEL.tflite")
@click.argument("data", type=PATH, nargs=-1, metavar="[DATA]...")
@print_errors
def predict(model: Path, data: tuple[Path, ...]) -> None:
    """Answer for data with an exported model; without any, for the run's own sample images.

    DATA are pictures or camera frames of any size, or .npy/.npz of the model's inputs, or tables
    (.csv, .csv.gz, .parquet) with their columns.
    """
    log.set_up(False)
    from featherfed.cli import predict as command

    with without_noise():
        command.predict(model, list(data))


@app.command()
@click.argument("directory", type=PATH, metavar="DIR")
@click.argument("destination", type=PATH, metavar="DEST")
@print_errors
def backup(directory: Path, destination: Path) -> None:
    """Copy a run's database to the folder DEST, while its server goes on.

    DIR is the run's output directory. To go back: stop the server, move DIR/run.db* away, copy
    DEST/run.db to DIR, and serve again; DIR/run.published stays.
    """
    log.set_up(False)
    from featherfed.api.backup import back_up

    click.echo(f"backup: {back_up(directory, destination)}")


@app.command()
@click.argument("directory", type=PATH, metavar="DIR")
@print_errors
def check(directory: Path) -> None:
    """Check what a run or a client left on disk: digests, journal, ledger.

    DIR is a run's output directory, its server running or not, or a client's state directory. Ends
    with 1 if anything is wrong.
    """
    log.set_up(False)
    from featherfed.cli.check import check_directory

    sys.exit(0 if check_directory(directory) else 1)


@app.command()
def version() -> None:
    """Print the version."""
    click.echo(importlib.metadata.version("featherfed"))


if __name__ == "__main__":
    app()
