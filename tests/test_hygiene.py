"""What an accepted update can do to the model, and what the model tells of it."""

from __future__ import annotations

import json
import math
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from conftest import CLASSES, MANIFEST, SHAPE, Federation, Judge, Pull, profile, settings
from dp_accounting import GaussianDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from featherfed.compression.arrays import Array
from featherfed.compression.errors import WireError
from featherfed.compression.exchange.average import WHOLE, Average
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import (
    Fill,
    Manifest,
    Role,
    TensorSpec,
    weights_digest,
)
from featherfed.compression.exchange.round import Round, round_key
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.key import Key
from featherfed.compression.registry import parse_codec
from featherfed.edge_client.session import Session
from featherfed.edge_client.state import Held
from featherfed.edge_client.trainer import Trained
from featherfed.edge_client.versions import DigestMismatch, apply_links
from featherfed.proto import federation_pb2 as pb
from featherfed.report.metrics import parse_metrics
from featherfed.report.page import privacy_note
from featherfed.report.render import render
from featherfed.report.table import round_table
from featherfed.server.aggregation import robust
from featherfed.server.aggregation.accountant import epsilon
from featherfed.server.aggregation.clipping import limit_of, measure, rule_on_norms, share
from featherfed.server.aggregation.privacy import Mechanism, PrivateMean
from featherfed.server.aggregation.robust import Rows, combine, krum_choice
from featherfed.server.coordinator.admission import MAX_EXAMPLES, DataShape
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import Refused, ServerError
from featherfed.server.observability import metrics_json as metrics
from featherfed.server.rounds import transitions as rounds
from featherfed.server.rounds.transitions import Phase
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.rule import Rule
from featherfed.server.settings.settings import Settings, load_settings
from featherfed.server.storage.records import Norms
from featherfed.server.storage.store import Store
from featherfed.sweep.simulate import simulate

Start = Callable[..., Federation]
DENSE = {"uplink": "float32", "fallback": "float32", "downlink": "float32"}
PRIVATE: dict[str, Any] = {
    "compression": {**DENSE, "broadcast": "aggregate"},
    "evaluation": {"every_client": False},
}


class Scaled(Pull):
    """A client whose update is so many times what it should be."""

    def __init__(self, value: float, factor: float) -> None:
        super().__init__(value)
        self.factor = np.float32(factor)

    def train(self, weights: Sequence[Array], task: pb.Train) -> Trained:
        honest = super().train(weights, task).weights
        return Trained(
            [w + self.factor * (h - w) for w, h in zip(weights, honest, strict=True)], 0.5, 0.75
        )


class Table:
    """A run on one table: a coordinator, and updates that are put into it by hand."""

    def __init__(self, folder: Path, **changes: object) -> None:
        folder.mkdir(exist_ok=True)
        self.settings = settings(folder, **changes)
        self.store = Store(folder / "run.db")
        try:
            self.coordinator = Coordinator(
                self.settings, self.store, make_plan(self.settings, "{}", MANIFEST), MANIFEST,
                DataShape(SHAPE, CLASSES), Judge(), time.time, secret=1,
            )  # fmt: skip
        except ServerError:
            self.store.close()
            raise

    def submit(self, updates: Mapping[str, Sequence[Array]], num_examples: int = 100) -> None:
        """Play a round up to its close."""
        run = self.coordinator
        joins = {name: run.join(request(name, num_examples)) for name in updates}
        for name in updates:
            run.next_task(name)
        run.tick()
        for name, update in updates.items():
            task = run.next_task(name).train
            assert task.round, "every client has a task"
            round_ = Round(round_key(0, task.round), task.slots, [None] * len(MANIFEST), None)
            payload = encode_update(
                parse_codec(task.codec), MANIFEST, list(update), context=round_.context(task.slot)
            ).payload
            header = pb.UpdateHeader(
                session=joins[name].session, round=task.round, version=task.version,
                num_examples=num_examples, size=len(payload), train_loss=0.25,
            )  # fmt: skip
            assert run.submit(name, header, payload, len(payload)) == pb.ACCEPTED
        assert run.phase is Phase.AGGREGATING

    def step(self, updates: Mapping[str, Sequence[Array]]) -> list[Array]:
        """Play a round; return what the model moved by."""
        before = self.coordinator.newest_weights()
        self.submit(updates)
        self.coordinator.aggregate()
        return [a - b for a, b in zip(self.coordinator.newest_weights(), before, strict=True)]

    def metrics(self) -> Any:
        facts = {"featherfed": "0", "num_test_examples": 1}
        return metrics.collect(self.store, self.settings, MANIFEST, facts)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Callable[..., Table]]:
    made: list[Table] = []

    def make(folder: str = "run", clients: int = 5, **changes: object) -> Table:
        both = {"clients": {"minimum": clients, "quorum": 1.0, "patience": 0}, **changes}
        made.append(Table(tmp_path / folder, **both))
        return made[-1]

    yield make
    for one in made:
        one.store.close()


def request(name: str, num_examples: int = 100) -> pb.JoinRequest:
    session = Session(profile(name, num_examples), None, None, None)  # type: ignore[arg-type]
    return session._join_request()


def constant(value: float) -> list[Array]:
    return [np.full(spec.shape, np.float32(value)) for spec in MANIFEST]


def random_update(seed: int, scale: float = 0.01) -> list[Array]:
    draw = np.random.default_rng(seed)
    return [(scale * draw.standard_normal(s.shape)).astype(np.float32) for s in MANIFEST]


def honest(count: int) -> dict[str, list[Array]]:
    return {f"c{i}": random_update(i) for i in range(count)}


def flat(tensors: Sequence[Array]) -> Array:
    return np.concatenate([t.ravel() for t in tensors])


# ---- the default run ----


@pytest.mark.parametrize(
    ("uplink", "clients", "digest"),
    [
        ("balanced", 5, "5ff9c5a90c2f7db40d045214081466b5a46d8f65a397805dda9f4688b81dad5b"),
        ("balanced", 2, "b7ff0c99843a1a0ce523a4c6b9bee59d824c4d3ef754e03f0d9646ba95ed858b"),
        ("exact", 5, "08326d993dc596033fa547e4a3af9b93f3b63f232521a2c2ddbe3df2daccee38"),
        ("float32", 5, "fe540f62a1dfd2e35fd9eb6a1f496e7a7cad7752b25140f8b4fdc09a9a267196"),
    ],
)
def test_an_undisturbed_run_ends_as_it_did_before_there_was_clipping(
    tmp_path: Path, uplink: str, clients: int, digest: str
) -> None:
    run = settings(
        tmp_path, rounds=4, clients={"minimum": clients, "quorum": 1.0},
        compression={"uplink": uplink},
    )  # fmt: skip
    data = {f"c{i}": profile(f"c{i}", 100 * (i + 1)).data for i in range(clients)}
    told = simulate(
        run, model_json="{}", manifest=MANIFEST, data_shape=DataShape(SHAPE, CLASSES),
        clients=data, evaluator=Judge(),
        make_trainer=lambda name, plan, manifest, step: Pull(float(name[1:]) / 3),
    )  # fmt: skip
    assert told["final"]["digest"] == digest
    assert [r["clipped"] for r in told["rounds"]] == [0] * 4


# ---- counts ----


def test_an_absurd_number_of_examples_is_refused_on_joining(table: Callable[..., Table]) -> None:
    run = table()
    with pytest.raises(Refused, match="BAD_EXAMPLE_COUNT: 100000001 examples are more than any"):
        run.coordinator.join(request("greedy", MAX_EXAMPLES + 1))
    run.coordinator.join(request("large", MAX_EXAMPLES))


def test_a_cap_bounds_what_a_client_weighs_and_is_what_travels(
    table: Callable[..., Table],
) -> None:
    both = {"compression": {"uplink": "sketch(0.3)"}, "aggregation": {"max_examples": 30}}
    run = table(clients=3, rounds=1, **both)
    run.submit(honest(3), num_examples=10**6)
    run.coordinator.aggregate()
    bundle = pb.Bundle.FromString(run.store.newest().payload)
    assert [part.num_examples for part in bundle.parts] == [30] * 3
    assert [c["num_examples"] for c in run.metrics()["rounds"][0]["clients"]] == [30] * 3


# ---- clipping ----


def test_the_limit_is_a_norm_of_the_round_times_the_clip() -> None:
    assert limit_of([1, 2, 3, 4, 1e9], 10, 0.5) == 30
    assert limit_of([1, 2, 1e9, 1e9], 10, 0.5) == 20, "of four, two cannot raise it"
    assert limit_of([1, 2, 3, 4, 5], 1, 0.9) == 5
    assert limit_of([1, 1e9], 10, 0.5) == math.inf, "nobody can say which is the outlier"
    assert limit_of([5], 10, 0.5) == math.inf
    assert limit_of([], 10, 0.5) == math.inf
    assert limit_of([0] * 5, 10, 0.5) == math.inf
    assert limit_of([0, 0, 0, 1, 1, 1], 10, 0.5) == 10
    assert limit_of([1, 1, 1], 0, 0.5) == math.inf


@hypothesis.settings(deadline=None)
@given(norm=st.floats(0, 1e15), limit=st.floats(1e-12, 1e12))
def test_a_share_never_leaves_more_than_the_limit(norm: float, limit: float) -> None:
    taken = share(norm, limit)
    assert 0 <= taken <= WHOLE
    assert (taken == WHOLE) == (norm <= limit)
    assert taken == WHOLE or norm * taken / WHOLE <= limit * (1 + 1e-12)


@pytest.mark.parametrize("codec", ["float32", "quantize(8) | zstd", "sketch(0.1)", "balanced"])
def test_one_scaled_up_update_among_five_does_not_take_the_model_over(
    table: Callable[..., Table], codec: str
) -> None:
    updates = honest(5)
    steps = []
    for folder, factor, clip in (("honest", 1, 10), ("clipped", 1000, 10), ("never", 1000, 0)):
        run = table(folder, compression={"uplink": codec}, aggregation={"clip": clip})
        attack = [np.float32(factor) * t for t in updates["c4"]]
        steps.append(flat(run.step({**updates, "c4": attack})))
        refused = run.metrics()["rounds"][0]["refused"]
        wanted = [("c4", "OUTLIER")] if folder == "clipped" else []
        assert [(r["client"], r["reason"]) for r in refused] == wanted
    norms = [float(np.linalg.norm(step)) for step in steps]
    assert norms[1] < 8 * norms[0]
    assert norms[2] > 100 * norms[0], "without clipping it does"


def test_an_outlier_is_told_with_both_norms_and_counted(table: Callable[..., Table]) -> None:
    run = table(compression=DENSE)
    run.step({**honest(4), "bad": random_update(4, 10.0)})
    (told,) = run.metrics()["rounds"]
    (refusal,) = told["refused"]
    assert refusal["detail"] == "norm 554, at most 5.609 allowed; 1.01% of it counts"
    assert told["clipped"] == 1
    assert told["clip"] == pytest.approx(5.609, abs=0.001)
    assert len(told["clients"]) == 5


def test_an_outlier_is_recorded_once_though_the_server_died_over_it(
    table: Callable[..., Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = table(compression=DENSE)
    run.submit({**honest(4), "bad": random_update(4, 10.0)})
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "step", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.coordinator.aggregate()
    run.store.close()
    again = table(compression=DENSE)
    assert again.store.refusals() == []
    again.coordinator.aggregate()
    assert [row["reason"] for row in again.store.refusals()] == ["OUTLIER"]


def test_an_update_that_clipping_cannot_express_is_left_out(table: Callable[..., Table]) -> None:
    run, without = table(compression=DENSE), table("without", 4, compression=DENSE)
    step = run.step({**honest(4), "bad": random_update(4, 1e6)})
    np.testing.assert_allclose(flat(step), flat(without.step(honest(4))), atol=1e-7)
    told = run.metrics()["rounds"][0]
    assert told["refused"][0]["detail"].endswith("left out")
    assert [c["client"] for c in told["clients"]] == ["c0", "c1", "c2", "c3"]
    assert (told["missing"], told["clipped"]) == ([], 0)
    assert all(update.payload is None for update in run.store.updates(1))


def test_state_that_nobody_trains_is_bounded_too(table: Callable[..., Table]) -> None:
    run = table(compression=DENSE)
    updates = honest(5)
    for update in updates.values():
        update[2] = np.full(64, np.float32(0.5))
    updates["c3"][2] = np.full(64, np.float32(1e9))
    run.step(updates)
    assert run.coordinator.newest_weights()[2].max() < 3
    (refusal,) = run.metrics()["rounds"][0]["refused"]
    assert refusal["detail"].startswith("norm of its state 8e+09, at most 40")


def test_a_client_of_another_codec_is_measured_alike() -> None:
    """Else a client could choose the codec that nobody else uses, and be compared with none."""
    update, zeros = random_update(3), constant(0)
    exact = measure(parse_codec("float32"), MANIFEST, update, zeros).trainable
    for text in ("sketch(0.02)", "sketch(0.1, 2)", "quantize(8)"):
        codec, context = parse_codec(text), Round(Key.root(3), 5, [None] * 3, None).context(1)
        decoded = encode_update(codec, MANIFEST, update, context=context).decoded
        norm = measure(codec, MANIFEST, decoded, zeros).trainable
        assert 0.5 < norm / exact < 2


def test_rounds_of_one_or_two_are_not_clipped(table: Callable[..., Table]) -> None:
    for clients in (1, 2):
        run = table(str(clients), clients, compression=DENSE)
        step = run.step({"a": constant(0.1), "b": constant(100)} if clients == 2 else honest(1))
        assert run.metrics()["rounds"][0]["refused"] == []
        if clients == 2:
            np.testing.assert_allclose(flat(step), 50.05, rtol=1e-6)


def test_a_round_in_which_nothing_moved_is_whole() -> None:
    norms = {name: Norms(0, 0, 0) for name in "abc"}
    ruling = rule_on_norms(dict.fromkeys("abc", 10), norms, 10, 0.5)
    assert set(ruling.shares.values()) == {WHOLE}
    assert (ruling.total, ruling.outliers, ruling.facts.clip) == (30, (), None)


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
    versions = server.store.versions(after=0)
    if uplink != "float32":
        forwarded = next(v for v in versions if v.kind == "bundle")
        bundle = pb.Bundle.FromString(forwarded.payload)
        assert sorted(part.clip > 0 for part in bundle.parts) == [False] * 4 + [True]
    last = server.store.ledger()
    assert not any(e.kind == "retry" and e.direction == "downlink" for e in last), "nobody drifted"
    for version in versions:
        assert ("bad", "OUTLIER") in [
            (r["client"], r["reason"])
            for r in server.store.refusals()
            if r["round"] == version.version
        ]


def test_a_hostile_or_missing_share_in_a_bundle_does_not_go_unnoticed() -> None:
    start = initial_weights(MANIFEST, 0)
    codec = parse_codec("float32")
    payload = encode_update(codec, MANIFEST, random_update(0)).payload
    bundle = pb.Bundle(slots=1, codec="float32")
    bundle.parts.add(slot=0, num_examples=1, payload=payload, clip=WHOLE // 2)
    half = [w + np.float32(0.5) * u for w, u in zip(start, random_update(0), strict=True)]
    half[2] = np.maximum(half[2], 0)

    def link_of(bundle: pb.Bundle) -> tuple[list[pb.Link], bytes]:
        data = bundle.SerializeToString()
        link = pb.Link(kind=pb.Link.BUNDLE, version=1, size=len(data), digest=weights_digest(half))
        return [link], data

    held = Held(0, weights_digest(start), start)
    assert apply_links(MANIFEST, 0, held, *link_of(bundle)).digest == weights_digest(half)
    bundle.parts[0].clip = 0
    with pytest.raises(DigestMismatch):
        apply_links(MANIFEST, 0, held, *link_of(bundle))
    bundle.parts[0].clip = WHOLE
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
def test_trimmed_mean_and_median_are_numpys(scratch: Path, matrix: Array) -> None:
    wanted = np.median(matrix.astype(np.float64), axis=0)
    got = combined(scratch, Rule("median", 1), matrix)
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-37)
    inner = np.sort(matrix.astype(np.float64), axis=0)[1:-1]
    got = combined(scratch, Rule("trimmed_mean", 1), matrix)
    scale = np.abs(inner).max(axis=0)
    assert (np.abs(got - inner.mean(axis=0)) <= 1e-6 * scale + 1e-37).all()


@hypothesis.settings(deadline=None)
@given(matrix=WHOLE_NUMBERS)
def test_multi_krum_is_the_papers(scratch: Path, matrix: Array) -> None:
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
        arrays(np.float32, (rule.needs - byzantine, 7), elements=st.floats(-1, 1, width=32))
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
def test_sign_flippers_do_not_turn_a_robust_round(table: Callable[..., Table], name: str) -> None:
    updates = {f"c{i}": [u + np.float32(0.05) for u in random_update(i)] for i in range(7)}
    for bad in ("c5", "c6"):
        updates[bad] = [np.float32(-20) * u for u in updates[bad]]
    aggregation = {"rule": name, "byzantine": 2}
    run = table("robust", 7, compression=DENSE, aggregation=aggregation, rounds=1)
    mean = table("mean", 7, compression=DENSE, aggregation={"clip": 0}, rounds=1)
    good = np.mean([flat(updates[f"c{i}"][:2]) for i in range(5)], axis=0)
    for one, close in ((run, True), (mean, False)):
        step = flat(one.step(updates)[:2])
        assert (np.linalg.norm(step - good) < 0.3 * np.linalg.norm(good)) == close
    assert run.store.newest().kind == "delta", "a robust aggregate is never forwarded"
    assert run.coordinator.newest_weights()[2].min() >= 0, "a variance never falls below zero"


@pytest.mark.parametrize("name", RULES)
def test_a_robust_run_keeps_its_masks_and_everybody_its_model(federation: Start, name: str) -> None:
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


def test_multi_krum_needs_more_updates_than_a_quorum(table: Callable[..., Table]) -> None:
    policy = settings(
        Path("x"), compression=DENSE, aggregation={"rule": "multi_krum"},
        clients={"minimum": 5, "quorum": 0.2, "deadline": 10, "patience": 1},
    ).policy  # fmt: skip
    everybody = frozenset("abcde")
    state = rounds.RunState(round=2)
    four = rounds.Tick(100, frozenset("abcd"), everybody)
    assert rounds.step(state, four, policy).phase is Phase.GATHERING
    state = rounds.step(state, rounds.Tick(100, everybody, everybody), policy)
    for name in "abcd":
        state = rounds.step(state, rounds.Reported(101, name), policy)
    overdue = rounds.Tick(1000, everybody, everybody)
    assert rounds.step(state, overdue, policy).phase is Phase.TRAINING
    state = rounds.step(state, rounds.Reported(1001, "e"), policy)
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
         r"forward.*every_client would report.*set it to false"),
        ("[privacy]\nnoise_multiplier = 1\n[aggregation]\nrule = 'median'",
         r"no known sensitivity"),
        ("[privacy]\nnoise_multiplier = 1\n[compression]\nuplink = 'exact'\n"
         "fallback = 'sketch(0.1)'", r"compression\.fallback 'sketch\(0\.1\)' sends sketches"),
        ("[privacy]\nnoise_multiplier = inf", r"privacy\.noise_multiplier: .*finite"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_said_at_load(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ServerError, match=f"(?s){message}"):
        load(tmp_path, text)


def test_settings_that_say_nothing_new_keep_the_fingerprint(tmp_path: Path) -> None:
    plain = load(tmp_path, "")
    assert load(tmp_path, "[aggregation]\nclip = 10").fingerprint == plain.fingerprint
    assert load(tmp_path, "[aggregation]\nclip = 5").fingerprint != plain.fingerprint


def test_a_database_of_the_version_before_is_opened(table: Callable[..., Table]) -> None:
    run = table(clients=3)
    run.submit(honest(3))
    run.store.close()
    with sqlite3.connect(run.store.folder / "run.db") as db:
        db.execute("DROP TABLE norms")
        db.execute("DROP TABLE aggregations")
    db.close()
    again = table(clients=3)
    again.coordinator.aggregate()
    assert len(again.metrics()["rounds"][0]["clients"]) == 3, "what was journaled then counts whole"


# ---- differential privacy ----

LARGE = Manifest((TensorSpec("w", (300, 300)), TensorSpec("v", (90,), Role.STATISTIC, Fill(0))))


def mechanism(noise: float = 1.0, clip: float = 2.0, n: int = 10, key: int = 0) -> Mechanism:
    return Mechanism(noise, clip, n, None, Key.root(key))


def noisy_mean(mechanism: Mechanism) -> list[Array]:
    round_ = Round(round_key(0, 1), 1, [None, None], None)
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
    round_ = Round(round_key(0, 1), 1, [mask, None], None)
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
def test_epsilon_is_the_accountants_and_above_the_exact_one(noise: float, rounds_: int) -> None:
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
    table: Callable[..., Table],
) -> None:
    privacy = {"noise_multiplier": 1e-9, "clip": 1.0, "adaptive": False}
    run = table(**PRIVATE, privacy=privacy)
    updates = honest(5)
    updates["c1"] = random_update(1, 10.0)
    start = run.coordinator.newest_weights()
    step = run.step(updates)
    norms = {name: float(np.linalg.norm(flat(u))) for name, u in updates.items()}
    clipped = [flat(u) * np.float32(min(1.0, 1.0 / norms[name])) for name, u in updates.items()]
    wanted = np.mean(clipped, axis=0)
    wanted[-64:] = np.maximum(wanted[-64:] + start[2], 0) - start[2]
    np.testing.assert_allclose(flat(step), wanted, atol=1e-4)
    assert run.store.newest().kind == "delta"


def test_examples_do_not_weigh_in_a_private_round(table: Callable[..., Table]) -> None:
    privacy = {"noise_multiplier": 1e-9, "clip": 1e3, "adaptive": False}
    run = table(clients=2, **PRIVATE, privacy=privacy)
    join = run.coordinator.join
    run.coordinator.join = lambda asked: join(  # type: ignore[method-assign]
        request(asked.client, 100 if asked.client == "a" else 10**6)
    )
    step = run.step({"a": constant(0.1), "b": constant(0.3)})
    np.testing.assert_allclose(flat(step), 0.2, atol=1e-5)


def test_a_server_killed_in_mid_aggregation_draws_the_same_noise(
    table: Callable[..., Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    privacy = {"noise_multiplier": 0.5, "clip": 0.5}
    whole, killed = (table(name, **PRIVATE, privacy=privacy) for name in ("whole", "killed"))
    for run in (whole, killed):
        run.step(honest(5))
        run.submit({f"c{i}": random_update(9 + i) for i in range(5)})
    with monkeypatch.context() as patch:

        def die(*args: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(killed.store, "add_facts", die)
        with pytest.raises(KeyboardInterrupt):
            killed.coordinator.aggregate()
    killed.store.close()
    again = table("killed", **PRIVATE, privacy=privacy)
    assert again.coordinator.phase is Phase.AGGREGATING
    for run in (whole, again):
        run.coordinator.aggregate()
    assert whole.store.newest().digest == again.store.newest().digest
    assert whole.store.facts(2) == again.store.facts(2)
    assert whole.store.facts(2).clip == whole.store.facts(1).next_clip != 0.5


def test_epsilon_counts_the_rounds_of_the_most_eager_client(table: Callable[..., Table]) -> None:
    privacy = {"noise_multiplier": 2.0, "delta": 1e-6}
    run = table(clients=1, **PRIVATE, privacy=privacy, rounds=3)
    for names in ("a", "b", "a"):
        run.coordinator._last_seen.clear()
        run.step({name: random_update(1) for name in names})
    spent = [entry["epsilon"] for entry in run.metrics()["rounds"]]
    assert spent == [epsilon(2.0, 1, 1e-6), epsilon(2.0, 1, 1e-6), epsilon(2.0, 2, 1e-6)]


def test_a_private_report_tells_epsilon_and_nothing_without_noise(
    table: Callable[..., Table],
) -> None:
    run = table(**PRIVATE, privacy={"noise_multiplier": 1.0}, rounds=1)
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


def test_report_card_and_table_tell_epsilon(table: Callable[..., Table]) -> None:
    run = table(**PRIVATE, privacy={"noise_multiplier": 1.0}, rounds=1)
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


def test_a_missing_accountant_is_said_at_the_start(
    table: Callable[..., Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "featherfed.server.aggregation.accountant")
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ServerError, match=r"dp_accounting is missing.*featherfed\[privacy\]"):
        table(**PRIVATE, privacy={"noise_multiplier": 1.0})
