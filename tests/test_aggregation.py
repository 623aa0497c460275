"""How updates are combined: example counts, coarse weights, clipping and robust rules."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.clients import Pull, join_request, profile
from support.coordinator import DirectRun
from support.evaluator import DistanceEvaluator
from support.federation import Federation, settings
from support.models import MANIFEST, TASK
from support.updates import constant, flat, honest, random_update

from featherfed.compression.arrays import Array
from featherfed.compression.errors import WireError
from featherfed.compression.exchange import update as exchanged
from featherfed.compression.exchange.average import FULL_SHARE, Average, WeightedUpdate, average
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import (
    weights_digest,
)
from featherfed.compression.exchange.round import RoundContext
from featherfed.compression.exchange.update import decode_update, encode_update, receive_update
from featherfed.compression.key import Key
from featherfed.compression.registry import parse_codec
from featherfed.edge_client.state import HeldModel
from featherfed.edge_client.trainer import TrainingResult
from featherfed.edge_client.versions import DigestMismatch, apply_links
from featherfed.proto import federation_pb2 as pb
from featherfed.server.aggregation import bundle, decoded_updates, next_version, robust
from featherfed.server.aggregation.bundle import BundleBuilder, RoundBundle
from featherfed.server.aggregation.clipping import (
    clip_share,
    clip_to_quantile,
    norm_limit,
    update_norms,
)
from featherfed.server.aggregation.coarse_weights import coarse_weights
from featherfed.server.aggregation.robust import Rows, combine, krum_choice
from featherfed.server.coordinator import state
from featherfed.server.coordinator.data_check import MAX_EXAMPLES
from featherfed.server.errors import Refused, ServerError
from featherfed.server.rounds import transitions as rounds
from featherfed.server.rounds.transitions import Phase
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.rule import Rule
from featherfed.server.settings.settings import Settings, load_settings
from featherfed.server.storage.records import UpdateNorms
from featherfed.sweep import simulate as simulation
from featherfed.sweep.simulate import simulate

Start = Callable[..., Federation]
DENSE = {"uplink": "float32", "fallback": "float32", "downlink": "float32"}


class Scaled(Pull):
    """A client that sends `factor` times the honest update."""

    def __init__(self, value: float, factor: float) -> None:
        super().__init__(value)
        self.factor = np.float32(factor)

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        honest = super().train(weights, task).weights
        return TrainingResult(
            [w + self.factor * (h - w) for w, h in zip(weights, honest, strict=True)], 0.5
        )


# ---- the default run ----


@pytest.mark.parametrize(
    ("uplink", "clients", "digest"),
    [
        ("balanced", 5, "e0a68fc16a2f8806106edb192f322bef14ca143a7edef71c62d1e3c4710a81a3"),
        ("balanced", 2, "b7ff0c99843a1a0ce523a4c6b9bee59d824c4d3ef754e03f0d9646ba95ed858b"),
        ("exact", 5, "08326d993dc596033fa547e4a3af9b93f3b63f232521a2c2ddbe3df2daccee38"),
        ("float32", 5, "fe540f62a1dfd2e35fd9eb6a1f496e7a7cad7752b25140f8b4fdc09a9a267196"),
    ],
)
def test_an_undisturbed_run_ends_as_it_did_before_there_was_clipping(
    tmp_path: Path, uplink: str, clients: int, digest: str
) -> None:
    assert undisturbed(tmp_path, uplink, clients) == digest


def test_a_run_that_began_with_the_older_reports_ends_as_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older_plan(*args: Any) -> pb.Plan:
        plan = make_plan(*args)
        plan.ClearField("report")
        return plan

    monkeypatch.setattr(simulation, "make_plan", older_plan)
    digest = "3a248e8ea7fd1d8d0ebd8636cb55c4061492d54f333dbe734b38e72ba4bd8711"
    assert undisturbed(tmp_path, "balanced", 5) == digest


def undisturbed(folder: Path, uplink: str, clients: int) -> str:
    """Return the last digest of a run in which nobody is clipped."""
    run = settings(
        folder, rounds=4, clients={"minimum": clients, "quorum": 1.0},
        compression={"uplink": uplink},
    )  # fmt: skip
    unequal = (uplink, clients) != ("balanced", 5)  # forwarded, and so with coarse weights
    data = {f"c{i}": profile(f"c{i}", 100 * (1 + unequal * i)).data for i in range(clients)}
    told = simulate(
        run, model_json="{}", manifest=MANIFEST, task=TASK,
        clients=data, evaluator=DistanceEvaluator(),
        make_trainer=lambda name, plan, manifest, step: Pull(float(name[1:]) / 3),
    )  # fmt: skip
    assert [r["clipped"] for r in told["rounds"]] == [0] * 4
    return str(told["final"]["digest"])


# ---- counts ----


def test_an_absurd_number_of_examples_is_refused_on_joining(
    direct_run: Callable[..., DirectRun],
) -> None:
    run = direct_run()
    with pytest.raises(Refused, match="BAD_EXAMPLE_COUNT: 100000001 examples are more than any"):
        run.coordinator.admission.join(join_request("greedy", MAX_EXAMPLES + 1))
    run.coordinator.admission.join(join_request("large", MAX_EXAMPLES))


def test_max_examples_caps_the_weight_that_is_counted_and_sent(
    direct_run: Callable[..., DirectRun],
) -> None:
    both = {"compression": {"uplink": "sketch(0.3)"}, "aggregation": {"max_examples": 30}}
    run = direct_run(clients=3, rounds=1, **both)
    run.submit(honest(3), num_examples=10**6)
    run.coordinator.aggregate()
    bundle = pb.Bundle.FromString(run.store.versions.newest().payload)
    assert [part.num_examples for part in bundle.parts] == [1] * 3
    assert [c["num_examples"] for c in run.metrics()["rounds"][0]["clients"]] == [30] * 3


# ---- coarse weights of forwarded updates ----

COUNTS = st.dictionaries(st.text("abcdefgh", min_size=1), st.integers(1, MAX_EXAMPLES), min_size=1)
UNEQUAL = {"c0": 10, "c1": 25, "c2": 30, "c3": 77, "c4": 350}


@given(counts=COUNTS, seed=st.integers(0, 2**63))
def test_a_coarse_weight_is_one_of_the_two_steps_next_to_the_count(
    counts: dict[str, int], seed: int
) -> None:
    weights = coarse_weights(counts, Key.root(seed), 7)
    assert weights == coarse_weights(counts, Key.root(seed), 7), "the same again after a crash"
    assert math.gcd(*weights.values()) == 1
    assert max(weights.values()) < 2**32, "they fit into the message"
    assert all(_odd_part(weight) in {1, 3} for weight in weights.values())
    off = [math.log2(weights[client] / count) for client, count in counts.items()]
    assert max(off) - min(off) < 2 * math.log2(1.5)


def _odd_part(weight: int) -> int:
    return weight // (weight & -weight)


@given(count=st.integers(1, MAX_EXAMPLES), clients=st.integers(1, 9), seed=st.integers(0, 99))
def test_clients_with_equally_many_examples_weigh_the_same(
    count: int, clients: int, seed: int
) -> None:
    counts = {f"c{i}": count for i in range(clients)}
    assert coarse_weights(counts, Key.root(seed), 1) == dict.fromkeys(counts, 1)


def test_coarse_weights_are_right_in_the_mean() -> None:
    sums = dict.fromkeys(UNEQUAL, 0.0)
    for seed in range(4000):
        weights = coarse_weights(UNEQUAL, Key.root(seed), 1)
        for client, weight in weights.items():
            sums[client] += weight / weights["c2"]  # the median is not rounded
    for client, count in UNEQUAL.items():
        assert sums[client] / 4000 == pytest.approx(count / 30, rel=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_few_rounds_are_nearly_right_in_the_mean(seed: int) -> None:
    rounds = 8
    for client, count in UNEQUAL.items():
        found = [coarse_weights(UNEQUAL, Key.root(seed), r) for r in range(rounds)]
        mean = sum(weights[client] / weights["c2"] for weights in found) / rounds
        step = 2.0 ** math.floor(math.log2(count / 30)) / 2
        assert abs(mean - count / 30) <= 2 * step / rounds, "independent draws: step / rounds^.5"


def test_a_bundle_tells_no_number_of_examples(direct_run: Callable[..., DirectRun]) -> None:
    run = direct_run(compression={"uplink": "sketch(0.3)"}, rounds=3)
    seen = []
    for _ in range(3):
        run.submit(honest(5), UNEQUAL)
        run.coordinator.aggregate()
        newest = run.store.versions.newest()
        assert newest.kind == "bundle"
        bundle = pb.Bundle.FromString(newest.payload)
        owners = {u.slot: u.client for u in run.store.journal.updates(newest.version)}
        weights = {owners[part.slot]: part.num_examples for part in bundle.parts}
        assert {_odd_part(weight) for weight in weights.values()} <= {1, 3}
        seen.append(weights)
    assert len({tuple(sorted(weights.items())) for weights in seen}) > 1, "drawn in every round"
    counted = {c["client"]: c["num_examples"] for c in run.metrics()["rounds"][0]["clients"]}
    assert counted == UNEQUAL, "the operator knows the true numbers"


@pytest.mark.parametrize(
    ("counts", "same"),
    [
        (dict.fromkeys(UNEQUAL, 77), True),
        ({"c0": 14, "c1": 7, "c2": 7, "c3": 28, "c4": 7}, True),
        (UNEQUAL, False),
    ],
)
def test_the_mean_of_a_bundle_is_made_anew_only_if_its_weights_are_others(
    direct_run: Callable[..., DirectRun],
    monkeypatch: pytest.MonkeyPatch,
    counts: dict[str, int],
    same: bool,
) -> None:
    digests, made = [], []

    def counted(*args: Any) -> Average:
        made.append(args)
        return average(*args)

    result = BundleBuilder.result

    def doubted(self: BundleBuilder) -> RoundBundle | None:
        made_of = result(self)
        return made_of and made_of._replace(same_mean=False)

    monkeypatch.setattr(next_version, "average", counted)
    for folder in ("reused", "anew"):
        run = direct_run(folder, compression={"uplink": "sketch(0.3)"}, rounds=3)
        run.submit(honest(5), counts)
        run.coordinator.aggregate()
        assert run.store.versions.newest().kind == "bundle"
        digests.append(run.store.versions.newest().digest)
        monkeypatch.setattr(BundleBuilder, "result", doubted)
    assert len(made) == 2 - same
    assert digests[0] == digests[1]


def test_an_update_is_decoded_once_and_again_where_memory_is_short(
    direct_run: Callable[..., DirectRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, digests = [], []

    def noted(*args: Any, **named: Any) -> Any:
        decoded.append(args)
        return receive_update(*args, **named)

    monkeypatch.setattr(decoded_updates, "receive_update", noted)
    for kept, times in ((2**23, 5), (0, 10)):
        monkeypatch.setattr(decoded_updates, "KEPT_BYTES", kept)
        run = direct_run(str(kept), compression={"uplink": "sketch(0.3)"}, rounds=1)
        decoded.clear()
        run.submit(honest(5))
        run.coordinator.aggregate()
        assert len(decoded) == times
        digests.append(run.store.versions.newest().digest)
    assert len(set(digests)) == 1


def test_the_coded_mean_is_decoded_only_where_it_is_adopted(
    direct_run: Callable[..., DirectRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []

    def noted(codec: Any, *args: Any, **named: Any) -> Any:
        decoded.append(str(codec))
        return decode_update(codec, *args, **named)

    monkeypatch.setattr(exchanged, "decode_update", noted)
    for broadcast, times in (("bundle", 0), ("aggregate", 1)):
        compression = {"uplink": "sketch(0.3)", "downlink": "quantize(8)"}
        if broadcast == "aggregate":
            compression["broadcast"] = broadcast
        run = direct_run(broadcast, compression=compression, rounds=1)
        run.submit(honest(5))
        decoded.clear()
        run.coordinator.aggregate()
        assert decoded.count("quantize(8)") == times
        assert (run.store.versions.newest().kind == "bundle") == (broadcast == "bundle")


@pytest.mark.parametrize(
    "compression", [DENSE, {"uplink": "sketch(0.3)", "broadcast": "aggregate"}]
)
def test_a_round_that_is_not_forwarded_weighs_by_the_exact_numbers(
    direct_run: Callable[..., DirectRun], compression: dict[str, str]
) -> None:
    exact = {**compression, "downlink": "float32"}
    run = direct_run(compression=exact, rounds=1, aggregation={"clip": 0})
    updates = {name: constant(i / 10) for i, name in enumerate(UNEQUAL)}
    before = run.coordinator.newest_weights()
    run.submit(updates, UNEQUAL)
    run.coordinator.aggregate()
    assert run.store.versions.newest().kind == "delta"
    step = run.coordinator.newest_weights()[0] - before[0]
    mean = sum(i / 10 * count for i, count in enumerate(UNEQUAL.values())) / sum(UNEQUAL.values())
    if compression is DENSE:
        np.testing.assert_allclose(step, mean, rtol=1e-4)
    else:
        assert step.mean() == pytest.approx(mean, rel=0.1)  # a sketch is right in the mean


def test_a_round_of_two_codecs_is_not_forwarded() -> None:
    """Else whoever alone sends the fallback could be followed."""
    context = RoundContext(Key.root(0), 3, [None] * 3, None)
    for codecs, forwarded in (("xx", True), ("xy", False), ("xyx", False)):
        builder = BundleBuilder(context, MANIFEST, dict.fromkeys("012", 1))
        for slot, codec in enumerate(codecs):
            builder.add(str(slot), WeightedUpdate(slot, 100, codec, b"payload"))
        assert (builder.result() is not None) == forwarded


def test_a_bundle_grows_until_it_is_larger_than_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_LIMIT", 0.1)
    context = RoundContext(Key.root(0), 300, [None] * 3, None)
    limit = 0.1 * MANIFEST.num_values
    builder = BundleBuilder(context, MANIFEST, {str(i): 1 << i % 9 for i in range(300)})
    full = False
    for slot in range(300):
        before = builder.result()
        assert before is not None
        full = before.message.ByteSize() > limit
        payload = bytes(3 if slot % 2 else 150)
        builder.add(str(slot), WeightedUpdate(slot, 100, "x", payload, slot * 200))
        if full:
            break
    assert full
    assert builder.result() is None


# ---- clipping ----


def test_the_limit_is_a_norm_of_the_round_times_the_clip() -> None:
    assert norm_limit([1, 2, 3, 4, 1e9], 10, 0.5, 7, 70) == 30
    assert norm_limit([1, 2, 1e9, 1e9], 10, 0.5, 7, 70) == 20, "of four, two cannot raise it"
    assert norm_limit([1, 2, 3, 4, 5], 1, 0.9, 7, 70) == 5
    assert norm_limit([], 10, 0.5, 7, 70) == math.inf
    assert norm_limit([0] * 5, 10, 0.5, 7, 70) == math.inf
    assert norm_limit([0, 0, 0, 1, 1, 1], 10, 0.5, 7, 70) == 10
    assert norm_limit([1, 1, 1], 0, 0.5, 7, 70) == math.inf


def test_of_one_or_two_updates_the_limit_follows_the_other_and_the_model() -> None:
    assert norm_limit([2, 1e9], 10, 0.5, 7, 70) == 20
    assert norm_limit([1e-9, 5], 10, 0.5, 7, 70) == 7, "a tiny update shrinks no other"
    assert norm_limit([1e8, 1e9], 10, 0.5, 7, 70) == 70, "nor do two large ones allow each other"
    assert norm_limit([5], 10, 0.5, 7, 70) == norm_limit([1e9, 0, 0], 10, 0.5, 7, 70) == 70
    assert norm_limit([5, 1e9], 0, 0.5, 7, 70) == math.inf


# The largest that two clients' norms in any round were, over those of what the round started from:
# of trained tensors, and of statistics (digits, Keras, iid and Dirichlet shards of 0.1).
HONEST = {
    "mlp sgd 0.1": (0.40, 0), "mlp sgd 1": (1.16, 0), "mlp adam 0.05": (3.11, 0),
    "mlp momentum 0.3": (2.35, 0), "cnn sgd 0.1": (0.30, 0), "cnn sgd 1": (1.39, 0),
    "cnn adam 0.05": (3.78, 0), "cnn momentum 0.3": (5.56, 0), "gru sgd 0.1": (0.20, 0),
    "gru sgd 1": (0.79, 0), "gru adam 0.05": (6.15, 0), "mobile sgd 0.1": (0.10, 1.02),
    "mobile sgd 1": (0.71, 1.64), "mobile sgd 5": (4.86, 4412), "mobile adam 0.05": (2.38, 23.2),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("other", [0.65, None])  # of it; in no round was the smaller less
def test_training_at_high_rates_is_not_clipped(name: str, other: float | None) -> None:
    trained, state = HONEST[name]
    norms = {"a": UpdateNorms(0, 2 * trained, 3 * state)}
    if other is not None:
        norms["b"] = UpdateNorms(0, 2 * trained * other, 3 * state * other)
    weighting = clip_to_quantile(dict.fromkeys(norms, 10), norms, 10, 0.5, UpdateNorms(0, 2, 3))
    assert weighting.outliers == ()


@hypothesis.settings(deadline=None)
@given(norm=st.floats(0, 1e15), limit=st.floats(1e-12, 1e12))
def test_a_share_never_leaves_more_than_the_limit(norm: float, limit: float) -> None:
    taken = clip_share(norm, limit)
    assert 0 <= taken <= FULL_SHARE
    assert (taken == FULL_SHARE) == (norm <= limit)
    assert taken == FULL_SHARE or norm * taken / FULL_SHARE <= limit * (1 + 1e-12)


@pytest.mark.parametrize("codec", ["float32", "quantize(8) | zstd", "sketch(0.1)", "balanced"])
def test_one_scaled_up_update_among_five_does_not_take_the_model_over(
    direct_run: Callable[..., DirectRun], codec: str
) -> None:
    updates = honest(5)
    steps = []
    for folder, factor, clip in (("honest", 1, 10), ("clipped", 1000, 10), ("never", 1000, 0)):
        run = direct_run(folder, compression={"uplink": codec}, aggregation={"clip": clip})
        attack = [np.float32(factor) * t for t in updates["c4"]]
        steps.append(flat(run.step({**updates, "c4": attack})))
        refused = run.metrics()["rounds"][0]["refused"]
        wanted = [("c4", "OUTLIER")] if folder == "clipped" else []
        assert [(r["client"], r["reason"]) for r in refused] == wanted
    norms = [float(np.linalg.norm(step)) for step in steps]
    assert norms[1] < 8 * norms[0]
    assert norms[2] > 100 * norms[0], "without clipping it does"


def test_an_outlier_is_recorded_with_both_norms_and_counted(
    direct_run: Callable[..., DirectRun],
) -> None:
    run = direct_run(compression=DENSE)
    run.step({**honest(4), "bad": random_update(4, 10.0)})
    (told,) = run.metrics()["rounds"]
    (refusal,) = told["refused"]
    assert refusal["detail"] == "norm 554, at most 5.609 allowed; 1.01% of it counts"
    assert told["clipped"] == 1
    assert told["clip"] == pytest.approx(5.609, abs=0.001)
    assert len(told["clients"]) == 5


def test_an_outlier_is_recorded_once_though_the_server_died_over_it(
    direct_run: Callable[..., DirectRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = direct_run(compression=DENSE)
    run.submit({**honest(4), "bad": random_update(4, 10.0)})
    with monkeypatch.context() as patch:
        patch.setattr(state, "transition", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.coordinator.aggregate()
    run.store.close()
    again = direct_run(compression=DENSE)
    assert again.store.refusals.all() == []
    again.coordinator.aggregate()
    assert [row.reason for row in again.store.refusals.all()] == ["OUTLIER"]


def test_an_update_that_clipping_cannot_express_is_left_out(
    direct_run: Callable[..., DirectRun],
) -> None:
    run, without = direct_run(compression=DENSE), direct_run("without", 4, compression=DENSE)
    step = run.step({**honest(4), "bad": random_update(4, 1e6)})
    np.testing.assert_allclose(flat(step), flat(without.step(honest(4))), atol=1e-7)
    told = run.metrics()["rounds"][0]
    assert told["refused"][0]["detail"].endswith("left out")
    assert [c["client"] for c in told["clients"]] == ["c0", "c1", "c2", "c3"]
    assert (told["missing"], told["clipped"]) == ([], 0)
    assert all(update.payload is None for update in run.store.journal.updates(1))


def test_untrained_tensors_are_clipped_too(direct_run: Callable[..., DirectRun]) -> None:
    run = direct_run(compression=DENSE)
    updates = honest(5)
    for update in updates.values():
        update[2] = np.full(64, np.float32(0.5))
    updates["c3"][2] = np.full(64, np.float32(1e9))
    run.step(updates)
    assert run.coordinator.newest_weights()[2].max() < 3
    (refusal,) = run.metrics()["rounds"][0]["refused"]
    assert refusal["detail"].startswith("norm of its state 8e+09, at most 40")


def test_norms_are_comparable_between_codecs() -> None:
    """Else a client could choose the codec that nobody else uses, and be compared with none."""
    update, zeros = random_update(3), constant(0)
    exact = update_norms(parse_codec("float32"), MANIFEST, update, zeros).trainable
    for text in ("sketch(0.02)", "sketch(0.1, 2)", "quantize(8)"):
        codec, context = (
            parse_codec(text),
            RoundContext(Key.root(3), 5, [None] * 3, None).for_slot(1),
        )
        decoded = encode_update(codec, MANIFEST, update, context=context).decoded
        norms = update_norms(codec, MANIFEST, decoded, zeros)
        assert 0.5 < norms.trainable / exact < 2
        payload = encode_update(codec, MANIFEST, update, context=context).payload
        sparse = receive_update(codec, MANIFEST, payload, context=context).tensors
        again = update_norms(codec, MANIFEST, sparse, zeros)
        assert astuple(again) == pytest.approx(astuple(norms), rel=1e-14)


def test_of_two_updates_one_is_limited_by_the_other_and_the_model(
    direct_run: Callable[..., DirectRun],
) -> None:
    run, alone = direct_run(clients=2, compression=DENSE), direct_run("1", 1, compression=DENSE)
    step = run.step({"a": constant(0.1), "b": constant(100)})
    assert 0.05 < flat(step).max() < 2
    (refusal,) = run.metrics()["rounds"][0]["refused"]
    assert (refusal["client"], refusal["reason"]) == ("b", "OUTLIER")
    alone.step({"a": constant(0.1)})
    assert alone.metrics()["rounds"][0]["refused"] == []


@pytest.mark.parametrize("uplink", ["float32", "balanced", "sketch(0.3)"])
def test_of_two_clients_one_that_sends_4e11_is_left_out(
    direct_run: Callable[..., DirectRun], uplink: str
) -> None:
    run = direct_run(clients=2, compression={"uplink": uplink, "fallback": "float32"})
    honest = random_update(1, 0.05)
    run.step({"a": honest, "b": [np.float32(1e12) * t for t in honest]})
    (told,) = run.metrics()["rounds"]
    assert [(r["client"], r["reason"]) for r in told["refused"]] == [("b", "OUTLIER")]
    assert [c["client"] for c in told["clients"]] == ["a"]
    assert np.abs(flat(run.coordinator.newest_weights())).max() < 20


def test_a_round_in_which_nothing_moved_is_whole() -> None:
    norms = {name: UpdateNorms(0, 0, 0) for name in "abc"}
    start = UpdateNorms(1, 1, 1)
    weighting = clip_to_quantile(dict.fromkeys("abc", 10), norms, 10, 0.5, start)
    assert set(weighting.shares.values()) == {FULL_SHARE}
    assert (weighting.total, weighting.outliers, weighting.record.clip) == (30, (), None)


@pytest.mark.parametrize("uplink", ["balanced", "sketch(0.3)", "float32"])
def test_everybody_averages_a_clipped_update_alike(federation: Start, uplink: str) -> None:
    server = federation(
        clients={"minimum": 5, "quorum": 1.0, "deadline": 30},
        compression={"uplink": uplink},
    )
    clients = [server.client(f"c{i}", value=0.5) for i in range(4)]
    held = server.run_clients(*clients, server.client("bad", trainer=Scaled(0.5, -1000)))
    server.join()
    assert len({h.digest for h in held}) == 1
    versions = server.store.versions.after(0)
    if uplink != "float32":
        forwarded = next(v for v in versions if v.kind == "bundle")
        bundle = pb.Bundle.FromString(forwarded.payload)
        assert sorted(part.clip > 0 for part in bundle.parts) == [False] * 4 + [True]
    last = server.store.ledger.entries()
    assert not any(e.kind == "retry" and e.direction == "downlink" for e in last), "nobody drifted"
    for version in versions:
        assert ("bad", "OUTLIER") in [
            (r.client, r.reason) for r in server.store.refusals.all() if r.round == version.version
        ]


def test_a_hostile_or_missing_share_in_a_bundle_does_not_go_unnoticed() -> None:
    start = initial_weights(MANIFEST, 0)
    codec = parse_codec("float32")
    payload = encode_update(codec, MANIFEST, random_update(0)).payload
    bundle = pb.Bundle(slots=1, codec="float32")
    bundle.parts.add(slot=0, num_examples=1, payload=payload, clip=FULL_SHARE // 2)
    half = [w + np.float32(0.5) * u for w, u in zip(start, random_update(0), strict=True)]
    half[2] = np.maximum(half[2], 0)

    def link_of(bundle: pb.Bundle) -> tuple[list[pb.Link], bytes]:
        data = bundle.SerializeToString()
        link = pb.Link(kind=pb.Link.BUNDLE, version=1, size=len(data), digest=weights_digest(half))
        return [link], data

    held = HeldModel(0, weights_digest(start), start)
    assert apply_links(MANIFEST, 0, held, *link_of(bundle)).digest == weights_digest(half)
    bundle.parts[0].clip = 0
    with pytest.raises(DigestMismatch):
        apply_links(MANIFEST, 0, held, *link_of(bundle))
    bundle.parts[0].clip = FULL_SHARE
    with pytest.raises(WireError, match="more than a whole update"):
        apply_links(MANIFEST, 0, held, *link_of(bundle))


# ---- robust rules ----

RULES = ["trimmed_mean", "median", "multi_krum"]
VALUES = st.floats(-(2.0**39), 2.0**39, width=32)
MATRICES = st.tuples(st.integers(5, 9), st.integers(1, 40)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=VALUES)
)

WHOLE_NUMBERS = st.tuples(st.integers(5, 9), st.integers(1, 40)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.integers(-1000, 1000))
)
"""Squares and sums of these are exact: equal scores are equal however they are computed."""


def combined(tmp: Path, rule: Rule, matrix: Array) -> Array:
    with (tmp / "scratch").open("w+b") as file:
        rows = Rows(file, matrix.shape[1])
        for row in matrix:
            rows.append([row[:3], row[3:]])
        return combine(rule, rows)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, and blocks so small that there are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robust, "BLOCK", 48)
        yield tmp_path_factory.mktemp("scratch")


@hypothesis.settings(deadline=None)
@given(matrix=MATRICES)
def test_trimmed_mean_and_median_equal_numpys(scratch: Path, matrix: Array) -> None:
    wanted = np.median(matrix.astype(np.float64), axis=0)
    got = combined(scratch, Rule("median", 1), matrix)
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-37)
    inner = np.sort(matrix.astype(np.float64), axis=0)[1:-1]
    got = combined(scratch, Rule("trimmed_mean", 1), matrix)
    scale = np.abs(inner).max(axis=0)
    assert (np.abs(got - inner.mean(axis=0)) <= 1e-6 * scale + 1e-37).all()


@hypothesis.settings(deadline=None)
@given(matrix=WHOLE_NUMBERS)
def test_multi_krum_equals_the_papers_definition(scratch: Path, matrix: Array) -> None:
    wide, count = matrix.astype(np.float64), len(matrix)
    scores = [
        sum(sorted(np.square(wide[i] - wide[j]).sum() for j in range(count) if j != i)[: count - 3])
        for i in range(count)
    ]
    distances = np.square(wide[:, None] - wide[None]).sum(axis=2)
    chosen = krum_choice(distances, 1)
    assert len(chosen) == count - 3
    best = sorted(scores)[count - 4]
    assert all(scores[i] <= best * (1 + 1e-9) for i in chosen)
    got = combined(scratch, Rule("multi_krum", 1), matrix)
    np.testing.assert_allclose(
        got, wide[chosen].mean(axis=0), rtol=1e-6, atol=1e-6 * np.abs(wide).max() + 1e-37
    )


@pytest.mark.parametrize("name", RULES)
@hypothesis.settings(deadline=None)
@given(data=st.data(), byzantine=st.integers(1, 2))
def test_no_hostile_client_moves_a_value_beyond_the_honest_ones(
    scratch: Path, name: str, data: st.DataObject, byzantine: int
) -> None:
    rule = Rule(name, byzantine)
    good = data.draw(
        arrays(np.float32, (rule.min_updates - byzantine, 7), elements=st.floats(-1, 1, width=32))
    )
    far = st.one_of(st.floats(1e3, 2.0**39, width=32), st.floats(-(2.0**39), -1e3, width=32))
    bad = data.draw(arrays(np.float32, (byzantine, 7), elements=far))
    if (
        name == "multi_krum"
    ):  # hostile ones that agree are near each other: it counts on honest ones
        bad *= np.arange(1, byzantine + 1, dtype=np.float32)[:, None] * 8
    got = combined(scratch, rule, np.concatenate([bad, good]))
    assert (got <= good.max(axis=0) + 1e-6).all()
    assert (got >= good.min(axis=0) - 1e-6).all()


@pytest.mark.parametrize("name", RULES)
def test_sign_flippers_do_not_turn_a_robust_round(
    direct_run: Callable[..., DirectRun], name: str
) -> None:
    updates = {f"c{i}": [u + np.float32(0.05) for u in random_update(i)] for i in range(7)}
    for bad in ("c5", "c6"):
        updates[bad] = [np.float32(-20) * u for u in updates[bad]]
    aggregation = {"rule": name, "byzantine": 2}
    run = direct_run("robust", 7, compression=DENSE, aggregation=aggregation, rounds=1)
    mean = direct_run("mean", 7, compression=DENSE, aggregation={"clip": 0}, rounds=1)
    good = np.mean([flat(updates[f"c{i}"][:2]) for i in range(5)], axis=0)
    for one, close in ((run, True), (mean, False)):
        step = flat(one.step(updates)[:2])
        assert (np.linalg.norm(step - good) < 0.3 * np.linalg.norm(good)) == close
    assert run.store.versions.newest().kind == "delta", "a robust aggregate is never forwarded"
    assert run.coordinator.newest_weights()[2].min() >= 0, "a variance never falls below zero"


@pytest.mark.parametrize("name", RULES)
def test_a_robust_run_keeps_masks_and_all_clients_end_with_one_model(
    federation: Start, name: str
) -> None:
    server = federation(
        rounds=4, clients={"minimum": 5, "quorum": 0.5, "deadline": 30},
        compression={"uplink": "quantize(8) | zstd", "downlink": "quantize(8) | zstd"},
        aggregation={"rule": name},
        optimization={"method": "prune", "final_sparsity": 0.75, "begin_round": 2},
    )  # fmt: skip
    clients = [server.client(f"c{i}", value=0.5 + i / 10) for i in range(4)]
    held = server.run_clients(*clients, server.client("bad", trainer=Scaled(0.5, -50)))
    assert len({h.digest for h in held}) == 1
    assert (held[0].weights[0] == 0).mean() == 0.75
    assert held[0].weights[0].max() < 1.2
    assert not list(server.directory.glob("tmp*")), "the scratch file is gone"


def test_multi_krum_needs_more_updates_than_a_quorum(direct_run: Callable[..., DirectRun]) -> None:
    policy = settings(
        Path("x"), compression=DENSE, aggregation={"rule": "multi_krum"},
        clients={"minimum": 5, "quorum": 0.2, "deadline": 10, "patience": 1},
    ).policy  # fmt: skip
    everybody = frozenset("abcde")
    state = rounds.RunState(round=2)
    four = rounds.Tick(100, frozenset("abcd"), everybody)
    assert rounds.transition(state, four, policy).phase is Phase.GATHERING
    state = rounds.transition(state, rounds.Tick(100, everybody, everybody), policy)
    for name in "abcd":
        state = rounds.transition(state, rounds.Reported(101, name), policy)
    overdue = rounds.Tick(1000, everybody, everybody)
    assert rounds.transition(state, overdue, policy).phase is Phase.TRAINING
    state = rounds.transition(state, rounds.Reported(1001, "e"), policy)
    assert state.phase is Phase.AGGREGATING


# ---- run files ----


def load(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "run.toml"
    path.write_text(text, "utf-8")
    return load_settings(path)


ROBUST = '[clients]\nminimum = 5\n[compression]\nuplink = "{}"\n[aggregation]\nrule = "{}"'


@pytest.mark.parametrize(
    "uplink",
    ["balanced", "transparent", "extreme", "exact", "4kB/round", "sketch(0.1)", "topk(0.1)",
     "deadzone(0.15) | zstd", "qsgd(4)", "eden", "sign", "lowrank(2)"],
)  # fmt: skip
@pytest.mark.parametrize("name", RULES)
def test_a_robust_rule_refuses_codecs_whose_zeros_are_not_values(
    tmp_path: Path, uplink: str, name: str
) -> None:
    message = rf"(?s){name}.*compression\.uplink.*not sent; use .quantize\(8\) \| zstd"
    with pytest.raises(ServerError, match=message):
        load(tmp_path, ROBUST.format(uplink, name))


@pytest.mark.parametrize("uplink", ["float32", "float16 | zstd", "quantize(4) | zstd", "kmeans(4)"])
@pytest.mark.parametrize("name", RULES)
def test_a_robust_rule_takes_dense_codecs(tmp_path: Path, uplink: str, name: str) -> None:
    assert not load(tmp_path, ROBUST.format(uplink, name)).forwards


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[clients]\nminimum = 4\n[compression]\nuplink = 'float32'\n"
         "[aggregation]\nrule = 'multi_krum'", r"needs 5 updates.*promise 4; raise them"),
        ("[clients]\nminimum = 6\nfraction = 0.3\n[compression]\nuplink = 'float32'\n"
         "[aggregation]\nrule = 'median'", r"needs 3 updates.*promise 2"),
        ("[clients]\nminimum = 9\n[compression]\nuplink = 'float32'\nfallback = 'topk(0.1)'\n"
         "[aggregation]\nrule = 'median'", r"compression\.fallback 'topk\(0\.1\)'"),
        ("[aggregation]\nclip = 0.5", r"aggregation\.clip: must be 0.*at least 1"),
        ("[aggregation]\nrule = 'average'", r"aggregation\.rule: .*'trimmed_mean'"),
        ("[privacy]\nnoise_multiplier = 1", r"(?s)'balanced' sends sketches.*broadcast 'auto' may "
         r"forward.*clients would report.*set it to 0"),
        ("[privacy]\nnoise_multiplier = 1\n[aggregation]\nrule = 'median'",
         r"no known sensitivity"),
        ("[privacy]\nnoise_multiplier = 1\n[compression]\nuplink = 'exact'\n"
         "fallback = 'sketch(0.1)'", r"compression\.fallback 'sketch\(0\.1\)' sends sketches"),
        ("[privacy]\nnoise_multiplier = inf", r"privacy\.noise_multiplier: .*finite"),
        ("[privacy]\nnoise_multiplier = 1e-7", r"privacy\.noise_multiplier: .*from 1e-6.*to 1e6"),
    ],
)  # fmt: skip
def test_contradictory_settings_are_refused_at_load(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ServerError, match=f"(?s){message}"):
        load(tmp_path, text)


def test_a_default_that_is_written_out_keeps_the_fingerprint(tmp_path: Path) -> None:
    plain = load(tmp_path, "")
    assert load(tmp_path, "[aggregation]\nclip = 10").fingerprint == plain.fingerprint
    assert load(tmp_path, "[aggregation]\nclip = 5").fingerprint != plain.fingerprint


def test_a_database_of_the_version_before_is_opened(direct_run: Callable[..., DirectRun]) -> None:
    run = direct_run(clients=3)
    run.submit(honest(3))
    run.store.close()
    with sqlite3.connect(run.store.folder / "run.db") as db:
        db.execute("DROP TABLE norms")
        db.execute("DROP TABLE aggregations")
        db.execute("PRAGMA user_version = 0")
    db.close()
    again = direct_run(clients=3)
    again.coordinator.aggregate()
    assert len(again.metrics()["rounds"][0]["clients"]) == 3, "what was journaled then counts whole"
