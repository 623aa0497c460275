"""The checks of a client's state directory: digests, and files that fit each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from featherfed.compression.exchange.manifest import weights_digest
from featherfed.edge_client import statefile

FILES = ("model", "residual", "pending")

Check = tuple[str, Callable[[], Iterator[str]]]
"""What is checked, and a function that yields a text for everything that is wrong."""


def checks_of_client(directory: Path) -> list[Check]:
    """Return the checks of a client's state directory, to be run in this order."""
    found: dict[str, statefile.Content] = {}

    def read(name: str) -> Iterator[str]:
        try:
            found[name] = statefile.load(directory / f"{name}.npz")
        except FileNotFoundError:
            return
        except (statefile.Damaged, OSError) as error:
            yield f"{name}.npz: {error}; delete it, the client goes on without it"

    def together() -> Iterator[str]:
        runs = {name: fields["run"] for name, (fields, _) in found.items()}
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
            fields, groups = found["model"]
            if weights_digest(groups["weights"]).hex() != fields["digest"]:
                yield f"model.npz is not version {fields['version']} by its digest"

    reads: list[Check] = [(f"{name}.npz", partial(read, name)) for name in FILES]
    return [*reads, ("the model's digest", digest), ("files belong together", together)]
