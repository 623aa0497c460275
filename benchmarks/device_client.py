"""A `featherfed join` that records its rounds, and the replay of its training: `make arm64`.

`device_client.py record FOLDER join ...` is the real client; `device_client.py replay FOLDER
DATA.npz NAME THREADS RESULT.npz` trains again from what a recorded client started rounds from.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from codec_digests import digest, drawn

from featherfed.compression.arrays import Array
from featherfed.compression.importance import Allocation
from featherfed.datasets.sources import load_client_data
from featherfed.edge_client import litert_trainer
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.plan import manifest_of, task_of
from featherfed.edge_client.state import ClientState, HeldModel, PendingUpdate
from featherfed.edge_client.trainer import TrainingResult
from featherfed.proto import federation_pb2 as pb

STEP = "training.step"
"""The file of a recorded client's training step."""


@dataclass(frozen=True)
class Recorded:
    """One round of a client: the task, the weights before and after training, and what was sent."""

    task: pb.Train
    held: str
    """The digest of the version it held, as it computed it."""
    allocation: Allocation | None
    start: list[Array]
    trained: list[Array]
    payload: bytes
    coordinates: str
    """The digest of the coordinates that the update's sketch drew."""


def record(folder: Path, arguments: Sequence[str]) -> None:
    """Run a `featherfed` command; keep plan, training step and rounds in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    held: list[HeldModel] = []

    class Trainer(litert_trainer.LitertTrainer):
        def __init__(self, plan: pb.Plan, manifest: Any, step: bytes, *data: Any, **options: Any):
            (folder / "plan.pb").write_bytes(plan.SerializeToString())
            (folder / STEP).write_bytes(step)
            super().__init__(plan, manifest, step, *data, **options)

        def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
            trained = super().train(weights, task)
            where.clear()  # what comes next is the update's own
            known = held[-1].allocation
            facts = {
                "task": task.SerializeToString().hex(),
                "held": held[-1].digest.hex(),
                "allocation": known and [known.levels.hex(), known.profile.hex()],
            }
            arrays = {f"start/{i:03}": w for i, w in enumerate(weights)}
            arrays |= {f"trained/{i:03}": w for i, w in enumerate(trained.weights)}
            np.savez(
                folder / f"round-{task.round}.npz", facts=np.array(json.dumps(facts)), **arrays
            )
            return trained

    class State(ClientState):
        def save_held(self, now: HeldModel) -> None:
            held.append(now)
            (folder / "final").write_text(now.digest.hex(), "utf-8")
            super().save_held(now)

        def save_pending(self, pending: PendingUpdate) -> None:
            (folder / f"round-{pending.round}.payload").write_bytes(pending.payload)
            coordinates = folder / f"round-{pending.round}.coordinates"
            coordinates.write_text(digest(*where), "utf-8")
            super().save_pending(pending)

    from featherfed.edge_client import state

    litert_trainer.LitertTrainer = Trainer  # type: ignore[misc]
    state.ClientState = State  # type: ignore[misc]
    from featherfed.cli.main import app  # only now: it takes those classes as it finds them

    with drawn() as where:
        app(list(arguments))


def load(folder: Path) -> list[Recorded]:
    """Return what `record` kept, in order of rounds."""
    rounds = []
    for path in folder.glob("round-*.npz"):
        with np.load(path, allow_pickle=False) as archive:
            facts = json.loads(str(archive["facts"]))
            start, trained = (
                [archive[name] for name in sorted(archive.files) if name.startswith(f"{group}/")]
                for group in ("start", "trained")
            )
        codes = [bytes.fromhex(text) for text in facts["allocation"] or ()]
        rounds.append(
            Recorded(
                pb.Train.FromString(bytes.fromhex(facts["task"])),
                facts["held"],
                Allocation(*codes) if codes else None,
                start,
                trained,
                path.with_suffix(".payload").read_bytes(),
                path.with_suffix(".coordinates").read_text("utf-8"),
            )
        )
    return sorted(rounds, key=lambda recorded: recorded.task.round)


def replay(folder: Path, data: Path, name: str, threads: int, result: Path) -> None:
    """Repeat the training recorded in `folder`; write the weights of every round to `result`."""
    plan = pb.Plan.FromString((folder / "plan.pb").read_bytes())
    task = task_of(plan)
    trainer = litert_trainer.LitertTrainer(
        plan,
        manifest_of(plan),
        (folder / STEP).read_bytes(),
        Examples.of(task, load_client_data(str(data), task), plan.holdout, name),
        client=name,
        threads=threads,
    )
    arrays: dict[str, Any] = {}
    for recorded in load(folder):
        trained = trainer.train(recorded.start, recorded.task)
        arrays |= {f"{recorded.task.round}/{i:03}": w for i, w in enumerate(trained.weights)}
    np.savez(result, **arrays)


if __name__ == "__main__":
    command, directory, *rest = sys.argv[1:]
    if command == "record":
        record(Path(directory), rest)
    else:
        replay(Path(directory), Path(rest[0]), rest[1], int(rest[2]), Path(rest[3]))
