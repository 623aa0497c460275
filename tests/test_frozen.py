"""Frozen tensors: sent once with a client's first model, then in no update, bundle or delta."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import WithoutData
from support.evaluator import DistanceEvaluator
from support.models import TASK, summary

from featherfed.compression.arrays import Array
from featherfed.compression.errors import WireError
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import (
    Fill,
    Manifest,
    Role,
    TensorSpec,
    Uniform,
    weights_digest,
)
from featherfed.compression.exchange.round import start_round
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.registry import parse_codec
from featherfed.edge_client.answers import ComputingTime, check_links, max_answer
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.plan import manifest_of
from featherfed.edge_client.state import HeldModel
from featherfed.edge_client.trainer import TrainingResult
from featherfed.edge_client.versions import apply_links
from featherfed.proto import federation_pb2 as pb
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.records import ModelVersion
from featherfed.server.storage.store import Store
from featherfed.server.transfers.routes import Route, Router
from featherfed.sweep.simulate import simulate

HEAD = (
    TensorSpec("head/hidden/kernel", (64, 48), initial=Uniform(0.2)),
    TensorSpec("head/hidden/bias", (48,)),
    TensorSpec("head/norm/moving_variance", (48,), Role.NONNEGATIVE, Fill(1.0)),
    TensorSpec("head/classes/kernel", (48, 10), initial=Uniform(0.3)),
    TensorSpec("head/classes/bias", (10,)),
)
BACKBONE = (
    TensorSpec("backbone/kernel", (3, 3, 256, 180), Role.FROZEN),
    TensorSpec("backbone/norm/moving_variance", (180,), Role.FROZEN, Fill(1.0)),
)
HEAD_ALONE = Manifest(HEAD)
MODEL = Manifest((BACKBONE[0], *HEAD[:2], BACKBONE[1], *HEAD[2:]))
"""3,658 values in rounds and 414,900 that are frozen, not in one piece."""
FROZEN = [spec.role is Role.FROZEN for spec in MODEL]

CODECS = ["float32", "balanced", "quantize(8) | zstd"]


def weights_of(manifest: Manifest) -> list[Array]:
    """Return weights that no seed gives, with values whose bits are easily lost."""
    weights = []
    for spec in manifest:
        rng = np.random.default_rng([*spec.name.encode()])
        weights.append(np.abs(rng.standard_normal(spec.shape, np.float32)))
        if spec.role is Role.FROZEN:
            weights[-1].reshape(-1)[:3] = (-0.0, 1e-40, 3e7)
    return weights


class Walk(WithoutData):
    """A trainer whose update of a tensor depends on the round, its name and the client's."""

    def __init__(self, manifest: Manifest, client: str) -> None:
        self._manifest = manifest
        self._client = client

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Return moved weights, the frozen ones too: who uses a trainer must not trust it."""
        moved = []
        for spec, tensor in zip(self._manifest, weights, strict=True):
            rng = np.random.default_rng([task.round, *f"{self._client} {spec.name}".encode()])
            step = rng.standard_normal(spec.shape, np.float32)
            moved.append(tensor + np.float32(0.01) * step)
        return TrainingResult(moved, 0.5)


def federate(manifest: Manifest, **changes: Any) -> tuple[dict[str, Any], list[list[Array]]]:
    """Run five clients for four rounds; return the metrics and all weights that were evaluated."""
    names = [f"client-{i}" for i in range(5)]
    seen: list[list[Array]] = []

    class Evaluator(DistanceEvaluator):
        def evaluate(self, weights: Sequence[Array]) -> Any:
            seen.append([np.array(w) for w in weights])
            return super().evaluate([w for w in weights if w.size < 10_000])

    settings = Settings.model_validate(
        {
            "rounds": 4,
            "clients": {"minimum": 5, "patience": 0},
            **changes,
            "evaluation": {"dataset": "digits", **changes.pop("evaluation", {})},
        }
    )
    metrics = simulate(
        settings,
        model_json="{}",
        manifest=manifest,
        task=TASK,
        clients=dict.fromkeys(names, summary()),
        make_trainer=lambda name, plan, given, step: Walk(given, name),
        evaluator=Evaluator(),
        first_weights=weights_of(manifest),
        runtime="numpy",
    )
    return metrics, seen


def round_bytes(metrics: dict[str, Any]) -> list[tuple[int, int]]:
    """Return by round the most bytes of a client's messages, up and down, retries too."""

    def total(side: dict[str, int]) -> int:
        return side["message_bytes"] + side["control_bytes"] + side["retry_bytes"]

    return [
        (
            max(total(client["uplink"]) for client in entry["clients"]),
            max(total(client["downlink"]) for client in entry["clients"]),
        )
        for entry in metrics["rounds"]
    ]


@pytest.mark.parametrize("uplink", CODECS)
@pytest.mark.parametrize("broadcast", ["auto", pytest.param("aggregate", marks=pytest.mark.slow)])
def test_a_frozen_backbone_costs_no_bytes_after_the_first_model(
    uplink: str, broadcast: str
) -> None:
    compression = {"uplink": uplink, "broadcast": broadcast}
    whole, seen = federate(MODEL, compression=compression)
    head, seen_head = federate(HEAD_ALONE, compression=compression)
    ups, downs = zip(*round_bytes(whole), strict=True)
    head_ups, head_downs = zip(*round_bytes(head), strict=True)
    print(
        f"{uplink}, {broadcast}: {ups} up and {downs} down, the head alone {head_ups} {head_downs}"
    )
    assert all(own <= alone + 64 for own, alone in zip(ups, head_ups, strict=True))
    assert all(own <= alone + 64 for own, alone in zip(downs[1:], head_downs[1:], strict=True))
    assert downs[0] > 400_000 * 3  # the backbone itself, once
    assert whole["float32_bytes"] == head["float32_bytes"]
    # And what becomes of the head is the same to the last bit.
    for own, alone in zip(seen, seen_head, strict=True):
        assert weights_digest(MODEL.sent_of(own)) == weights_digest(alone)


@pytest.mark.parametrize(
    "changes",
    [
        {"compression": {"uplink": "balanced"}},
        {"compression": {"uplink": "quantize(8) | zstd"}, "aggregation": {"rule": "median"}},
        {"compression": {"uplink": "float32"}, "aggregation": {"rule": "multi_krum"}},
        {
            "compression": {"uplink": "float32", "broadcast": "aggregate"},
            "privacy": {"noise_multiplier": 1.0},
            "evaluation": {"clients": 0},
        },
    ],
    ids=["mean", "median", "multi_krum", "private"],
)
def test_frozen_tensors_stay_bit_for_bit(changes: dict[str, Any]) -> None:
    _, seen = federate(MODEL, **changes)
    first = weights_of(MODEL)
    assert len(seen) >= 4
    for weights in seen:
        for number, (tensor, before) in enumerate(zip(weights, first, strict=True)):
            assert (tensor.tobytes() == before.tobytes()) is FROZEN[number]


@pytest.mark.parametrize("quantile", [0.5, 1.0])
def test_clipping_measures_what_is_sent_alone(quantile: float) -> None:
    changes = {"compression": {"uplink": "float32"}, "aggregation": {"quantile": quantile}}
    whole, head = federate(MODEL, **changes)[0], federate(HEAD_ALONE, **changes)[0]
    assert [r["clip"] for r in whole["rounds"]] == [r["clip"] for r in head["rounds"]]


def test_an_update_cannot_hold_frozen_tensors() -> None:
    zeros = [np.zeros(spec.shape, np.float32) for spec in MODEL]
    with pytest.raises(ValueError, match="frozen"):
        encode_update(parse_codec("float32"), MODEL, zeros)


def test_a_round_starts_from_the_tensors_that_it_changes() -> None:
    weights = weights_of(MODEL)
    start = start_round(MODEL, weights, 0.0)
    assert start.manifest.digest == HEAD_ALONE.digest
    assert [w.shape for w in start.weights] == [spec.shape for spec in HEAD]
    assert weights_digest(start.complete(start.weights)) == weights_digest(weights)
    assert weights_digest(start.changed_of(weights)) == weights_digest(start.weights)
    with pytest.raises(ValueError, match="sent"):
        MODEL.with_sent(weights, [*start.weights, start.weights[0]])


# ---- routes ----


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = Store(tmp_path / "run.db")
    yield made
    made.close()


def add_versions(store: Store, weights: list[Array], count: int) -> list[Array]:
    """Store version 0 and `count` more of noise, which does not compress; return the newest."""
    manifest = MODEL.sent
    first = ModelVersion(0, weights_digest(weights), "delta", "", 0.0, b"")
    store.versions.add(first, weights, None)
    for number in range(1, count + 1):
        start = start_round(MODEL, weights, 0.0)
        rng = np.random.default_rng(number)
        update = [np.abs(rng.standard_normal(s.shape, np.float32)) for s in manifest]
        payload = encode_update(parse_codec("float32"), manifest, update).payload
        weights = start.complete([w + u for w, u in zip(start.weights, update, strict=True)])
        digest = weights_digest(weights)
        store.versions.add(
            ModelVersion(number, digest, "delta", "float32", 0.0, payload), weights, None
        )
    return weights


def take(route: Route, held: HeldModel | None, version: int, seed: int = 0) -> HeldModel:
    """Return what a client makes of a route, after its own checks."""
    computing = ComputingTime()
    begin = None if held is None else held.version
    check_links(MODEL, begin, version, route.links, computing)
    assert route.size <= max_answer(MODEL)
    return apply_links(MODEL, seed, held, route.links, route.data, computing)


def test_who_holds_a_version_gets_no_frozen_tensor_again(store: Store) -> None:
    first = weights_of(MODEL)
    newest = add_versions(store, first, 6)
    router = Router(store.versions, MODEL, seeded=False)
    route = router.route(pb.FetchModelRequest(version=6), frozenset({"float32"}))
    assert [link.kind for link in route.links] == [pb.Link.SNAPSHOT]
    assert take(route, None, 6).digest == weights_digest(newest)
    held = HeldModel(0, weights_digest(first), first)
    request = pb.FetchModelRequest(version=6, have_version=0, have_digest=held.digest)
    for stages in (frozenset({"float32"}), frozenset[str]()):
        route = router.route(request, stages)
        assert [link.kind for link in route.links] == [pb.Link.PARTIAL]
        assert route.size < 4 * HEAD_ALONE.num_values + 100
        assert take(route, held, 6).digest == weights_digest(newest)


def test_frozen_tensors_of_the_seed_are_never_sent(store: Store) -> None:
    newest = add_versions(store, initial_weights(MODEL, 5), 6)
    router = Router(store.versions, MODEL, seeded=True)
    route = router.route(pb.FetchModelRequest(version=6), frozenset({"float32"}))
    assert [link.kind for link in route.links] == [pb.Link.SEED, pb.Link.PARTIAL]
    assert route.size < 4 * HEAD_ALONE.num_values + 100
    assert take(route, None, 6, seed=5).digest == weights_digest(newest)


def test_a_partial_snapshot_needs_a_version_before_it() -> None:
    link = pb.Link(kind=pb.Link.PARTIAL, version=3, codec="float32", size=10)
    with pytest.raises(WireError, match="after version None"):
        check_links(MODEL, None, 3, [link], ComputingTime())
    with pytest.raises(WireError, match="no version before"):
        apply_links(MODEL, 0, None, [link], b"0123456789")
    link.size = 4 * MODEL.num_values
    with pytest.raises(WireError, match="bytes for the link"):
        check_links(MODEL, 2, 3, [link], ComputingTime())


# ---- plans ----


def test_a_plan_says_what_is_frozen() -> None:
    plan = make_plan(Settings(), TASK, "{}", MODEL)
    assert manifest_of(plan).digest == MODEL.digest
    plan.manifest[0].prunable = True
    with pytest.raises(ClientError, match="prunes 'backbone/kernel', which is frozen"):
        manifest_of(plan)


def test_a_plan_without_anything_to_train_is_refused() -> None:
    plan = make_plan(Settings(), TASK, "{}", Manifest(BACKBONE))
    with pytest.raises(ClientError, match="frozen tensors only"):
        manifest_of(plan)
