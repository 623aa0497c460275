"""Presets raise their bytes where noise is large beside the weights, and keep doing so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from support.clients import WithoutData
from support.federation import Federation
from support.models import TASK

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest, Role, TensorSpec, Uniform
from featherfed.compression.exchange.noise import MeanNoise, NoiseSum, weight_noise
from featherfed.edge_client.trainer import TrainingResult
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.update_codecs import UpdateCodecs
from featherfed.server.observability.metrics_json import collect
from featherfed.server.rounds.promise import LIMITS, MAX_FACTOR, Promise
from featherfed.server.rounds.uplink import PRESETS, Preset, Uplink
from featherfed.server.settings.settings import Settings

Start = Callable[..., Federation]
MODEL = Manifest((TensorSpec("kernel", (200, 100), initial=Uniform(0.1)), TensorSpec("bias", (9,))))


BALANCED = Promise("balanced", "accuracy")


def test_every_preset_by_bytes_has_a_limit() -> None:
    assert {name for name, preset in PRESETS.items() if isinstance(preset, Preset)} == set(LIMITS)
    assert BALANCED.limit(1) > BALANCED.limit(2) > BALANCED.limit(3) == LIMITS["balanced"]
    assert LIMITS["transparent"] < LIMITS["balanced"] < LIMITS["extreme"]


def test_bytes_go_with_the_noise() -> None:
    most = LIMITS["balanced"]
    assert BALANCED.next_factor(1.0, 0.9 * most, 5) == 1.0
    assert BALANCED.next_factor(1.0, 2.5 * most, 5) == 2.5
    assert BALANCED.next_factor(2.5, 0.8 * most, 6) == 2.0
    assert BALANCED.next_factor(2.5, 0.1 * most, 6) == 1.0
    assert BALANCED.next_factor(2.0, 2.0 * most, 6) == 4.0
    assert BALANCED.next_factor(1.0, 2.5 * most, 1) == 1.0
    assert BALANCED.next_factor(2.0, 1e9, 5) == MAX_FACTOR


def test_errors_have_tighter_limits_than_shares_and_a_safe_first_round() -> None:
    assert BALANCED.first_factor == Promise("balanced", "pulse_top5").first_factor == 1
    for metric in ("mse", "pulse_mae", "loss", "perplexity"):
        other = Promise("balanced", metric)
        assert other.first_factor == MAX_FACTOR
        assert other.limit(3) == pytest.approx(BALANCED.limit(3) / 10)
        assert other.next_factor(16.0, other.limit(1) / 20, 1) == 1


def test_noise_is_weighed_against_the_tensor_that_it_is_in() -> None:
    manifest = Manifest(
        (
            TensorSpec("large", (40, 30)),
            TensorSpec("small", (8,)),
            TensorSpec("mean", (2000,), Role.STATISTIC),
            TensorSpec("other", (1024,)),
        )
    )
    weights: list[Array] = [np.full(spec.shape, 2, np.float32) for spec in manifest]
    noise = MeanNoise(100.0, 1.0, (50, 20, 0, 30))
    expected = 50 / (4 * 1200) + 30 / (4 * 1024)
    assert weight_noise(manifest, weights, noise, 256) == pytest.approx(expected)
    assert weight_noise(manifest, weights, noise, 128) == pytest.approx(expected / 4)
    weights[0][:] = 0
    assert np.isfinite(weight_noise(manifest, weights, noise, 256))


class Moves(WithoutData):
    """A trainer that adds normal values of one size to the weights."""

    def __init__(self, size: float) -> None:
        self._size = np.float32(size)

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        draw = np.random.default_rng(task.round)
        moved = [w + draw.standard_normal(w.shape, np.float32) * self._size for w in weights]
        return TrainingResult(moved, 0.5)


def run(federation: Start, size: float, uplink: str, folder: str) -> Federation:
    server = federation(
        folder, manifest=MODEL, rounds=4, clients={"minimum": 3}, compression={"uplink": uplink}
    )
    server.run_clients(*(server.client(name, trainer=Moves(size)) for name in "abc"))
    return server


def entries(server: Federation) -> list[Any]:
    found: list[Any] = collect(server.store, server.settings, TASK, MODEL, {})["rounds"]
    return found


def sizes(server: Federation) -> list[int]:
    clients = [entry["clients"] for entry in entries(server)]
    return [max(client["uplink"]["payload_bytes"] for client in own) for own in clients]


def test_a_run_with_large_steps_sends_more(
    federation: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    calm = run(federation, 1e-4, "balanced", "calm")
    assert "usual bytes" not in caplog.text
    large = run(federation, 0.5, "balanced", "large")
    factors = [entry["byte_factor"] for entry in entries(large)]
    assert factors[0] == 1
    assert 1 < factors[-1] <= MAX_FACTOR
    assert "times the usual bytes of 'balanced': the noise was" in caplog.text
    assert sizes(large)[0] == sizes(calm)[0]
    assert sizes(large)[-1] > 1.5 * sizes(calm)[-1]
    # A server that starts anew goes on with what was stored.
    assert large.store.journal.byte_factor(4) == factors[-1]
    assert large.store.journal.byte_factor(1) == 1
    budget = run(federation, 0.5, "1200B/round", "budget")
    assert max(sizes(budget)) < 500
    assert all("byte_factor" not in entry for entry in entries(budget))


def test_one_liar_does_not_raise_the_bytes_of_all() -> None:
    honest, liar = [np.full((40, 30), 1, np.float32)], [np.full((40, 30), 1000, np.float32)]
    manifest = Manifest((TensorSpec("kernel", (40, 30)),))
    sums = [NoiseSum(manifest), NoiseSum(manifest)]
    for client in range(5):
        sums[0].add(honest, 1000.0, 0.2, 1.0)
        sums[1].add(*((honest, 1000.0) if client else (liar, 1e9)), 0.2, 1.0)
    plain, with_liar = (found.result() for found in sums)
    assert plain is not None
    assert with_liar is not None
    assert with_liar.noise > 1e5 * plain.noise
    assert with_liar.tensors == pytest.approx(plain.tensors)
    assert sum(plain.tensors) == pytest.approx(plain.noise)


def test_only_a_preset_is_multiplied() -> None:
    for text, grows in (("balanced", True), ("1200B/round", False), ("sketch(0.1)", False)):
        uplink = Uplink(text, MODEL, 7)
        assert (uplink.codec(5, 3, factor=4) != uplink.codec(5, 3)) is grows


def test_the_first_round_is_dense_where_the_metric_is_an_error() -> None:
    settings = Settings.model_validate({"rounds": 7, "compression": {"uplink": "balanced"}})
    known = frozenset({"sketch", "bounded", "topk", "quantize", "zstd"})
    share, error = (UpdateCodecs(settings, MODEL, "bounded", m) for m in ("accuracy", "mae"))
    assert [error.factor(round_) for round_ in (1, 2)] == [MAX_FACTOR, 1]
    assert error.choose(1, 5, known) != share.choose(1, 5, known)
    assert error.choose(2, 5, known) == share.choose(2, 5, known)
    assert error.choose(1, 2, known) == share.choose(1, 2, known), "of a small cohort all is known"
