"""The round that measures a model's moving averages: on clients, on the server, and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.clients import Pull
from support.federation import Federation

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest, Role, TensorSpec, Uniform
from featherfed.edge_client.calibration import calibrated, without_averages
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.trainer import TrainingResult
from featherfed.proto import federation_pb2 as pb
from featherfed.server.rounds.total import TotalRounds

Start = Callable[..., Federation]

NORMALIZED = Manifest(
    (
        TensorSpec("kernel", (12, 16), initial=Uniform(0.1)),
        TensorSpec("mean", (16,), Role.STATISTIC, momentum=0.9),
        TensorSpec("variance", (16,), Role.NONNEGATIVE, momentum=0.9),
    )
)


class Measuring(Pull):
    """Trains as Pull does; its averages are a thousandth of the mean weight after training."""

    def train(self, weights: list[Array], task: pb.Train) -> TrainingResult:  # type: ignore[override]
        trained = super().train(weights, task)
        return TrainingResult([trained.weights[0], *weights[1:]], trained.loss)

    def calibrate(self, weights: list[Array], task: pb.Train) -> TrainingResult:
        mean = np.full(16, weights[0].mean() / 1000, np.float32)
        return TrainingResult([weights[0], mean, np.square(mean)], 0.5)


def test_nothing_is_left_of_the_old_averages() -> None:
    weights = [np.ones((12, 16), np.float32), *[np.full(16, 7, np.float32)] * 2]
    moved = without_averages(NORMALIZED, weights)
    assert not moved[1].any()
    assert not moved[2].any()
    for _ in range(5):  # as a layer moves them, towards 3
        moved[1], moved[2] = (np.float32(0.9) * m + np.float32(0.3) for m in moved[1:])
    measured = calibrated(NORMALIZED, weights, moved, 5)
    assert measured[0] is weights[0]
    np.testing.assert_allclose(measured[1], 3, rtol=1e-6)


@pytest.mark.parametrize("uplink", ["sketch(0.5)", "float32", "balanced"])
def test_the_last_round_measures_and_does_not_train(federation: Start, uplink: str) -> None:
    server = federation(
        manifest=NORMALIZED, rounds=2, clients={"minimum": 2}, compression={"uplink": uplink}
    )
    server.run_clients(*(server.client(name, trainer=Measuring(1.0)) for name in "ab"))
    versions = server.store.versions
    assert versions.newest().version == 3
    (kernel, mean, variance), _ = versions.model(NORMALIZED)
    # 16-bit floats: 8 bits would be off by 3 %, in the same direction for all clients.
    np.testing.assert_allclose(mean, kernel.mean() / 1000, rtol=1e-3)
    np.testing.assert_allclose(variance, np.square(kernel.mean() / 1000), rtol=1e-3)
    sent = {u.codec for u in server.store.journal.updates(3)}
    assert sent == {"sketch(1e-09, 1, bare, whole)"}
    assert max(len(u.payload or b"") for u in server.store.journal.updates(3)) < 100


def test_a_trainer_that_cannot_measure_says_so(federation: Start) -> None:
    server = federation(manifest=NORMALIZED, rounds=1, clients={"minimum": 1})
    with pytest.raises(ClientError, match="has no method calibrate"):
        server.run_clients(server.client("a", trainer=Pull(1.0)))


def test_more_rounds_train_as_many_and_measure_again() -> None:
    plain = TotalRounds(3)
    assert plain.last == 3
    assert not plain.is_calibration(3)
    total = TotalRounds(3, calibrates=True)
    assert [total.is_calibration(r) for r in range(1, 5)] == [False, False, False, True]
    # Raised to 5 before its end: the fourth round trains.
    early = TotalRounds(3, ((3, 5),), calibrates=True)
    assert [r for r in range(1, 7) if early.is_calibration(r)] == [6]
    assert early.last == 6
    # Raised to 5 after it: the fourth measured, and two more train.
    late = TotalRounds(3, ((5, 5),), calibrates=True)
    assert [r for r in range(1, 8) if late.is_calibration(r)] == [4, 7]
    assert late.last == 7
    assert [late.trained(r) for r in (1, 3, 5, 6)] == [1, 3, 4, 5]


def test_a_finished_run_goes_on_after_its_measurement(federation: Start, tmp_path: Path) -> None:
    for rounds in (1, 2):
        server = federation(manifest=NORMALIZED, rounds=rounds, clients={"minimum": 1})
        server.run_clients(server.client("a", trainer=Measuring(1.0)))
        server.close()
    server = federation(manifest=NORMALIZED, rounds=2, clients={"minimum": 1})
    rounds = server.coordinator.run.rounds
    assert server.store.versions.newest().version == 4
    assert [r for r in range(1, 5) if rounds.is_calibration(r)] == [2, 4]


def test_a_private_run_spends_no_round_on_it(federation: Start) -> None:
    server = federation(
        manifest=NORMALIZED,
        rounds=1,
        clients={"minimum": 2},
        privacy={"noise_multiplier": 1.0},
        compression={"uplink": "float32 | zstd", "broadcast": "aggregate"},
        evaluation={"clients": 0},
    )
    assert server.coordinator.run.rounds.last == 1
