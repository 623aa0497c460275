"""Differential privacy: the noise, the adaptive clip, and the epsilon that is reported."""

from __future__ import annotations

import errno
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.rdp import RdpAccountant
from scipy.stats import chisquare, kstest
from support.clients import join_request
from support.coordinator import DirectRun
from support.models import TASK
from support.updates import constant, flat, honest, random_update

from featherfed.api.backup import back_up
from featherfed.compression.exchange.average import WeightedUpdate
from featherfed.compression.exchange.manifest import (
    Fill,
    Manifest,
    Role,
    TensorSpec,
)
from featherfed.compression.exchange.masks import Masks
from featherfed.compression.exchange.round import RoundContext, round_key
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.registry import parse_codec
from featherfed.report.page import privacy_note
from featherfed.report.render import render
from featherfed.report.schema import parse_metrics
from featherfed.report.table import round_table
from featherfed.server.aggregation.accountant import epsilon
from featherfed.server.aggregation.discrete_gaussian import DiscreteGaussian
from featherfed.server.aggregation.privacy import RATE, Mechanism, PrivateMean
from featherfed.server.errors import CannotStore, ServerError
from featherfed.server.observability import metrics_json as metrics
from featherfed.server.rounds.transitions import Phase
from featherfed.server.storage import publications

DENSE = {"uplink": "float32", "fallback": "float32", "downlink": "float32"}
PRIVATE: dict[str, Any] = {
    "compression": {**DENSE, "broadcast": "aggregate"},
    "evaluation": {"clients": 0},
}


# ---- differential privacy ----

LARGE = Manifest((TensorSpec("w", (300, 300)), TensorSpec("v", (90,), Role.STATISTIC, Fill(0))))


def seeded(seed: int, bits: int = 24) -> DiscreteGaussian:
    """Return a sampler whose random bytes a test can repeat."""
    return DiscreteGaussian(bits, np.random.default_rng(seed).bytes)


def mechanism(noise: float = 1.0, clip: float = 2.0, n: int = 10, seed: int = 0) -> Mechanism:
    return Mechanism(noise, clip, n, None, seeded(seed))


def private_mean(mechanism: Mechanism, masks: Masks = (None, None)) -> PrivateMean:
    round_ = RoundContext(round_key(0, 1), 1, masks, None)
    return PrivateMean(mechanism, LARGE, round_)


def test_the_noise_has_the_deviation_that_is_accounted_for() -> None:
    for n, clip, noise in ((10, 2.0, 1.0), (4, 0.5, 3.0)):
        values = flat(private_mean(mechanism(noise, clip, n)).mean()).astype(np.float64)
        assert values.std() == pytest.approx(noise * clip / n, rel=0.02)
        assert abs(values.mean()) < 4 * noise * clip / n / math.sqrt(values.size)
        within = np.mean(np.abs(values) < noise * clip / n)
        assert within == pytest.approx(0.6827, abs=0.008), "it is Gaussian"


def test_no_noise_is_drawn_twice() -> None:
    one, other = (private_mean(Mechanism(1.0, 1.0, 1, None)).mean() for _ in range(2))
    same = private_mean(Mechanism(1.0, 1.0, 1, None))
    assert abs(np.corrcoef(flat(one), flat(other))[0, 1]) < 0.02
    assert abs(np.corrcoef(flat(same.mean()), flat(same.mean()))[0, 1]) < 0.02
    assert abs(np.corrcoef(one[0].ravel()[:90], one[1])[0, 1]) < 0.5


@pytest.mark.parametrize("bits", [0, 1, 3])
def test_integers_are_drawn_with_the_probabilities_of_the_discrete_gaussian(bits: int) -> None:
    sampler, count = seeded(bits, bits), 400_000
    most = 4 * sampler.deviation
    drawn = np.clip(sampler.draw(count), -most, most)  # what lies beyond counts with the last
    found = np.bincount(drawn + most, minlength=2 * most + 1)
    values = np.arange(-40 * sampler.deviation, 40 * sampler.deviation + 1)
    weights = np.exp(-((values / sampler.deviation) ** 2) / 2)
    wanted = np.bincount(np.clip(values, -most, most) + most, weights / weights.sum() * count)
    assert (wanted > 5).all(), "the test needs enough of each value"
    assert chisquare(found, wanted).pvalue > 1e-3


def test_the_noise_is_gaussian_on_the_grid_that_is_used() -> None:
    sampler = seeded(1)
    drawn = sampler.draw(200_000)
    assert kstest(drawn / sampler.deviation, "norm").pvalue > 1e-3
    low = np.bincount(drawn & 15, minlength=16)
    assert chisquare(low).pvalue > 1e-3, "the last bits, which tell nothing, are uniform"
    assert np.unique(drawn[:1000]).size == 1000


def test_last_bits_of_the_mean_do_not_tell_what_was_sent() -> None:
    # Mironov 2012: 2**-8 and float noise give no value below 2**-9 finer than the noise near 2**-8.
    fine = []
    for sent in (0.0, 2.0**-8):
        mean = private_mean(Mechanism(1.0, 1.9, 1, None, seeded(0)))
        update = [np.full(spec.shape, np.float32(sent)) for spec in LARGE]
        payload = encode_update(parse_codec("float32"), LARGE, update).payload
        mean.add(WeightedUpdate(0, 1, "float32", payload))
        values = mean.mean()[0].astype(np.float64)
        small = values[np.abs(values) < 2.0**-9]
        fine.append(np.mean(small % np.spacing(np.float32(2.0**-9)) != 0))
    assert fine == [pytest.approx(0.67, abs=0.2)] * 2


def test_noise_for_the_example_takes_less_than_a_second() -> None:
    begin = time.process_time()
    assert DiscreteGaussian().draw(225_034).size == 225_034
    assert time.process_time() - begin < 1
    assert DiscreteGaussian().draw(0).size == 0


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e10])
def test_no_update_adds_more_to_the_sums_than_the_noise_covers(size: float) -> None:
    noisy = Mechanism(0.7, 0.3, 10, 0.5, seeded(0))
    sums = private_mean(noisy)
    draw = np.random.default_rng(0)
    update = [(size * draw.standard_normal(s.shape)).astype(np.float32) for s in LARGE]
    payload = encode_update(parse_codec("float32"), LARGE, update).payload
    sums.add(WeightedUpdate(0, 1, "float32", payload))
    added = sum(int(value) ** 2 for total in sums._totals for value in total.ravel())
    most = Fraction(noisy.gaussian.deviation) / Fraction(noisy.mean_noise)
    assert added <= most**2, "in exact arithmetic"
    if size == 1.0:
        assert added > Fraction(0.999) * most**2, "and no less than it may"


@pytest.mark.parametrize("n", [1, 5, 100, 10_000])
def test_a_client_moves_the_clip_no_more_than_its_noise_covers(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy, drawn = Mechanism(0.5, 1.0, n, 0.5), np.zeros(1, np.int64)
    monkeypatch.setattr(noisy.gaussian, "draw", lambda count: drawn)
    everybody = noisy.next_clip([0.5] * n)
    assert everybody == pytest.approx(math.exp(-RATE / 2))
    one_less = noisy.next_clip([0.5] * (n - 1))
    drawn += noisy.gaussian.deviation
    deviation = abs(math.log(noisy.next_clip([0.5] * n) / everybody))
    by_one_client = abs(math.log(one_less / everybody))
    assert by_one_client / deviation == pytest.approx(1 / (2 * noisy.count_noise), rel=1e-3)
    assert by_one_client / deviation <= 1 / (2 * noisy.count_noise) * (1 + 1e-9)


def test_pruned_values_stay_zero_under_noise() -> None:
    mask = np.zeros((300, 300), bool)
    mask[:100] = True
    mean = private_mean(mechanism(), [mask, None]).mean()
    assert not mean[0][100:].any()
    assert mean[0][:100].all()


def test_the_noise_is_split_as_in_the_paper() -> None:
    many = Mechanism(1.0, 1.0, 1000, 0.5)
    assert many.count_noise == 50
    assert many.mean_noise == pytest.approx((1 - 100**-2) ** -0.5)
    few = Mechanism(1.0, 1.0, 5, 0.5)
    assert few.count_noise == 1
    assert few.mean_noise == pytest.approx(1.1547, abs=1e-4)
    for one in (many, few):
        both = one.mean_noise**-2 + (2 * one.count_noise) ** -2
        assert both == pytest.approx(one.noise**-2), "together they cost what z costs"


@pytest.mark.parametrize("quantile", [0.5, 0.8])
@pytest.mark.parametrize("start", [0.01, 100.0])
def test_an_adaptive_clip_finds_the_quantile(quantile: float, start: float) -> None:
    draw, gaussian = np.random.default_rng(0), seeded(1)
    clip, seen = start, []
    for _ in range(300):
        norms = draw.lognormal(size=100).tolist()
        clip = Mechanism(1.0, clip, 100, quantile, gaussian).next_clip(norms)
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


@pytest.mark.parametrize("deviation", [1, 4, 64])
@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
def test_epsilon_holds_for_integer_noise(noise: float, deviation: int) -> None:
    shift = math.floor(deviation / noise)  # what a client adds at most, of the noise's deviation
    values = np.arange(-60 * deviation, 60 * deviation + 1)
    weights = np.exp(-((values / deviation) ** 2) / 2)
    without = weights / weights.sum()
    with_client = np.roll(without, shift)
    delta = np.maximum(0, with_client - math.exp(epsilon(noise, 1, 1e-5)) * without).sum()
    assert delta <= 1e-5


def test_epsilon_keeps_to_published_values() -> None:
    # Dwork and Roth 2014, theorem A.1: sigma = sqrt(2 ln(1.25 / delta)) / epsilon suffices.
    assert epsilon(math.sqrt(2 * math.log(1.25e5)), 1, 1e-5) < 1
    assert epsilon(4.0, 7, 1e-5) == pytest.approx(2.9585, abs=1e-4)


def test_a_private_round_clips_weighs_alike_and_adds_the_noise(
    direct_run: Callable[..., DirectRun],
) -> None:
    privacy = {"noise_multiplier": 1e-6, "clip": 1.0, "adaptive": False}
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
    privacy = {"noise_multiplier": 1e-6, "clip": 20.0, "adaptive": False}
    run = direct_run(clients=2, **PRIVATE, privacy=privacy)
    join = run.coordinator.admission.join
    run.coordinator.admission.join = lambda asked: join(  # type: ignore[method-assign]
        join_request(asked.client, 100 if asked.client == "a" else 10**6)
    )
    step = run.step({"a": constant(0.1), "b": constant(0.3)})
    np.testing.assert_allclose(flat(step), 0.2, atol=1e-4)


def test_a_server_killed_before_a_commit_draws_anew_and_nothing_of_the_first_remains(
    direct_run: Callable[..., DirectRun],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    run = direct_run(**PRIVATE, privacy={"noise_multiplier": 0.5, "clip": 0.5})
    run.submit(honest(5))
    drawn: list[Any] = []
    with monkeypatch.context() as patch:

        def die(*args: object) -> None:
            drawn.extend([run.store.versions.newest(), *args])
            raise KeyboardInterrupt

        patch.setattr(run.store.journal, "add_aggregation", die)
        with pytest.raises(KeyboardInterrupt):
            run.coordinator.aggregate()
    first, _, record = drawn
    run.store.close()
    again = direct_run(**PRIVATE, privacy={"noise_multiplier": 0.5, "clip": 0.5})
    assert again.coordinator.phase is Phase.AGGREGATING
    assert again.store.publications.repeated == 0
    again.coordinator.aggregate()
    assert again.store.versions.newest().digest != first.digest
    assert again.store.journal.aggregation(1).next_clip != record.next_clip
    kept = (again.store.folder / "run.db").read_bytes() + caplog.text.encode()
    again.store.close()
    kept += (again.store.folder / "run.db").read_bytes()
    for value in (first.digest, first.digest.hex().encode(), first.payload[:64]):
        assert value not in kept
    assert str(record.next_clip) not in caplog.text
    again = direct_run(**PRIVATE, privacy={"noise_multiplier": 0.5, "clip": 0.5})
    again.step(honest(5))
    one, two = (again.store.journal.aggregation(number) for number in (1, 2))
    assert two.clip == one.next_clip != 0.5


# ---- restored runs ----

FIXED = {"noise_multiplier": 1.0, "clip": 1.0, "adaptive": False}


def put_back(copy: Path, folder: Path) -> None:
    """Do with a backup what docs/observability.md says."""
    for path in folder.glob("run.db*"):
        path.unlink()
    shutil.copy(copy, folder / "run.db")


def test_a_restored_run_repeats_a_round_with_other_noise_and_counts_both(
    direct_run: Callable[..., DirectRun], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = direct_run(**PRIVATE, privacy=FIXED)
    run.step(honest(5))
    copy = back_up(tmp_path / "run", tmp_path / "backup")
    one = run.step(honest(5))
    run.step(honest(5))
    run.store.close()
    put_back(copy, tmp_path / "run")
    again = direct_run(**PRIVATE, privacy=FIXED)
    assert "goes on from version 1; versions published after that: 2" in caplog.text
    other = again.step(honest(5))
    spread = flat(one).astype(np.float64) - flat(other)
    promised = math.sqrt(2) * Mechanism(1.0, 1.0, 5, None).deviation
    trained = spread[:-64]  # a variance does not fall below zero
    assert trained.std() == pytest.approx(promised, rel=0.05)
    data = again.metrics()
    assert data["repeated_rounds"] == 2
    assert [r["epsilon"] for r in data["rounds"]] == [epsilon(1.0, 1, 1e-5), epsilon(1.0, 4, 1e-5)]
    final = metrics.final(again.store, again.settings, TASK, 0.0, [])
    assert final["privacy"]["rounds"] == 4
    parse_metrics(data)


def test_repeated_rounds_add_up_over_several_restores(
    direct_run: Callable[..., DirectRun], tmp_path: Path
) -> None:
    run = direct_run(**PRIVATE, privacy=FIXED)
    copy = back_up(tmp_path / "run", tmp_path / "backup")
    run.step(honest(5))
    run.step(honest(5))
    for published in (2, 3):
        run.store.close()
        put_back(copy, tmp_path / "run")
        run = direct_run(**PRIVATE, privacy=FIXED)
        assert run.store.publications.repeated == published
        run.step(honest(5))
    assert run.metrics()["rounds"][0]["epsilon"] == epsilon(1.0, 4, 1e-5)
    run.store.close()
    again = direct_run(**PRIVATE, privacy=FIXED)
    assert again.store.publications.repeated == 3, "no restore, nothing more"


def test_a_private_run_of_which_nobody_knows_what_it_published_is_not_served(
    direct_run: Callable[..., DirectRun], tmp_path: Path
) -> None:
    run = direct_run(**PRIVATE, privacy=FIXED)
    run.step(honest(5))
    copy = back_up(tmp_path / "run", tmp_path / "backup")
    (tmp_path / "new").mkdir()
    put_back(copy, tmp_path / "new")
    with pytest.raises(ServerError, match=r"is a copy, such as a backup: .*new/run.published is"):
        direct_run("new", **PRIVATE, privacy=FIXED)
    with pytest.raises(ServerError) as told:
        direct_run("new", **PRIVATE, privacy=FIXED)
    text = str(told.value).rpartition("knows: ")[2].replace("N", "3")
    (tmp_path / "new" / "run.published").write_text(text, "utf-8")
    again = direct_run("new", **PRIVATE, privacy=FIXED)
    assert again.store.publications.repeated == 2
    again.step(honest(5))
    assert again.metrics()["rounds"][1]["epsilon"] == epsilon(1.0, 4, 1e-5)
    again.store.close()
    (tmp_path / "new" / "run.published").unlink()
    with pytest.raises(ServerError, match=r"after version 2 .* 3 if nobody .*, and 2 added to it"):
        direct_run("new", **PRIVATE, privacy=FIXED)


def test_any_other_run_goes_on_from_a_copy_and_says_so(
    direct_run: Callable[..., DirectRun], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = direct_run()
    run.step(honest(5))
    copy = back_up(tmp_path / "run", tmp_path / "backup")
    (tmp_path / "new").mkdir()
    put_back(copy, tmp_path / "new")
    (tmp_path / "new" / "run.published").write_text("torn {", "utf-8")
    again = direct_run("new")
    assert "versions published after that: nobody knows how many" in caplog.text
    assert "repeated_rounds" not in again.metrics()
    again.store.close()
    caplog.clear()
    again = direct_run("new")
    assert not caplog.text, "said once"


def test_a_run_of_an_older_version_goes_on_and_is_counted_from_then_on(
    direct_run: Callable[..., DirectRun], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = direct_run(**PRIVATE, privacy=FIXED)
    run.step(honest(5))
    run.store._database.run("DELETE FROM publications")
    run.store.close()
    (tmp_path / "run" / "run.published").unlink()
    again = direct_run(**PRIVATE, privacy=FIXED)
    assert not caplog.text
    name = again.coordinator.plan.run
    assert (again.store.publications.expects_file, again.store.publications.in_file(name)) == (
        True,
        1,
    )


def test_a_version_is_stored_only_with_its_count_in_the_file(
    direct_run: Callable[..., DirectRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = direct_run(**PRIVATE, privacy=FIXED)
    run.submit(honest(5))
    with monkeypatch.context() as patch:
        patch.setattr(publications, "write_whole", full_disk)
        with pytest.raises(CannotStore, match="No space"):
            run.coordinator.aggregate()
    assert run.coordinator.newest_version == 0
    assert run.coordinator.phase is Phase.AGGREGATING
    assert run.store.failing
    run.coordinator.aggregate()
    assert run.store.publications.in_file(run.coordinator.plan.run) == 1
    assert run.store.publications.repeated == 0


def full_disk(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


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
    data["final"] = metrics.final(run.store, run.settings, TASK, 0.0, [])
    (told,) = data["rounds"]
    assert (told["clipped"], told["refused"]) == (None, [])
    private = ("scores", "before", "after", "train_loss")
    assert {c[k] for c in told["clients"] for k in private} == {None}
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
    data["final"] = metrics.final(run.store, run.settings, TASK, 0.0, [])
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
