"""Who may join: pure checks that raise Refused with a reason a person can act on."""

from __future__ import annotations

from dataclasses import dataclass

from featherfed.proto import federation_pb2 as pb
from featherfed.server.access.names import _NAME
from featherfed.server.errors import Refused

MAX_EXAMPLES = 10**8
"""More than any client can train on; as a weight in the mean it would silence all others."""


@dataclass(frozen=True)
class DataShape:
    """What a client's data must look like to train the run's model."""

    example_shape: tuple[int, ...]
    """Height, width, channels."""
    class_names: tuple[str, ...]
    """By label."""


def check_runtime(runtime: str) -> None:
    """Refuse what is no plain, short word: it stands in metrics and pages. Old clients say none."""
    if runtime and not _NAME.fullmatch(runtime):
        raise Refused(pb.MISSING_CAPABILITY, "a runtime has a plain name, such as keras or litert")


def check_data(data: pb.DataSummary, wanted: DataShape) -> None:
    """Refuse data that do not fit the run's model."""
    if tuple(data.example_shape) != wanted.example_shape:
        raise Refused(
            pb.DATA_MISMATCH,
            f"examples of shape {tuple(data.example_shape)} do not fit the run's model, which "
            f"takes {wanted.example_shape}; convert the data or join another run",
        )
    names = wanted.class_names
    if not 1 <= data.num_classes <= len(names):
        raise Refused(
            pb.DATA_MISMATCH,
            f"labels up to {int(data.num_classes) - 1} do not fit the run's model, which has "
            f"{len(names)} classes",
        )
    if data.class_names and tuple(data.class_names) != names:
        raise Refused(
            pb.DATA_MISMATCH,
            f"classes {', '.join(data.class_names)} are not the run's {', '.join(names)}; in a "
            "folder of images, every class needs a subfolder, even an empty one",
        )
    if data.num_examples < 1:
        raise Refused(pb.DATA_MISMATCH, "there is not one example to train on")
    if data.num_examples > MAX_EXAMPLES:
        raise Refused(
            pb.BAD_EXAMPLE_COUNT,
            f"{data.num_examples} examples are more than any device has (at most {MAX_EXAMPLES})",
        )


def check_capabilities(has: pb.Capabilities, needed: set[str]) -> None:
    """Refuse a client that lacks a codec stage or the optimisation method."""
    missing = sorted(needed - set(has.stages) - set(has.methods))
    if missing:
        raise Refused(
            pb.MISSING_CAPABILITY,
            f"the run needs {', '.join(missing)}, which this client cannot do; update featherfed "
            "on it",
        )
