"""A server's texts forge lines, colour the terminal and fill it: what reaches a client's user.

Every case runs a client in a process of its own, with the log and the error messages of the
commands, and looks at what it prints.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.hostile_server import SEED, HostileServer, abort, plan

from featherfed.proto import federation_pb2 as pb

FORGED = "12:00:00 INFO run finished; all is well"
HOSTILE = f"x\n{FORGED}\r\x1b[2J\x1b[31m\u202e"
LONG = HOSTILE + "y" * 3_000_000


def measure(scratch: Path) -> dict[str, Any]:
    """Return by case how many lines were forged, and what else was printed."""
    figures: dict[str, Any] = {}
    for name, answers in _cases().items():
        with HostileServer(**answers) as server:
            figures |= _figures(name, _printed("join", server.address, scratch / name))
    for name, what in (("names of classes", "labels"), ("a run on the network", "discovery")):
        figures |= _figures(name, _printed(what, "-", scratch))
    return figures


def _cases() -> dict[str, dict[str, Any]]:
    """Return by case what the server answers."""
    refused = pb.SubmitReply(outcome=pb.REFUSED, reason=pb.MALFORMED, detail=LONG)
    task = pb.Train(round=1, codec=HOSTILE, digest=SEED, slots=1)
    ended = abort(grpc.StatusCode.FAILED_PRECONDITION, "the run has ended")
    final = abort(grpc.StatusCode.FAILED_PRECONDITION, HOSTILE)
    return {
        "error of a call": {"Join": final},
        "refusal of an update": {"SubmitUpdate": refused},
        "name of the run": {"Join": _joined(run=HOSTILE), "NextTask": ended},
        "long role of a tensor": {"Join": _joined(manifest=[pb.Tensor(role="y" * 1_900_000)])},
        "codec of a task": {"NextTask": pb.NextTaskReply(train=task)},
    }


def _joined(**changes: Any) -> pb.JoinReply:
    return pb.JoinReply(session=1, plan=plan(**changes))


def _printed(what: str, address: str, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, what, address, str(folder)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def _figures(name: str, printed: str) -> dict[str, Any]:
    lines = printed.replace("\r", "\n").split("\n")
    return {
        f"{name}: forged lines": sum(line.startswith(FORGED) for line in lines),
        f"{name}: control characters": sum(
            not char.isprintable() for char in printed if char != "\n"
        ),
        f"{name}: characters printed": len(printed),
    }


def _join(address: str, folder: Path) -> None:
    from support.clients import Pull, profile

    from featherfed.edge_client.grpc_transport import GrpcTransport
    from featherfed.edge_client.session import Session
    from featherfed.edge_client.state import ClientState

    Session(
        profile("client"),
        GrpcTransport(address, 3),
        lambda plan, manifest, step: Pull(1.0),
        lambda run: ClientState(folder, run),
    ).run()


def _labels(address: str, folder: Path) -> None:
    """Print the names of the classes in a file as `predict` does."""
    from featherfed.models.tflite import read_labels

    path = folder / "model_int8.tflite"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labels.txt", HOSTILE.replace("\n", "\r") + "y" * 10_000 + "\n")
    for name in read_labels(path):
        print(f"{name}  0.9")


def _discovery(address: str, folder: Path) -> None:
    """Choose between two servers that announce themselves."""
    from zeroconf import ServiceInfo

    from featherfed.edge_client.discovery import SERVICE_TYPE, _announced_server, choose_server

    infos = [
        ServiceInfo(
            SERVICE_TYPE,
            f"{number}.{SERVICE_TYPE}",
            addresses=[b"\x7f\0\0\1"],
            port=1,
            properties={"run": HOSTILE},
        )
        for number in range(2)
    ]
    choose_server([_announced_server(info) for info in infos], 1, lambda address: False)


def _main(what: str, address: str, folder: str) -> None:
    from featherfed.cli import log
    from featherfed.cli.commandline import print_errors

    log.set_up(verbose=False)
    case = {"join": _join, "labels": _labels, "discovery": _discovery}[what]
    try:
        print_errors(lambda: case(address, Path(folder)))()
    except BaseException as error:
        if type(error).__name__ != "Exit":
            raise


if __name__ == "__main__":
    _main(*sys.argv[1:])
