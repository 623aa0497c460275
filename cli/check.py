"""`featherfed check`: whether what a run or a client left on disk belongs together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click

from featherfed.cli.backup import DATABASE, copy_database
from featherfed.cli.check_run import checks_of_run
from featherfed.compression.exchange.manifest import weights_digest
from featherfed.edge_client import statefile
from featherfed.edge_client.errors import ClientError
from featherfed.server.errors import ServerError
from featherfed.server.storage.store import Store

FILES = ("model", "residual", "pending")

_PAGES = "pages and indices of the database"

Check = tuple[str, Callable[[], Iterator[str]]]
"""What is checked, and what yields a text for everything that is wrong."""


def check(directory: Path) -> bool:
    """Check a run's output or a client's state directory; print it, return whether all is good.

    A run is checked as of one moment, on a copy, so its server may go on.
    """
    if (directory / DATABASE).is_file():
        return _check_run(directory / DATABASE)
    if any((directory / f"{name}.npz").exists() for name in FILES):
        return _report(_checks_of_client(directory))
    raise ClientError(
        f"{directory} holds neither a run ({DATABASE}) nor a client's state (model.npz); give the "
        "output directory of `featherfed serve` or the state directory of `featherfed join`"
    )


def _check_run(path: Path) -> bool:
    with tempfile.TemporaryDirectory(prefix="featherfed-") as scratch:
        copy = Path(scratch) / DATABASE
        try:
            copy_database(path, copy)
            store = Store(copy)
        except ServerError as error:
            return _report([(_PAGES, partial(iter, [str(error)]))])
        try:
            return _report([(_PAGES, partial(iter, ())), *checks_of_run(store)])
        finally:
            store.close()


def _report(checks: list[Check]) -> bool:
    good = True
    for name, find in checks:
        try:
            wrong = list(find())
        except Exception as error:  # a damaged row may break anything
            wrong = [f"{type(error).__name__}: {error}"]
        click.echo(f"{'WRONG' if wrong else 'ok   '} {name}")
        for text in wrong:
            click.echo(f"      {text}")
        good = good and not wrong
    return good


def _checks_of_client(directory: Path) -> list[Check]:
    found: dict[str, statefile.Content] = {}

    def read(name: str) -> Iterator[str]:
        try:
            found[name] = statefile.load(directory / f"{name}.npz")
        except FileNotFoundError:
            return
        except (statefile.Damaged, OSError) as error:
            yield f"{name}.npz: {error}; delete it, the client goes on without it"

    def together() -> Iterator[str]:
        runs = {name: facts["run"] for name, (facts, _) in found.items()}
        if len(set(runs.values())) > 1:
            yield f"files of several runs: {runs}; all but those of the newest run are ignored"
        shapes = {
            f"{name}/{group}": [tensor.shape for tensor in tensors]
            for name, (_, groups) in found.items()
            for group, tensors in groups.items()
        }
        if len({str(one) for one in shapes.values()}) > 1 and len(set(runs.values())) == 1:
            yield f"tensors of different shapes in {', '.join(sorted(shapes))}"

    def digest() -> Iterator[str]:
        if "model" in found:
            facts, groups = found["model"]
            if weights_digest(groups["weights"]).hex() != facts["digest"]:
                yield f"model.npz is not version {facts['version']} by its digest"

    reads: list[Check] = [(f"{name}.npz", partial(read, name)) for name in FILES]
    return [*reads, ("the model's digest", digest), ("files belong together", together)]
