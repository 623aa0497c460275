"""The int8 file of a run without data: ranges and evaluations, and hostile ones of both sides."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from support.clients import Pull
from support.federation import Federation, settings
from support.hostile_server import SEED, TASK, HostileServer, abort, plan
from support.regression import LINEAR, REGRESSION, SETTINGS, LinearClient
from test_hostile_figures import EVALUATIONS, GOOD, Run, finish

from featherfed.compression.arrays import Array
from featherfed.compression.stages.zstd import Zstd
from featherfed.datasets.dataset import Dataset
from featherfed.edge_client import int8_helper
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.model_process import ModelProcess
from featherfed.edge_client.session import Profile, Session
from featherfed.edge_client.state import ClientState
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.protocol import PROTOCOL
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.coordinator.model_files import ModelFile
from featherfed.server.errors import Refused
from featherfed.server.rounds.ranges import merge_ranges
from featherfed.server.settings.plan import make_plan
from featherfed.server.storage.store import Store

NAN, INF = math.nan, math.inf
TENSORS = 3
WEIGHTS = np.random.default_rng(0).bytes(2000)
TO_MEASURE, INT8 = b"TFL3 to measure" + WEIGHTS, b"TFL3 int8" + WEIGHTS
"""Stand-ins for two files of one model."""


@dataclass
class Quantizer:
    """Makes stand-ins for files; the int8 one says which ranges it was made from."""

    needs_ranges: bool = True
    given: list[Any] = field(default_factory=list)

    def file_to_measure(self, weights: Sequence[Array]) -> ModelFile:
        return ModelFile(TO_MEASURE, (0,), (0,), TENSORS)

    def int8_file(self, weights: Sequence[Array], ranges: Any) -> ModelFile:
        if self.needs_ranges and ranges is None:
            raise Refused(pb.MISSING_CAPABILITY, "nobody knows the ranges")
        self.given.append(ranges)
        return ModelFile(INT8, (0,))


class Finished(Run):
    """A finished run whose clients a and b are there and measure ranges."""

    def __init__(self, folder: Path, **quantizer: Any) -> None:
        self.now = 1e9
        self.quantizer = Quantizer(**quantizer)
        super().__init__(folder)
        finish(self)
        for name in "ab":
            self.run.presence.hear(name)
            self.evaluated(name)

    def open(self) -> None:
        self.store = Store(self.folder / "run.db")
        plan = make_plan(self.settings, REGRESSION, "{}", LINEAR)
        self.run = Coordinator(
            self.settings, self.store, plan, LINEAR, REGRESSION, None, lambda: self.now,
            secret=1, quantizer=self.quantizer,
        )  # fmt: skip
        self.files = self.run.model_files

    def evaluated(self, name: str) -> None:
        report = pb.EvaluationReport(version=2, evaluation=pb.Evaluation(sums=GOOD), goes_on=True)
        self.run.report_evaluation(name, report)

    def fetch(self, name: str, kind: Any, have: bytes = b"") -> Any:
        return self.files.offer(name, pb.FetchModelFileRequest(kind=kind, have_digest=have))

    def report(self, name: str, lows: list[float], highs: list[float], **changes: Any) -> None:
        fields = {"version": 2, "digest": self.digest, "num_examples": 50, **changes}
        self.files.report_ranges(name, pb.RangesReport(lows=lows, highs=highs, **fields))

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.quantizer.file_to_measure([]).content).digest()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Finished]:
    made = Finished(tmp_path)
    yield made
    made.store.close()


def test_ranges_are_merged_and_the_int8_file_is_evaluated(run: Finished) -> None:
    end = run.run.tasks.next_task("a").finished
    assert (end.measure_ranges, end.evaluate_int8) == (True, True)
    both = frozenset("ab")
    assert run.files.missing(both) == both
    measured = run.fetch("a", pb.TO_MEASURE)
    assert Zstd().decompress(measured.data, measured.description.size)[:15] == b"TFL3 to measure"
    run.report("a", [-1, 0, 0], [1, 2, 0])
    run.report("a", [-9, 0, 0], [9, 9, 9])  # again, as after a lost answer; the first one counts
    assert run.files.is_waiting
    assert run.fetch("a", pb.INT8) is None, "b is still measuring"
    run.report("b", [-2, 0, 0], [1, 3, 0], num_examples=7)
    whole, small = run.fetch("a", pb.INT8), run.fetch("a", pb.INT8, run.digest)
    assert len(small.data) < 100 < len(whole.data)
    base = run.quantizer.file_to_measure([]).content
    content = Zstd().decompress(small.data, small.description.size, base)
    assert content == Zstd().decompress(whole.data, whole.description.size)
    (ranges,) = run.quantizer.given
    np.testing.assert_array_equal(ranges, [[-2, 1], [0, 3], [0, 0]])
    assert run.files.measured().num_examples == 57
    assert not run.files.is_waiting
    report = pb.EvaluationReport(version=2, digest=hashlib.sha256(content).digest())
    report.evaluation.sums.extend(GOOD)
    run.run.report_evaluation("a", report)
    assert run.files.missing(both) == {"b"}
    run.run.report_evaluation("b", report)
    assert run.files.missing(both) == frozenset()
    scores, count = run.files.scores(content)
    assert (scores["mae"], count) == (2.0, 20)
    assert run.files.scores(b"another file") == ({}, 0)
    run.restart()
    assert run.files.scores(content) == (scores, count)
    np.testing.assert_array_equal(run.files.measured().ranges, ranges)


def test_the_server_does_not_wait_for_ever(run: Finished) -> None:
    run.fetch("a", pb.TO_MEASURE)
    run.report("a", [-1, 0, 0], [1, 2, 0])
    assert run.fetch("a", pb.INT8) is None
    run.now += run.settings.server.linger / 2
    assert run.fetch("a", pb.INT8) is not None
    with pytest.raises(Refused, match="LATE"):
        run.report("b", [0] * 3, [1] * 3)
    assert run.files.measured().num_examples == 50


def test_a_client_that_cannot_measure_says_so(run: Finished) -> None:
    run.fetch("a", pb.TO_MEASURE)
    for name in "ab":
        run.report(name, [], [], num_examples=0)
    with pytest.raises(Refused, match="nobody knows the ranges"):
        run.fetch("a", pb.INT8)
    with pytest.raises(Refused, match="nobody knows the ranges"):
        run.fetch("b", pb.INT8)
    assert run.files.missing(frozenset("ab")) == frozenset(), "there is nothing to wait for"


def test_a_model_that_has_learned_its_ranges_is_only_evaluated(tmp_path: Path) -> None:
    run = Finished(tmp_path, needs_ranges=False)
    end = run.run.tasks.next_task("a").finished
    assert (end.measure_ranges, end.evaluate_int8) == (False, True)
    with pytest.raises(Refused, match="has learned its ranges"):
        run.fetch("a", pb.TO_MEASURE)
    assert not run.files.is_waiting
    assert run.fetch("a", pb.INT8) is not None
    run.store.close()


RANGES: dict[str, tuple[dict[str, Any], str]] = {
    "too few": ({"lows": [0, 0], "highs": [1, 1]}, "2 smallest and 2 largest values; .* 3 tensors"),
    "too many": ({"lows": [0] * 4, "highs": [1] * 4}, "4 smallest"),
    "endless": ({"lows": [0] * 10**5, "highs": [1] * 10**5}, "100000 smallest"),
    "one-sided": ({"lows": []}, "0 smallest"),
    "a few more ends": ({"highs": [1] * 5}, "5 largest"),
    "NaN": ({"lows": [0, NAN, 0]}, "range of tensor 1 of 3 is nan to 1"),
    "infinite": ({"highs": [1, 1, INF]}, "range of tensor 2 of 3 is 0 to inf"),
    "minus infinity": ({"lows": [-INF, 0, 0]}, "range of tensor 0 of 3 is -inf to 1"),
    "inverted": ({"lows": [0, 2, 0]}, "range of tensor 1 of 3 is 2 to 1"),
    "huge": ({"highs": [1, 2e18, 1]}, "range of tensor 1 of 3 is 0 to 2e\\+18"),
    "of no example": ({"num_examples": 0}, "ranges of 0 examples"),
    "of too many examples": ({"num_examples": 10**6}, "ranges of 1000000 examples; 1 to 200"),
}


@pytest.mark.parametrize(("bad", "says"), RANGES.values(), ids=RANGES)
def test_ranges_that_no_examples_give_are_refused(
    run: Finished, bad: dict[str, Any], says: str
) -> None:
    run.fetch("a", pb.TO_MEASURE)
    with pytest.raises(Refused, match=f"MALFORMED: ranges: .*{says}"):
        run.report("a", **{"lows": [0] * 3, "highs": [1] * 3, **bad})
    assert run.store.model_files.ranges(2) == {}
    run.report("a", [0] * 3, [1] * 3)


@pytest.mark.parametrize(("bad", "says"), EVALUATIONS.values(), ids=EVALUATIONS)
def test_an_evaluation_of_int8_that_no_examples_give_is_refused(
    run: Finished, bad: list[float], says: str
) -> None:
    run.fetch("a", pb.TO_MEASURE)
    for name in "ab":
        run.report(name, [0] * 3, [1] * 3)
    digest = run.fetch("a", pb.INT8).description.digest
    report = pb.EvaluationReport(version=2, digest=digest, evaluation=pb.Evaluation(sums=bad))
    with pytest.raises(Refused, match=f"MALFORMED: evaluation: .*{says}"):
        run.run.report_evaluation("a", report)
    assert run.store.model_files.sums(2) == {}


def test_reports_on_other_files_and_versions_are_refused(run: Finished) -> None:
    with pytest.raises(Refused, match=r"UNKNOWN_VERSION.*nobody was given that file"):
        run.report("a", [0] * 3, [1] * 3)
    run.fetch("a", pb.TO_MEASURE)
    for changes in ({"digest": b"x" * 32}, {"version": 1}, {"digest": b""}):
        with pytest.raises(Refused, match="UNKNOWN_VERSION"):
            run.report("a", [0] * 3, [1] * 3, **changes)
    with pytest.raises(Refused, match="UNKNOWN_VERSION"):
        run.run.report_evaluation("a", pb.EvaluationReport(version=2, digest=b"x" * 32))
    with pytest.raises(Refused, match="no such file"):
        run.fetch("a", 7)


def test_where_the_server_has_data_nobody_is_asked(tmp_path: Path) -> None:
    run = Run(tmp_path)
    finish(run)
    end = run.run.tasks.next_task("a").finished
    assert not (end.measure_ranges)
    assert not (end.evaluate_int8)
    with pytest.raises(Refused, match="no such file"):
        run.run.model_files.offer("a", pb.FetchModelFileRequest())
    assert run.run.model_files.missing(frozenset("ab")) == frozenset()
    run.store.close()


def as_ranges(*pairs: tuple[float, float]) -> Any:
    return np.array(pairs, np.float32)


def test_one_liar_stretches_a_range_by_no_more_than_its_width() -> None:
    honest = [as_ranges((-1, 1), (0, 4)), as_ranges((-1, 1.25), (0, 5)), as_ranges((-1, 1), (0, 4))]
    np.testing.assert_array_equal(merge_ranges(honest), [[-1, 1.25], [0, 5]])
    for lie in (1e18, 1e6, 3.0):
        found = merge_ranges([*honest, as_ranges((-lie, lie), (-lie, lie))])
        width = found[:, 1] - found[:, 0]
        assert (width <= 2 * np.array([2.25, 5])).all()
        assert (found[:, 0] <= [-1, 0]).all()
        assert (found[:, 1] >= [1.25, 5]).all()
    shrunk = merge_ranges([*honest, as_ranges((0, 0), (0, 0))])
    np.testing.assert_array_equal(shrunk, merge_ranges(honest))
    elsewhere = merge_ranges([*honest, as_ranges((1e17, 1e18), (-1e18, -1e17))])
    assert (np.abs(elsewhere) <= 10).all()


def test_different_honest_clients_keep_their_values() -> None:
    """Clients with other data, some of which reach twice as far as the others."""
    narrow, wide = as_ranges((0, 2)), as_ranges((0, 3))
    np.testing.assert_array_equal(merge_ranges([narrow, narrow, wide]), wide)
    np.testing.assert_array_equal(merge_ranges([wide]), wide)
    np.testing.assert_array_equal(merge_ranges([narrow, wide]), wide)


# ---- hostile servers ----


class Measuring(Pull):
    """A trainer that tells its examples."""

    def __init__(self) -> None:
        super().__init__(1.0)
        inputs, labels = np.zeros((20, 8, 8, 1), np.uint8), np.arange(20) % 10
        self.examples = Examples.of(TASK, Dataset((inputs,), labels), 0.2, "a")


def chunk(content: bytes, **changes: Any) -> pb.ModelFileChunk:
    data = Zstd().compress(content)
    fields = {
        "digest": hashlib.sha256(content).digest(), "size": len(content),
        "compressed": len(data), "inputs": [0], "outputs": [0], **changes,
    }  # fmt: skip
    return pb.ModelFileChunk(file=pb.ModelFile(**fields), data=data)


def repeated(request: Any, context: Any) -> Iterator[Any]:
    yield chunk(b"x" * 100)
    while True:
        yield pb.ModelFileChunk(data=b"more")


FILES: dict[str, Any] = {
    "garbage": [chunk(b"no .tflite at all")],
    "garbage with the mark of one": [chunk(b"\x08\0\0\0TFL3" + bytes(range(256)))],
    "another digest": [chunk(b"x", digest=b"d" * 32)],
    "no digest": [chunk(b"x", digest=b"")],
    "an announced GB": [chunk(b"x", size=2**30)],
    "a compressed GB": [chunk(b"x", compressed=2**30)],
    "nothing announced": [chunk(b"x", size=0)],
    "a bomb": [chunk(bytes(10**7), size=100)],
    "not what was compressed": [chunk(b"x", against_measured=True, digest=b"d" * 32)],
    "no description": [pb.ModelFileChunk(data=b"x")],
    "a resumed transfer": [pb.ModelFileChunk(offset=5, file=chunk(b"x").file, data=b"x")],
    "more than announced": repeated,
    "nothing, again and again": [],
    "a refusal": abort(grpc.StatusCode.FAILED_PRECONDITION, "no"),
    "no such method": abort(grpc.StatusCode.UNIMPLEMENTED, "no"),
    "a lost session": abort(grpc.StatusCode.UNAUTHENTICATED, "no"),
}


@pytest.mark.parametrize("answer", FILES.values(), ids=FILES)
def test_a_hostile_model_file_costs_a_client_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    monkeypatch.setattr(int8_helper, "POLLS", 2)
    end = pb.Finished(digest=SEED, measure_ranges=True, evaluate_int8=True)
    joined = pb.JoinReply(session=1, plan=plan(holdout=0.1), protocol=PROTOCOL)
    with HostileServer(
        Join=joined, NextTask=pb.NextTaskReply(finished=end), FetchModelFile=answer
    ) as server:
        transport = GrpcTransport(server.address, give_up_after=5)
        data = pb.DataSummary(num_examples=10, num_held_out=2)
        held = Session(
            Profile("a", data, "numpy", ("none",), "0"), transport, lambda *_: Measuring(),
            lambda run: ClientState(tmp_path, run),
        ).run()  # fmt: skip
        transport.close()
    assert held.digest == SEED
    assert server.calls["FetchModelFile"] >= 1
    assert server.calls.get("ReportEvaluation", 0) <= 2


# ---- over gRPC ----


class LinearMeasuring(LinearClient):
    """A client of the linear task that tells its examples."""

    @property
    def examples(self) -> Examples:
        data = Dataset((self.inputs,), self.targets)
        return Examples.of(REGRESSION, data, 0.2, self.name).scaled(self.scaling)  # type: ignore[arg-type]


class StandIn:
    """Takes the place of a model file's process: the values are the examples' own."""

    def __init__(self, content: bytes, task: Any, *places: Any, measured: bool = False) -> None:
        assert content.startswith(b"TFL3 to measure" if measured else b"TFL3 int8")
        self._seen: list[Any] = []

    def answer(self, inputs: Any) -> Any:
        self._seen.append(inputs[0])
        return np.zeros((len(inputs[0]), 2), np.float32)

    def ranges(self) -> Any:
        seen = np.concatenate(self._seen)
        return np.stack([seen.min(axis=0), seen.max(axis=0)], axis=1)

    def close(self) -> None:
        pass


def test_clients_measure_and_evaluate_over_grpc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_helper, "ModelProcess", StandIn)
    quantizer = Quantizer()
    run = settings(
        tmp_path, rounds=1, server={"port": 0, "linger": 30}, task=SETTINGS,
        evaluation={"dataset": None}, clients={"minimum": 3, "quorum": 1.0, "patience": 30},
        compression={"uplink": "float32", "downlink": "float32"},
    )  # fmt: skip
    server = Federation(
        tmp_path, run, manifest=LINEAR, task=REGRESSION, evaluator=None, quantizer=quantizer
    ).start()
    clients = [LinearMeasuring(name, seed) for seed, name in enumerate("abc")]
    errors: list[BaseException] = []

    def take_part(client: LinearMeasuring) -> None:
        try:
            transport = GrpcTransport(server.address, give_up_after=30)
            Session(
                client.profile(), transport, lambda *_: client,
                lambda name: ClientState(tmp_path / client.name, name),
            ).run()  # fmt: skip
            transport.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=take_part, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    server.join()
    assert server.finished
    assert not errors
    (ranges,) = quantizer.given
    expected = []
    for client in clients:
        examples = client.examples
        chosen = examples.batch(np.arange(len(examples.training)))[0][0]
        expected.append(np.stack([chosen.min(axis=0), chosen.max(axis=0)], axis=1))
    np.testing.assert_allclose(ranges, merge_ranges(expected), rtol=1e-6)
    scores, count = server.coordinator.model_files.scores(INT8)
    assert count == sum(len(c.examples.held_out) for c in clients)  # type: ignore[arg-type]
    assert scores["mae"] > 0
    server.store.flush()
    control = {e.client: e.message_bytes for e in server.store.ledger.entries() if e.round == 2}
    assert set(control) == set("abc")
    server.close()


@pytest.mark.parametrize("measured", [True, False])
def test_changed_model_files_answer_or_are_refused(measured: bool) -> None:
    """The process that runs a file ends at worst; the client says so and goes on."""
    pytest.importorskip("ai_edge_litert")
    from backports import zstd

    from featherfed.edge_client.errors import ClientError
    from featherfed.tasks.task import image_task

    path = Path(__file__).parent / "support" / "released" / "cnn-int8.tflite.zst"
    content = zstd.decompress(path.read_bytes())
    task = image_task((8, 8, 1), [str(n) for n in range(10)])
    draw = np.random.default_rng(measured)
    images = draw.integers(0, 256, (2, 8, 8, 1)).astype(np.uint8)
    with_all = ModelProcess(content, task, (0,), (0,), measured=measured)
    assert with_all.answer([images]).shape == (2, 10)
    with_all.close()
    refused, said = 0, set[str]()
    for _ in range(8):
        changed = bytearray(content)
        for _ in range(8):
            changed[draw.integers(0, len(changed))] = draw.integers(0, 256)
        changed[draw.integers(8, 400)] ^= 0xFF
        process = None
        try:
            process = ModelProcess(bytes(changed), task, (0,), (0,), measured=measured)
            assert process.answer([images]).shape == (2, 10)
        except ClientError as error:
            refused += 1
            said.add(str(error))
        finally:
            if process is not None:
                process.close()
    assert all("the server's model file" in text for text in said)
    assert refused, "or the changes change nothing"
