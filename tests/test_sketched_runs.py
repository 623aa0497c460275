"""Whole federations with sketches: budgets, forwarding, mixed fleets, and the same without gRPC."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import Pull, profile
from support.evaluator import DistanceEvaluator
from support.federation import Federation
from support.federation import settings as run_settings
from support.models import MANIFEST, TASK

from featherfed.compression.errors import CodecError
from featherfed.compression.exchange.manifest import Manifest, Role, TensorSpec
from featherfed.compression.exchange.round import RoundContext, round_key
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.registry import abilities, parse_codec
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.rounds.steps import scheduled_rate
from featherfed.server.rounds.uplink import PRESETS, Uplink, check_uplink
from featherfed.server.settings.plan import make_plan
from featherfed.server.storage.store import Store
from featherfed.sweep.simulate import simulate

Start = Callable[..., Federation]
VALUES = {"a": 0.1, "b": 0.7, "c": -0.3}
BUDGET = {"uplink": "2kB/round"}
SKETCHED = {"uplink": "sketch(0.3, 1, profile)"}


def run_all(server: Federation, values: dict[str, float] = VALUES) -> list[Any]:
    return server.run_clients(*(server.client(name, value) for name, value in values.items()))


def kinds(server: Federation) -> list[str]:
    return [version.kind for version in server.store.versions.after(0)]


# ---- budgets ----

MODEL = Manifest((TensorSpec("kernel", (1600, 128)), TensorSpec("bias", (128,))))


@pytest.mark.parametrize("preset", ["transparent", "balanced", "extreme"])
@pytest.mark.parametrize("clients", [5, 20])
def test_a_preset_keeps_the_cohorts_budget_over_the_rounds(preset: str, clients: int) -> None:
    uplink, (ratio, _) = Uplink(preset, MODEL, 7), PRESETS[preset]
    total = 0.0
    for round_ in range(1, 8):
        codec = parse_codec(uplink.codec(clients, round_))
        report = (3 + 1728 // clients) / 2 if "bounded" in str(codec) else 0
        total += clients * (MODEL.num_values * codec.density / 8 + 20 + report)  # type: ignore[attr-defined]
    assert total / 7 == pytest.approx(5 * 4 * MODEL.num_values / ratio, rel=0.1)


def test_few_clients_send_the_largest_values_instead() -> None:
    uplink = Uplink("4kB/round", MODEL, 7)
    assert "sketch" in uplink.codec(3, 1)
    for clients in (1, 2):
        assert uplink.codec(clients, 1).startswith("topk(")


@pytest.mark.parametrize(
    ("budget", "sides"),
    [
        ("10kB/round", ["bounded", "bounded", "bare", "bounded", "bare"]),
        ("2kB/round", ["coarse", "levels", "bare", "levels", "bare"]),
        ("100B/round", ["levels", "levels", "bare", "levels", "bare"]),
    ],
)
def test_a_small_budget_takes_coarser_reports(budget: str, sides: list[str]) -> None:
    uplink = Uplink(budget, MODEL, 5)
    assert [parse_codec(uplink.codec(5, r)).side for r in range(1, 6)] == sides  # type: ignore[attr-defined]


def test_a_mask_ends_reports_of_importance() -> None:
    uplink = Uplink("balanced", MODEL, 7)
    assert "bounded" in uplink.codec(5, 1)
    assert "bounded" not in uplink.codec(5, 1, 0.5)
    assert "bounded" not in uplink.codec(5, 3)


STATEFUL = Manifest((*MODEL, TensorSpec("variance", (5000,), Role.NONNEGATIVE)))


def test_under_a_mask_the_bytes_go_to_what_it_keeps() -> None:
    pruned = Manifest((TensorSpec("kernel", (1600, 128), prunable=True), MODEL.specs[1]))
    uplink = Uplink("balanced", pruned, 7)
    whole, half = (parse_codec(uplink.codec(5, 3, sparsity)) for sparsity in (0.0, 0.5))
    assert half.density == pytest.approx(2 * whole.density, rel=0.2)
    assert parse_codec(Uplink("1MB/round", pruned, 7).codec(5, 3, 0.9)).density == 1


def test_statistics_are_sent_when_they_change_fast_and_at_the_end() -> None:
    texts = [Uplink("balanced", STATEFUL, 7).codec(5, r) for r in range(1, 8)]
    held = [parse_codec(text).statistics == "held" for text in texts]
    assert held == [False, False, True, False, True, True, False]
    nothing = [np.zeros(spec.shape, np.float32) for spec in STATEFUL]
    context = RoundContext(round_key(0, 1), 5, [None] * 3, None).for_slot(0)
    sizes = [
        len(encode_update(parse_codec(text), STATEFUL, nothing, context=context).payload)
        for text in texts
    ]
    each = STATEFUL.num_values * 4 / PRESETS["balanced"].ratio + 5000 / 5 * 4 / 7
    assert sum(sizes) / 7 == pytest.approx(each, abs=20)
    assert all("held" not in Uplink("balanced", MODEL, 7).codec(5, r) for r in range(1, 8))


@pytest.mark.parametrize("text", ["", "0kB/round", "4 parsecs", "balanced | zstd", "sketch(0)"])
def test_an_uplink_that_means_nothing_is_explained(text: str) -> None:
    with pytest.raises(CodecError):
        check_uplink(text)


def test_budgets_are_written_in_the_usual_ways() -> None:
    assert check_uplink("4 kB/round") == check_uplink("4kB") == "4kB/round"
    assert check_uplink("quantize( 8 )|zstd") == "quantize(8) | zstd"


# ---- runs over gRPC ----


def test_updates_are_forwarded_when_that_is_smallest(federation: Start) -> None:
    server = federation(compression=SKETCHED)
    held = run_all(server)
    assert kinds(server) == ["bundle"] * 3
    assert {h.digest for h in held} == {server.store.versions.newest().digest}
    newest = server.store.versions.newest()
    assert newest.allocation is not None
    assert all(h.allocation == newest.allocation for h in held)
    bundle = pb.Bundle.FromString(newest.payload)
    assert [part.slot for part in bundle.parts] == [0, 1, 2]
    names = b"".join(name.encode() + b"\n" for name in VALUES)
    assert names not in newest.payload


def test_a_run_can_forbid_forwarding(federation: Start) -> None:
    server = federation(compression={**SKETCHED, "downlink": "float32", "broadcast": "aggregate"})
    held = run_all(server)
    assert kinds(server) == ["delta"] * 3
    assert all(h.allocation == server.store.versions.newest().allocation for h in held)
    forwarded = federation("forwarded", compression=SKETCHED)
    run_all(forwarded)
    assert server.store.versions.newest().digest == forwarded.store.versions.newest().digest


def test_a_late_client_learns_importance_with_its_first_model(federation: Start) -> None:
    first_round_done = threading.Event()
    server = federation(
        compression=SKETCHED,
        rounds=4,
        clients={"minimum": 2, "quorum": 1.0, "deadline": 30, "patience": 0},
    )
    early = Pull(0.2, lambda task: task.round == 2 and first_round_done.set())
    late = server.client("late")

    def join_late() -> Any:
        assert first_round_done.wait(20)
        return server.run_clients(late)[0]

    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(join_late()))
    thread.start()
    held = server.run_clients(server.client("a", trainer=early), server.client("b"))
    thread.join(60)
    assert {h.digest for h in [*held, *results]} == {server.store.versions.newest().digest}
    assert results[0].allocation == server.store.versions.newest().allocation


class _Old:
    """A session's transport that hides what an old client does not know."""

    def __init__(self, inner: Any, unknown: str) -> None:
        self._inner, self._unknown = inner, unknown
        self.kinds: list[int] = []
        self.codecs: list[str] = []

    def join(self, request: pb.JoinRequest) -> Any:
        known = [s for s in request.capabilities.stages if s != self._unknown]
        del request.capabilities.stages[:]
        request.capabilities.stages.extend(known)
        return self._inner.join(request)

    def next_task(self, session: int, has_scaling: bool = False) -> Any:
        reply = self._inner.next_task(session, has_scaling)
        if reply.HasField("train"):
            self.codecs.append(reply.train.codec)
        return reply

    def fetch_model(self, request: pb.FetchModelRequest, limit: int) -> Any:
        links, data = self._inner.fetch_model(request, limit)
        self.kinds += [link.kind for link in links]
        return links, data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_client_that_knows_no_sketch_takes_part_in_another_codec(federation: Start) -> None:
    server = federation(compression={**SKETCHED, "downlink": "quantize(8)"})
    old = _Old(server.transport(), "sketch")
    held = server.run_clients(
        server.client("a", 0.1), server.client("b", 0.7), server.client("c", transport=old)
    )
    assert {h.digest for h in held} == {server.store.versions.newest().digest}
    assert old.codecs == ["quantize(8) | zstd"] * 3
    assert pb.Link.BUNDLE not in old.kinds


@pytest.mark.parametrize(("budget", "unknown"), [("2kB/round", "bounded"), ("100B", "coarse")])
def test_a_client_that_merges_reports_as_older_versions_did_takes_part(
    federation: Start, budget: str, unknown: str
) -> None:
    server = federation(compression={"uplink": budget}, rounds=4)
    old = _Old(server.transport(), unknown)
    held = server.run_clients(
        server.client("a", 0.1), server.client("b", 0.7), server.client("c", transport=old)
    )
    assert {h.digest for h in held} == {server.store.versions.newest().digest}
    assert all(h.allocation == server.store.versions.newest().allocation for h in held)
    names = [codec.split("(")[0] for codec in old.codecs]
    assert names == ["quantize", "quantize", "sketch", "sketch"], "reports in rounds 1 and 2"


def test_a_run_of_an_older_server_goes_on_with_the_reports_it_began_with(tmp_path: Path) -> None:
    def coordinator(report: str | None) -> Coordinator:
        plan = make_plan(changed, TASK, "{}", MANIFEST)
        plan.report = plan.report if report is None else report
        return Coordinator(
            changed, store, plan, MANIFEST, TASK, DistanceEvaluator(),
            lambda: 0.0,
        )  # fmt: skip

    for begun, word in ((None, "bounded"), ("", "profile")):
        folder = tmp_path / word
        folder.mkdir()
        changed, store = run_settings(folder, compression=BUDGET), Store(folder / "run.db")
        coordinator(begun)
        again = coordinator(None)
        codecs = again.updates._codecs
        assert word in codecs.choose(1, 3, abilities())
        store.close()


def test_a_client_that_knows_nothing_useful_is_told(federation: Start) -> None:
    server = federation(compression={**SKETCHED, "fallback": "sketch(0.3)"})
    from featherfed.edge_client.errors import Rejected

    with pytest.raises(Rejected, match="sketch"):
        server.client("c", transport=_Old(server.transport(), "sketch")).run()


def test_variances_stay_valid_whatever_clients_send(federation: Start) -> None:
    server = federation(compression={"uplink": "sketch(0.01)"})
    run_all(server, {"a": -5.0, "b": -1.0, "c": 0.0})
    weights, _ = server.store.versions.model(MANIFEST)
    assert (weights[2] >= 0).all()


# ---- without gRPC ----


@pytest.mark.parametrize(
    "uplink", ["quantize(8) | zstd", "balanced", "2kB/round", "sketch(0.3, 1, profile)"]
)
def test_a_simulation_ends_with_the_digests_of_a_run_over_grpc(
    federation: Start, tmp_path: Path, uplink: str
) -> None:
    changes: dict[str, Any] = {"compression": {"uplink": uplink}, "seed": 1}
    server = federation(**changes)
    run_all(server)
    metrics = simulate(
        run_settings(tmp_path, **changes),
        model_json="{}",
        manifest=MANIFEST,
        task=TASK,
        clients={name: profile(name).data for name in VALUES},
        make_trainer=lambda name, plan, manifest, step: Pull(VALUES[name]),
        evaluator=DistanceEvaluator(),
    )
    real = [version.digest.hex() for version in server.store.versions.after(0)]
    assert [r["digest"] for r in metrics["rounds"]] == real
    payloads = [
        [(c["client"], c["uplink"]["payload_bytes"]) for c in r["clients"]]
        for r in metrics["rounds"]
    ]
    entries = {
        (e.round, e.client): e.payload_bytes
        for e in server.store.ledger.entries()
        if (e.direction, e.kind) == ("uplink", "transfer")
    }
    for round_, of_round in enumerate(payloads, 1):
        assert all(entries[round_, client] == size for client, size in of_round)


def test_a_simulation_fails_with_the_clients_error(tmp_path: Path) -> None:
    class Broken(Pull):
        def train(self, weights: Any, task: Any) -> Any:
            raise ZeroDivisionError("this client's disk is full")

    with pytest.raises(ZeroDivisionError):
        simulate(
            run_settings(tmp_path),
            model_json="{}",
            manifest=MANIFEST,
            task=TASK,
            clients={name: profile(name).data for name in VALUES},
            make_trainer=lambda name, plan, manifest, step: (
                Broken(1.0) if name == "b" else Pull(1.0)
            ),
            evaluator=DistanceEvaluator(),
        )


def test_steps_are_long_in_the_middle_and_short_at_the_end() -> None:
    assert [scheduled_rate(r, 7) for r in range(1, 8)] == [256, 333, 333, 333, 333, 192, 128]
    assert [scheduled_rate(r, 4) for r in range(1, 5)] == [256] * 4


def test_clients_take_the_same_steps(federation: Start) -> None:
    server = federation(compression={"uplink": "0.2kB/round"}, rounds=5)
    held = run_all(server)
    assert {h.digest for h in held} == {server.store.versions.newest().digest}
    rates = [pb.Bundle.FromString(v.payload).server_rate for v in server.store.versions.after(0)]
    assert rates == [0, 333, 333, 192, 128]
