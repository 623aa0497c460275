"""Differential privacy: the noise, the adaptive clip, and the epsilon that is reported."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.rdp import RdpAccountant
from support.clients import join_request
from support.coordinator import DirectRun
from support.updates import constant, flat, honest, random_update

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.average import Average
from featherfed.compression.exchange.manifest import (
    Fill,
    Manifest,
    Role,
    TensorSpec,
)
from featherfed.compression.exchange.round import RoundContext, round_key
from featherfed.compression.key import Key
from featherfed.report.page import privacy_note
from featherfed.report.render import render
from featherfed.report.schema import parse_metrics
from featherfed.report.table import round_table
from featherfed.server.aggregation.accountant import epsilon
from featherfed.server.aggregation.privacy import Mechanism, PrivateMean
from featherfed.server.errors import ServerError
from featherfed.server.observability import metrics_json as metrics
from featherfed.server.rounds.transitions import Phase

DENSE = {"uplink": "float32", "fallback": "float32", "downlink": "float32"}
PRIVATE: dict[str, Any] = {
    "compression": {**DENSE, "broadcast": "aggregate"},
    "evaluation": {"every_client": False},
}


# ---- differential privacy ----

LARGE = Manifest((TensorSpec("w", (300, 300)), TensorSpec("v", (90,), Role.STATISTIC, Fill(0))))


def mechanism(noise: float = 1.0, clip: float = 2.0, n: int = 10, key: int = 0) -> Mechanism:
    return Mechanism(noise, clip, n, None, Key.root(key))


def noisy_mean(mechanism: Mechanism) -> list[Array]:
    round_ = RoundContext(round_key(0, 1), 1, [None, None], None)
    return PrivateMean(mechanism, Average(LARGE, round_, 1), [None, None]).mean()


def test_the_noise_has_the_deviation_that_is_accounted_for() -> None:
    for n, clip, noise in ((10, 2.0, 1.0), (4, 0.5, 3.0)):
        values = flat(noisy_mean(mechanism(noise, clip, n))).astype(np.float64)
        assert values.std() == pytest.approx(noise * clip / n, rel=0.02)
        assert abs(values.mean()) < 4 * noise * clip / n / math.sqrt(values.size)
        within = np.mean(np.abs(values) < noise * clip / n)
        assert within == pytest.approx(0.6827, abs=0.008), "it is Gaussian"


def test_noise_differs_between_rounds_and_tensors_but_not_between_draws() -> None:
    one, same, other = (noisy_mean(mechanism(key=key)) for key in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert abs(np.corrcoef(flat(one), flat(other))[0, 1]) < 0.02
    assert abs(np.corrcoef(one[0].ravel()[:90], one[1])[0, 1]) < 0.5


def test_pruned_values_stay_zero_under_noise() -> None:
    mask = np.zeros((300, 300), bool)
    mask[:100] = True
    round_ = RoundContext(round_key(0, 1), 1, [mask, None], None)
    mean = PrivateMean(mechanism(), Average(LARGE, round_, 1), [mask, None]).mean()
    assert not mean[0][100:].any()
    assert mean[0][:100].all()


def test_the_noise_is_split_as_in_the_paper() -> None:
    many = Mechanism(1.0, 1.0, 1000, 0.5, Key.root(0))
    assert many.count_noise == 50
    assert many.mean_noise == pytest.approx((1 - 100**-2) ** -0.5)
    few = Mechanism(1.0, 1.0, 5, 0.5, Key.root(0))
    assert few.count_noise == 1
    assert few.mean_noise == pytest.approx(1.1547, abs=1e-4)
    for one in (many, few):
        both = one.mean_noise**-2 + (2 * one.count_noise) ** -2
        assert both == pytest.approx(one.noise**-2), "together they cost what z costs"


@pytest.mark.parametrize("quantile", [0.5, 0.8])
@pytest.mark.parametrize("start", [0.01, 100.0])
def test_an_adaptive_clip_finds_the_quantile(quantile: float, start: float) -> None:
    draw = np.random.default_rng(0)
    clip, seen = start, []
    for round_ in range(300):
        norms = draw.lognormal(size=100).tolist()
        clip = Mechanism(1.0, clip, 100, quantile, Key.root(1).child(round_)).next_clip(norms)
        seen.append(clip)
    wanted = np.quantile(draw.lognormal(size=100_000), quantile)
    assert np.mean(seen[-100:]) == pytest.approx(wanted, rel=0.15)


@pytest.mark.parametrize(("noise", "rounds_"), [(0.5, 1), (1.0, 7), (4.0, 7), (1.1, 100)])
def test_epsilon_equals_the_accountants_and_is_above_the_exact_one(
    noise: float, rounds_: int
) -> None:
    told = epsilon(noise, rounds_, 1e-5)
    accountant = RdpAccountant()
    accountant.compose(GaussianDpEvent(noise), rounds_)
    assert told == accountant.get_epsilon(1e-5)

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    # Balle and Wang 2018, theorem 8: k Gaussian mechanisms are one with sensitivity sqrt(k).
    mu = math.sqrt(rounds_) / noise

    def delta(eps: float) -> float:
        return phi(mu / 2 - eps / mu) - math.exp(eps) * phi(-mu / 2 - eps / mu)

    assert delta(told) <= 1e-5
    assert delta(told / 1.15) > 1e-5, "and not much above it"


def test_epsilon_keeps_to_published_values() -> None:
    # Dwork and Roth 2014, theorem A.1: sigma = sqrt(2 ln(1.25 / delta)) / epsilon suffices.
    assert epsilon(math.sqrt(2 * math.log(1.25e5)), 1, 1e-5) < 1
    assert epsilon(4.0, 7, 1e-5) == pytest.approx(2.9585, abs=1e-4)


def test_a_private_round_clips_weighs_alike_and_adds_the_noise(
    direct_run: Callable[..., DirectRun],
) -> None:
    privacy = {"noise_multiplier": 1e-9, "clip": 1.0, "adaptive": False}
    run = direct_run(**PRIVATE, privacy=privacy)
    updates = honest(5)
    updates["c1"] = random_update(1, 10.0)
    start = run.coordinator.newest_weights()
    step = run.step(updates)
    norms = {name: float(np.linalg.norm(flat(u))) for name, u in updates.items()}
    clipped = [flat(u) * np.float32(min(1.0, 1.0 / norms[name])) for name, u in updates.items()]
    wanted = np.mean(clipped, axis=0)
    wanted[-64:] = np.maximum(wanted[-64:] + start[2], 0) - start[2]
    np.testing.assert_allclose(flat(step), wanted, atol=1e-4)
    assert run.store.versions.newest().kind == "delta"


def test_examples_do_not_weigh_in_a_private_round(direct_run: Callable[..., DirectRun]) -> None:
    privacy = {"noise_multiplier": 1e-9, "clip": 1e3, "adaptive": False}
    run = direct_run(clients=2, **PRIVATE, privacy=privacy)
    join = run.coordinator.admission.join
    run.coordinator.admission.join = lambda asked: join(  # type: ignore[method-assign]
        join_request(asked.client, 100 if asked.client == "a" else 10**6)
    )
    step = run.step({"a": constant(0.1), "b": constant(0.3)})
    np.testing.assert_allclose(flat(step), 0.2, atol=1e-5)


def test_a_server_killed_in_mid_aggregation_draws_the_same_noise(
    direct_run: Callable[..., DirectRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    privacy = {"noise_multiplier": 0.5, "clip": 0.5}
    whole, killed = (direct_run(name, **PRIVATE, privacy=privacy) for name in ("whole", "killed"))
    for run in (whole, killed):
        run.step(honest(5))
        run.submit({f"c{i}": random_update(9 + i) for i in range(5)})
    with monkeypatch.context() as patch:

        def die(*args: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(killed.store.journal, "add_aggregation", die)
        with pytest.raises(KeyboardInterrupt):
            killed.coordinator.aggregate()
    killed.store.close()
    again = direct_run("killed", **PRIVATE, privacy=privacy)
    assert again.coordinator.phase is Phase.AGGREGATING
    for run in (whole, again):
        run.coordinator.aggregate()
    assert whole.store.versions.newest().digest == again.store.versions.newest().digest
    assert whole.store.journal.aggregation(2) == again.store.journal.aggregation(2)
    assert (
        whole.store.journal.aggregation(2).clip
        == whole.store.journal.aggregation(1).next_clip
        != 0.5
    )


def test_epsilon_is_of_the_client_with_the_most_rounds(
    direct_run: Callable[..., DirectRun],
) -> None:
    privacy = {"noise_multiplier": 2.0, "delta": 1e-6}
    run = direct_run(clients=1, **PRIVATE, privacy=privacy, rounds=3)
    for names in ("a", "b", "a"):
        run.coordinator.presence._last_seen.clear()
        run.step({name: random_update(1) for name in names})
    spent = [entry["epsilon"] for entry in run.metrics()["rounds"]]
    assert spent == [epsilon(2.0, 1, 1e-6), epsilon(2.0, 1, 1e-6), epsilon(2.0, 2, 1e-6)]


def test_a_private_report_has_epsilon_and_no_figure_without_noise(
    direct_run: Callable[..., DirectRun],
) -> None:
    run = direct_run(**PRIVATE, privacy={"noise_multiplier": 1.0}, rounds=1)
    run.step({**honest(4), "bad": random_update(4, 100.0)})
    data = run.metrics()
    data["final"] = metrics.final(run.store, run.settings, 0.0, [])
    (told,) = data["rounds"]
    assert (told["clipped"], told["refused"]) == (None, [])
    assert {
        c[k] for c in told["clients"] for k in ("accuracy", "train_loss", "train_accuracy")
    } == {None}
    assert data["final"]["privacy"] == {
        "epsilon": epsilon(1.0, 1, 1e-5), "delta": 1e-5, "noise_multiplier": 1.0, "rounds": 1,
    }  # fmt: skip
    parsed = parse_metrics(data)
    assert parsed.final is not None
    assert privacy_note(parsed).startswith(
        "Differential privacy of clients: epsilon 4.73 at delta 1e-05, noise multiplier 1, all"
    )


def test_report_card_and_table_show_epsilon(direct_run: Callable[..., DirectRun]) -> None:
    run = direct_run(**PRIVATE, privacy={"noise_multiplier": 1.0}, rounds=1)
    run.step(honest(5))
    data = run.metrics()
    data["final"] = metrics.final(run.store, run.settings, 0.0, [])
    model = {"file": "model_int8.tflite", "kind": "int8", "bytes": 1, "accuracy": 0.5}
    data["final"]["models"] = [model]
    (run.store.folder / "metrics.json").write_text(json.dumps(data), "utf-8")
    page = render(run.store.folder).read_text("utf-8")
    assert "<h2>Privacy</h2>" in page
    card = (run.store.folder / "model_card.md").read_text("utf-8")
    assert "- Privacy: differential privacy of clients: epsilon 4.73 at delta 1e-05" in card
    assert "epsilon 4.73 at delta 1e-05" in str(round_table(data).caption)


def test_a_missing_accountant_is_said_at_the_start_and_leaves_no_run(
    direct_run: Callable[..., DirectRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "featherfed.server.aggregation.accountant")
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ServerError, match=r"dp_accounting is missing.*featherfed\[privacy\]"):
        direct_run(**PRIVATE, privacy={"noise_multiplier": 1.0})
    direct_run(**PRIVATE)  # other settings, in the same directory
