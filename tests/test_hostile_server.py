"""Answers that no server may give: the client says so, in bounded memory, disk and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from support.changed_answers import ChangedAnswers
from support.clients import Pull, profile
from support.federation import Federation
from support.hostile_server import (
    MODEL,
    SEED,
    SEED_LINK,
    TRAIN,
    HostileServer,
    abort,
    plan,
    run_client,
    stream,
)
from support.models import MODELS, TASK
from support.regression import REGRESSION, LinearClient

from featherfed.compression.errors import WireError
from featherfed.compression.exchange.manifest import Manifest, weights_digest
from featherfed.compression.exchange.update import encode_update, sketched_shapes
from featherfed.compression.importance import equal_importance
from featherfed.compression.registry import parse_codec
from featherfed.edge_client.answers import ComputingTime, check_bundle, max_answer
from featherfed.edge_client.errors import ClientError, Rejected, TooLarge
from featherfed.edge_client.grpc_connection import GrpcConnection
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.partial_download import FILE_NAME, PartialDownload
from featherfed.edge_client.plan import MAX_TENSORS, MAX_VALUES, manifest_of, task_of
from featherfed.edge_client.scaling import OwnScaling
from featherfed.edge_client.session import Profile, Session
from featherfed.edge_client.state import ClientState, HeldModel
from featherfed.edge_client.versions import apply_links
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.protocol import PROTOCOL
from featherfed.server.aggregation import bundle as bundles
from featherfed.tasks.message import task_message

Start = Callable[..., Federation]
HOSTILE = "x\n12:00:00 INFO round 9: closed\r\x1b[2J\u202e"
ZEROS = [np.zeros(spec.shape, np.float32) for spec in MODEL]
END = pb.NextTaskReply(finished=pb.Finished(version=0, digest=SEED))
"""The end of a run in which nothing was trained."""


def take_part(server: HostileServer, folder: Path) -> HeldModel:
    transport = GrpcTransport(server.address, 2, partial=folder / FILE_NAME)
    session = Session(
        profile("client"),
        transport,
        lambda plan, manifest, step: Pull(1.0),
        lambda run: ClientState(folder, run),
    )
    try:
        return session.run()
    finally:
        transport.close()


def refused(folder: Path, **answers: Any) -> str:
    """Return the message of the error with which a client ends; its state must stay usable."""
    with HostileServer(**answers) as server, pytest.raises((ClientError, Rejected)) as raised:
        take_part(server, folder)
    with HostileServer(NextTask=END) as server:
        assert take_part(server, folder).digest == SEED
    text = str(raised.value)
    assert text.isprintable()
    assert len(text) < 700
    return text


def chunks(links: list[pb.Link], data: bytes) -> Callable[..., Iterator[pb.ModelChunk]]:
    def answer(request: Any, context: Any) -> Iterator[pb.ModelChunk]:
        yield pb.ModelChunk(links=links, data=data[: 2**16])
        for at in range(2**16, len(data), 2**16):
            yield pb.ModelChunk(data=data[at : at + 2**16])

    return answer


def payload_of(codec: str, manifest: Manifest = MODEL) -> bytes:
    zeros = [np.zeros(spec.shape, np.float32) for spec in manifest]
    return encode_update(parse_codec(codec), manifest, zeros).payload


# ---- the plan and the tasks ----


def tensor(*shape: int, **changes: Any) -> pb.Tensor:
    return pb.Tensor(
        **{"name": "kernel", "shape": shape, "role": "trainable", "fill": 0.0, **changes}
    )


PLANS: dict[str, tuple[dict[str, Any], str]] = {
    "too many tensors": ({"manifest": [tensor(1)] * (MAX_TENSORS + 1)}, "16385 tensors"),
    "too many values": ({"manifest": [tensor(MAX_VALUES), tensor(1)]}, "67108865 parameters"),
    "no values": ({"manifest": []}, "has 0 parameters"),
    "a huge shape": ({"manifest": [tensor(2**16, 2**16)]}, "a shape that no model has"),
    "a huge shape behind a zero": ({"manifest": [tensor(0, 2**16, 2**16)]}, "a shape that no"),
    "too many axes": ({"manifest": [tensor(*[1] * 9)]}, "a shape that no model has"),
    "a long name": ({"manifest": [tensor(1, name="n" * 501)]}, "names a tensor 'nnn"),
    "a name of two lines": ({"manifest": [tensor(1, name=HOSTILE)]}, "names a tensor"),
    "an unknown role": ({"manifest": [tensor(1, role="y" * 10**6)]}, "characters more"),
    "a value that is no number": ({"manifest": [tensor(1, fill=float("nan"))]}, "not finite"),
    "an infinite limit": ({"manifest": [tensor(1, uniform_limit=1e300)]}, "not finite"),
    "a run of two lines": ({"run": HOSTILE}, "holds the word"),
    "an endless optimizer": (
        {"training": pb.Training(epochs=1, batch_size=1, learning_rate=1, optimizer="y" * 10**6)},
        "characters more",
    ),
    "endless training": (
        {"training": pb.Training(epochs=2**32 - 1, batch_size=1, learning_rate=1)},
        "4294967295 epochs",
    ),
    "endless batches": (
        {"training": pb.Training(epochs=1, batch_size=2**32 - 1, learning_rate=1)},
        "batches of 4294967295",
    ),
    "endless clusters": (
        {"optimization": pb.Optimization(method="cluster", num_clusters=2**32 - 1)},
        "4294967295 clusters",
    ),
}


@pytest.mark.parametrize(("changes", "says"), PLANS.values(), ids=PLANS)
def test_a_plan_that_no_server_makes_is_refused(changes: dict[str, Any], says: str) -> None:
    began = time.monotonic()
    with pytest.raises(ClientError, match="the server's plan") as raised:
        manifest_of(plan(**changes))
    assert says in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 300
    assert time.monotonic() - began < 3


def task(loss: str | None = None, **changes: Any) -> pb.Plan:
    """Return a plan of the regression task, with these fields of the task, or of its parts."""
    message = task_message(REGRESSION)
    for name, value in changes.items():
        part, _, field = name.partition("_")
        if name == "inputs":
            del message.inputs[:]
            message.inputs.extend(value)
        elif name == "metrics":
            message.metrics[:] = value
        else:
            holder = message.inputs[0] if part == "input" else message.target
            if isinstance(value, list):
                getattr(holder, field)[:] = value
            else:
                setattr(holder, field, value)
    training = pb.Training(epochs=1, batch_size=1, learning_rate=1, loss=loss or REGRESSION.loss)
    return plan(task=message, training=training)


MANY = 10**5
TASKS: dict[str, tuple[dict[str, Any], str]] = {
    "no task": ({"inputs": [], "target_kind": "", "metrics": []}, "kind of target '', unknown"),
    "no input": ({"inputs": []}, "1 to 16 inputs"),
    "too many inputs": ({"inputs": [pb.Input(name="x", dtype="int32")] * MANY}, "too many inputs"),
    "an unknown kind": ({"target_kind": "boxes"}, "'boxes', unknown to this version: update"),
    "a kind of two lines": ({"target_kind": HOSTILE}, "unknown to this version"),
    "an endless kind": ({"target_kind": "y" * 10**6}, "characters more"),
    "an unknown loss": ({"loss": "focal"}, "the loss 'focal', unknown to this version: update"),
    "a loss of something else": ({"loss": "binary_crossentropy"}, "does not fit a target"),
    "an unknown metric": ({"metrics": ["iou"]}, "the metric 'iou', unknown to this version: up"),
    "a metric of something else": ({"metrics": ["accuracy"]}, "does not fit a target"),
    "a metric of two lines": ({"metrics": [HOSTILE]}, "unknown to this version"),
    "a metric twice": ({"metrics": ["mae", "mae"]}, "named twice"),
    "endless metrics": ({"metrics": ["mae"] * MANY}, "100000 metrics"),
    "an unknown dtype": ({"input_dtype": "complex64"}, "the dtype 'complex64', unknown"),
    "a huge shape": ({"input_shape": [10**9]}, "is not possible"),
    "a huge product": ({"input_shape": [2**31, 2**31]}, "is not possible"),
    "an empty axis": ({"input_shape": [0, 2**31]}, "is not possible"),
    "endless axes": ({"input_shape": [1] * MANY}, "the shape [1, 1"),
    "a huge target": ({"target_shape": [10**9]}, "is not possible"),
    "a name of two lines": ({"input_name": HOSTILE}, "cannot be the name"),
    "no name": ({"input_name": ""}, "cannot be the name"),
    "an endless name": ({"input_name": "n" * 10**6}, "cannot be the name"),
    "classes of two lines": (
        {
            "target_kind": "class", "target_class_names": [HOSTILE, "b"], "target_shape": [],
            "target_standardize": False, "loss": "sparse_categorical_crossentropy",
            "metrics": ["accuracy"],
        },
        "cannot be the name",
    ),
    "endless classes": ({"target_class_names": ["a"] * MANY}, "too many inputs or classes"),
    "a division by zero": ({"input_dtype": "uint8", "input_standardize": False}, "divide_by"),
    "tokens without a vocabulary": (
        {"input_dtype": "int32", "input_standardize": False}, "need a vocabulary",
    ),
    "standardised bytes": ({"input_dtype": "uint8", "input_divide_by": 255}, "only float32"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), TASKS.values(), ids=TASKS)
def test_a_task_that_cannot_be_is_refused(changes: dict[str, Any], says: str) -> None:
    given = task(**changes)
    for message in (given, pb.GetTaskReply(task=given.task, loss=given.training.loss)):
        began = time.monotonic()
        with pytest.raises(ClientError, match="the server's task") as raised:
            task_of(message)
        assert says in str(raised.value)
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 600
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("holdout", [-0.1, 1.0, float("nan"), float("inf")])
def test_an_impossible_share_to_hold_out_is_refused(tmp_path: Path, holdout: float) -> None:
    joined = pb.JoinReply(session=1, plan=plan(holdout=holdout), protocol=PROTOCOL)
    assert "holds out" in refused(tmp_path, Join=joined)


def test_the_tasks_of_these_tests_are_taken() -> None:
    assert task_of(plan()) == TASK
    assert task_of(task()) == REGRESSION


def scaled(mean: Any, deviation: Any, count: int = 1) -> pb.Scaling:
    scale = pb.FeatureScale(mean=mean, deviation=deviation)
    return pb.Scaling(inputs=[scale] * count, target=pb.FeatureScale(mean=[0, 0], deviation=[1, 1]))


NAN = float("nan")
SCALINGS: dict[str, tuple[pb.Scaling | None, str]] = {
    "none": (None, "does not say how the data are standardised"),
    "NaN": (scaled([0, 0, NAN], [1, 1, 1]), "does not fit 3 features"),
    "infinite": (scaled([0, 0, 0], [1, 1, float("inf")]), "does not fit 3 features"),
    "a deviation of 0": (scaled([0, 0, 0], [1, 0, 1]), "not above 0"),
    "negative": (scaled([0, 0, 0], [1, -1, 1]), "not above 0"),
    "too few features": (scaled([0, 0], [1, 1]), "does not fit 3 features"),
    "endless features": (scaled([0] * MANY, [1] * MANY), "does not fit 3 features"),
    "other inputs": (scaled([0, 0, 0], [1, 1, 1], 2), "another number of inputs"),
    "no target": (pb.Scaling(inputs=[pb.FeatureScale(mean=[0] * 3, deviation=[1] * 3)]), "other"),
}


@pytest.mark.parametrize(("scaling", "says"), SCALINGS.values(), ids=SCALINGS)
def test_a_scaling_that_cannot_be_is_refused(scaling: pb.Scaling | None, says: str) -> None:
    client = LinearClient("c", 0)
    known = OwnScaling(REGRESSION, client)
    assert not known.is_known
    for message in (pb.Train(scaling=scaling), pb.Finished(scaling=scaling)):
        with pytest.raises(ClientError, match=says):
            known.take(message)
    assert client.given == 0
    known.take(pb.Train(scaling=scaled([0, 0, 0], [1, 1, 1])))
    known.take(pb.Train(scaling=scaled([0, 0, 0], [1, 1, 1])))
    known.take(pb.Train())
    assert (client.given, known.is_known) == (1, True)


def test_a_report_that_fails_costs_no_model(tmp_path: Path) -> None:
    """A server that refuses the last evaluation, or forgets the session, or says nonsense."""
    for number, code in enumerate(
        (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED,
         grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)
    ):  # fmt: skip
        joined = pb.JoinReply(session=1, plan=plan(holdout=0.1), protocol=PROTOCOL)
        answer = abort(code, "no")
        with HostileServer(Join=joined, NextTask=END, ReportEvaluation=answer) as server:
            transport = GrpcTransport(server.address, give_up_after=5)
            data = pb.DataSummary(num_examples=10, num_held_out=2)
            held = Session(
                Profile("a", data, "numpy", ("none",), "0"), transport, lambda *_: Pull(1.0),
                lambda run, n=number: ClientState(tmp_path / str(n), run),  # type: ignore[misc]
            ).run()  # fmt: skip
            transport.close()
        assert held.digest == SEED
        assert server.calls["ReportEvaluation"] == 1


def test_the_plan_of_these_tests_is_taken() -> None:
    assert manifest_of(plan(heartbeat_seconds=2**32 - 1)).digest == MODEL.digest
    assert manifest_of(plan(manifest=[tensor(2**13, 2**13)])).num_values == MAX_VALUES


@pytest.mark.parametrize(
    "changes",
    [{"round": 10}, {"round": 0}, {"version": 1}, {"slots": 0}, {"sparsity": 1.0}],
    ids=lambda changes: "-".join(changes),
)
def test_a_task_that_is_none_of_the_plan_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    task = pb.Train()
    task.CopyFrom(TRAIN)
    for name, value in changes.items():
        setattr(task, name, value)
    assert "the server asks for" in refused(tmp_path, NextTask=pb.NextTaskReply(train=task))


def test_absurd_slots_and_heartbeats_do_no_harm(tmp_path: Path) -> None:
    tasks = iter([pb.Train(round=1, digest=SEED, slot=2**32 - 1, slots=2**32 - 1), None])

    def next_task(request: Any, context: Any) -> pb.NextTaskReply:
        task = next(tasks)
        if task is None:
            return END
        task.codec = "sketch(0.1, 1, profile)"
        return pb.NextTaskReply(train=task)

    joined = pb.JoinReply(session=1, protocol=PROTOCOL, plan=plan(heartbeat_seconds=2**32 - 1))
    with HostileServer(Join=joined, NextTask=next_task) as server:
        assert take_part(server, tmp_path).digest == SEED
    assert server.calls["SubmitUpdate"] == 1


def test_a_server_that_has_nothing_to_do_is_not_asked_without_end(tmp_path: Path) -> None:
    ends = time.monotonic() + 1.5

    def next_task(request: Any, context: Any) -> pb.NextTaskReply:
        return END if time.monotonic() > ends else pb.NextTaskReply(wait=pb.Wait())

    with HostileServer(NextTask=next_task) as server:
        take_part(server, tmp_path)
    assert server.calls["NextTask"] <= 4


# ---- the model ----

FLOAT32 = payload_of("float32 | zstd")
SNAPSHOT = pb.Link(
    kind=pb.Link.SNAPSHOT, codec="float32 | zstd", digest=weights_digest(ZEROS), size=len(FLOAT32)
)
DELTA = pb.Link(version=1, codec="sign", digest=bytes(32), size=len(payload_of("sign")))
FORWARDED = pb.Bundle(slots=1, codec="float32 | zstd", parts=[pb.Part()] * 10_001)


def link(like: pb.Link, **changes: Any) -> pb.Link:
    made = pb.Link()
    made.CopyFrom(like)
    made.MergeFrom(pb.Link(**changes))
    return made


ROUTES: dict[str, tuple[list[pb.Link], bytes, str]] = {
    "more than a whole model": ([link(SNAPSHOT, size=10**9)], b"", "at most 41407 are possible"),
    "in many links": ([link(SNAPSHOT, size=2**32 - 1)] * 100, b"", "at most 41407 are possible"),
    "many links": ([pb.Link()] * 1_000, b"", "bytes of a model|a link to version"),
    "very many links": ([pb.Link()] * 100_000, b"", "announces 100000 links"),
    "no links": ([], b"", "lead to version None instead of 0"),
    "a whole model twice": ([SNAPSHOT] * 2, FLOAT32 * 2, "a link to version 0 after version 0"),
    "a version too far": ([SEED_LINK, DELTA], payload_of("sign"), "a link to version 1 after"),
    "a delta from nothing": ([link(DELTA, version=2)], b"", "a link to version 2 after"),
    "a seed with a payload": ([link(SEED_LINK, size=9)], bytes(9), "9 bytes for the link"),
    "more than the codec makes": (
        [link(SNAPSHOT, codec="sign", size=5_000)],
        bytes(5_000),
        "5000 bytes for the link to version 0",
    ),
    "an unknown codec": ([link(SNAPSHOT, codec=HOSTILE)], FLOAT32, "unknown codec"),
    "data cut short": ([SNAPSHOT], FLOAT32[:-1], "cannot be used"),
    "data nobody announced": ([SNAPSHOT], FLOAT32 + b"?", "sends more than it announced"),
}


@pytest.mark.parametrize(("links", "data", "says"), ROUTES.values(), ids=ROUTES)
def test_a_model_that_no_server_sends_is_refused(
    tmp_path: Path, links: list[pb.Link], data: bytes, says: str
) -> None:
    text = refused(tmp_path, FetchModel=chunks(links, data))
    assert any(part in text for part in says.split("|")), text
    assert not (tmp_path / FILE_NAME).exists() or (tmp_path / FILE_NAME).stat().st_size < 10**5


def test_a_bundle_of_too_many_updates_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    data = FORWARDED.SerializeToString()
    with pytest.raises(WireError, match="more than 10000 updates"):
        check_bundle(data)
    del FORWARDED.parts[0]
    check_bundle(FORWARDED.SerializeToString())
    task = pb.Train(round=2, version=1, codec="float32", slots=1)
    link = pb.Link(kind=pb.Link.BUNDLE, version=1, digest=bytes(32), size=len(data))
    text = refused(
        tmp_path,
        NextTask=pb.NextTaskReply(train=task),
        FetchModel=chunks([SEED_LINK, link], data),
    )
    assert "more than 10000 updates" in text


@pytest.mark.parametrize("data", [b"\x1b", b"\x08" + b"\xff" * 10, b"\x0d\0", b"\x1a\x7f"])
def test_a_damaged_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(WireError, match=r"damaged|truncated"):
        check_bundle(data)


def test_a_bundle_with_fields_of_the_future_is_counted() -> None:
    check_bundle(b"\x09" + bytes(8) + b"\x15" + bytes(4) + b"\x18" + b"\xff" * 9 + b"\x01")


def test_computing_a_version_ends_after_its_time() -> None:
    part = pb.Part(num_examples=1, payload=FLOAT32)
    bundle = pb.Bundle(slots=1, codec="float32 | zstd", parts=[part] * 10_000)
    data = bundle.SerializeToString()
    link = pb.Link(kind=pb.Link.BUNDLE, version=1, digest=bytes(32), size=len(data))
    held = HeldModel(0, weights_digest(ZEROS), ZEROS)
    began = time.thread_time()
    with pytest.raises(WireError, match=r"more than 0 s to compute"):
        apply_links(MODEL, 0, held, [link], data, ComputingTime(0.1))
    assert time.thread_time() - began < 1


@pytest.mark.parametrize("manifest", MODELS.values(), ids=MODELS)
def test_the_largest_snapshot_is_not_too_large(manifest: Manifest) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 2**23, s.shape).astype("<u4").view("<f4") for s in manifest]
    payload = encode_update(parse_codec("float32 | zstd"), manifest, noise).payload
    known = equal_importance(sketched_shapes(manifest))
    link = pb.Link(
        kind=pb.Link.SNAPSHOT,
        version=2**32 - 1,
        digest=bytes(32),
        codec="float32 | zstd",
        sparsity=0.5,
        size=len(payload),
        allocation=pb.Allocation(levels=known.levels, profile=known.profile),
    )
    assert len(payload) + link.ByteSize() <= max_answer(manifest)
    assert max_answer(manifest) < 4.2 * manifest.num_values + 2000


@pytest.mark.parametrize(("most", "kind"), [(2, "delta"), (3, "bundle")])
def test_the_server_forwards_no_more_updates_than_clients_take(
    federation: Start, monkeypatch: pytest.MonkeyPatch, most: int, kind: str
) -> None:
    monkeypatch.setattr(bundles, "MAX_UPDATES", most)
    server = federation(rounds=1, compression={"uplink": "sketch(0.1)"})
    server.run_clients(*(server.client(name) for name in "abc"))
    assert [v.kind for v in server.store.versions.after(0)] == [kind]


def test_what_an_attack_left_on_the_disk_goes_away(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with path.open("wb") as file:
        file.truncate(2**30)
    assert PartialDownload(path, pb.FetchModelRequest(), 10**6).size == 0
    assert not path.exists()


# ---- any answer ----


def test_a_message_without_data_ends_a_stream(tmp_path: Path) -> None:
    def endless(request: Any, context: Any) -> Iterator[pb.ModelChunk]:
        yield pb.ModelChunk(links=[SNAPSHOT])
        while True:
            yield pb.ModelChunk()

    assert "messages without data" in refused(tmp_path, FetchModel=endless)


@pytest.mark.parametrize(
    "answer",
    [
        pb.JoinReply(plan=pb.Plan(model_json="x" * 3 * 2**20)),
        abort(grpc.StatusCode.NOT_FOUND, "x" * 20_000),
    ],
    ids=["message", "error"],
)
def test_an_answer_too_large_to_be_read_is_not_asked_for_again(tmp_path: Path, answer: Any) -> None:
    """gRPC gives both the status of a busy server, which clients wait for without end."""
    with HostileServer(Join=answer) as server, pytest.raises(TooLarge, match="no answer of a"):
        take_part(server, tmp_path)
    assert server.calls["Join"] == 1


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_an_error_of_the_server_is_one_line(code: grpc.StatusCode) -> None:
    connection = GrpcConnection("127.0.0.1:1", 0)

    class Error(grpc.RpcError):
        def code(self) -> Any:
            return code

        def details(self) -> str:
            return HOSTILE + "y" * 10_000

        def trailing_metadata(self) -> Any:
            return ()

    text = str(connection._translated(Error()))
    assert text.isprintable()
    assert r"x\n12:00:00 INFO round 9: closed\r\x1b[2J\u202eyyy" in text
    assert len(text) < 700
    connection.close()


@pytest.mark.parametrize("reason", [pb.LATE, pb.MALFORMED, 99])
def test_a_refusal_is_one_line(
    tmp_path: Path, reason: Any, caplog: pytest.LogCaptureFixture
) -> None:
    reply = pb.SubmitReply(outcome=pb.REFUSED, reason=reason, detail=HOSTILE + "y" * 10**6)
    tasks = iter([pb.NextTaskReply(train=TRAIN), END])
    with HostileServer(SubmitUpdate=reply, NextTask=lambda *_: next(tasks)) as server:
        if reason == pb.LATE:
            take_part(server, tmp_path)
        else:
            with pytest.raises(Rejected, match=r"x\\n12:00:00.*999,5\d\d characters more") as error:
                take_part(server, tmp_path)
            assert str(error.value).isprintable()
    assert all(record.message.isprintable() for record in caplog.records)
    assert len(caplog.text) < 2_000


@pytest.mark.parametrize(
    "seeds",
    [range(200), pytest.param(range(200, 20_000), marks=pytest.mark.slow)],
    ids=["short", "long"],
)
def test_any_field_may_be_wrong(
    seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer, in random fields: the run goes on, or ends with an error that is meant."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    taken, refused = 0, []
    for seed in seeds:
        session = Session(
            profile("client"),
            ChangedAnswers(seed),
            lambda plan, manifest, step: Pull(1.0),
            lambda run: ClientState(tmp_path, run),
        )
        try:
            session.run()
            taken += 1
        except (ClientError, Rejected) as error:
            refused.append(str(error))
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
    assert all(text.isprintable() and len(text) < 700 for text in refused)
    assert min(taken, len(refused)) > len(seeds) / 20


# ---- memory and disk, in processes of their own ----


def test_a_huge_model_costs_neither_memory_nor_disk(tmp_path: Path) -> None:
    snapshot = link(SNAPSHOT, size=2**32 - 1)
    with HostileServer(FetchModel=stream([snapshot] * 100, 2**28)) as server:
        outcome = run_client(server.address, tmp_path / "client", limit=60)
    assert outcome.kind == "refused", outcome
    assert "429496735300 bytes of a model; at most 41407 are possible" in outcome.text
    assert outcome.peak_mib < 30
    assert outcome.disk_mib < 1
    assert server.sent < 2**20


def test_a_million_links_cost_little(tmp_path: Path) -> None:
    many = pb.ModelChunk.FromString(b"\x0a\x00" * 1_000_000)
    with HostileServer(FetchModel=[many]) as server:
        outcome = run_client(server.address, tmp_path / "client", limit=60)
    assert outcome.kind == "refused", outcome
    assert "1000000 links" in outcome.text
    assert outcome.peak_mib < 130
