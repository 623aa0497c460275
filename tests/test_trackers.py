"""Trackers of experiments: what each is told of a run, and that none of them can harm it."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import logging
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.federation import Federation
from support.models import MANIFEST, TASK
from support.small_runs import SHAPE, SmallRun, windows

import featherfed
from featherfed.api import tracker_choice as choosing
from featherfed.api.tracker_choice import check_trackers, collector_tracker, make_trackers
from featherfed.api.trackers.following import Trackers
from featherfed.api.trackers.hook import RoundFacts, Setting, score_values
from featherfed.server.errors import ServerError
from featherfed.server.settings.settings import TRACKERS, settings_of

FACTS = RoundFacts(
    version=1, began=100.0, opened=101.5, closed=105.25, made=106.0, up=900, down=400, wasted=30,
    clients=3, scored=1, scores={"loss": 0.5, "accuracy": 0.75},
)  # fmt: skip
SETTINGS: dict[str, Setting] = {"model": "cnn", "rounds": 2, "uplink": "a | b\nc", "x": None}


class Recording:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def start(self, run: str, settings: Mapping[str, Setting]) -> None:
        self.told.append(("start", run, dict(settings)))

    def on_round(self, facts: RoundFacts) -> None:
        self.told.append(("round", facts))

    def on_scores(self, version: int, scores: Mapping[str, float]) -> None:
        self.told.append(("scores", version, dict(scores)))

    def end(self, finished: bool) -> None:
        self.told.append(("end", finished))


def following(server: Federation, *chosen: Any) -> Trackers:
    return Trackers(chosen, server.store, server.settings, TASK, MANIFEST)


def follow(tracker: Any) -> None:
    """Tell a tracker of one run of two rounds, as the server does."""
    tracker.start("digits-1", SETTINGS)
    tracker.on_round(FACTS)
    tracker.on_scores(1, {"loss": 0.5, "accuracy": 0.75, "auc": float("nan")})
    tracker.on_round(RoundFacts(2, 106.0, 107.0, 110.0, 111.0, 950, 450, 0, 2, "not finite"))
    tracker.end(True)


# ---- what all are told ----


def test_each_version_is_told_once_with_its_bytes_and_scores(
    federation: Callable[..., Federation],
) -> None:
    server = federation(rounds=3, clients={"minimum": 2, "patience": 1})
    kept = Recording()
    told = following(server, kept)
    told.update()
    server.run_clients(server.client("a"), server.client("b"))
    server.join()
    told.update()  # once for all three rounds, as when the server is behind
    told.update()
    told.close(finished=True)
    kinds = [entry[0] for entry in kept.told]
    assert kinds == ["start", "round", "round", "round", "scores", "scores", "scores", "end"]
    _, run, values = kept.told[0]
    assert run == server.coordinator.plan.run
    assert values["rounds"] == 3
    assert values["uplink"] == server.settings.compression.uplink
    rounds: list[RoundFacts] = [entry[1] for entry in kept.told if entry[0] == "round"]
    assert [facts.version for facts in rounds] == [1, 2, 3]
    for facts in rounds:
        entries = server.store.ledger.of_round(facts.version)
        assert facts.up + facts.down == sum(entry.message_bytes for entry in entries) > 0
        assert facts.clients == 2
        assert facts.began <= facts.opened <= facts.closed <= facts.made
        assert (facts.discarded, facts.wasted) == (None, 0)
    stored = {v.version: v.scores for v in server.store.versions.all() if v.version}
    assert {entry[1]: entry[2] for entry in kept.told if entry[0] == "scores"} == stored
    assert kept.told[-1] == ("end", True)


def test_after_a_restart_only_new_versions_are_told(
    federation: Callable[..., Federation],
) -> None:
    server = federation(rounds=2, clients={"minimum": 2, "patience": 1})
    server.run_clients(server.client("a"), server.client("b"))
    server.join()
    kept = Recording()
    told = following(server, kept)
    told.update()
    told.close(finished=False)
    assert [entry[0] for entry in kept.told] == ["start", "end"]


def test_a_tracker_that_fails_is_warned_of_once_and_left_alone(
    federation: Callable[..., Federation], caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(Recording):
        def on_round(self, facts: RoundFacts) -> None:
            super().on_round(facts)
            raise RuntimeError("no space on the tracker")

    server = federation(rounds=3, clients={"minimum": 2, "patience": 1})
    broken, kept = Fails(), Recording()
    told = following(server, broken, kept)
    server.run_clients(server.client("a"), server.client("b"))
    server.join()
    told.update()
    told.close(finished=True)
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert warnings == [
        "Fails fails, and is told nothing more of this run: RuntimeError: no space on the tracker"
    ]
    assert [entry[0] for entry in broken.told] == ["start", "round"]
    assert kept.told[-1] == ("end", True)


def test_a_tracker_that_hangs_delays_nothing(
    federation: Callable[..., Federation],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("featherfed.api.trackers.following.CLOSE_SECONDS", 0.2)
    free = threading.Event()

    class Hangs(Recording):
        def start(self, run: str, settings: Mapping[str, Setting]) -> None:
            free.wait(60)

    server = federation(rounds=1, clients={"minimum": 2, "patience": 1})
    began = time.monotonic()
    told = following(server, Hangs())
    told.update()
    told.close(finished=False)
    assert time.monotonic() - began < 2
    free.set()
    assert "it is not waited for" in caplog.text


def test_a_simulation_tells_its_trackers(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow_model_optimization")
    kept = Recording()
    rng = np.random.default_rng(0)
    data = [(rng.integers(0, 256, (12, 8, 8, 1), np.uint8), np.arange(12) % 2) for _ in range(3)]
    history = featherfed.simulate(
        "mlp", clients=data[:2], test=data[2], rounds=2, epochs=1, trackers=[kept], progress=False
    )
    assert [entry[0] for entry in kept.told if entry[0] == "round"] == ["round"] * 2
    scores = {entry[1]: entry[2] for entry in kept.told if entry[0] == "scores"}
    assert set(scores) == {1, 2}
    assert history.metrics["rounds"][1]["scores"]["accuracy"] == scores[2]["accuracy"]
    assert kept.told[0][2]["model"] == "mlp"
    assert kept.told[-1] == ("end", True)
    with pytest.raises(ServerError, match="otel"):
        featherfed.simulate("mlp", clients=data[:2], test=data[2], trackers=["otel"])
    with pytest.raises(ServerError, match="no tracker 'file'"):
        featherfed.simulate("mlp", clients=data[:2], test=data[2], trackers=["file"])


# ---- settings ----


def test_the_run_file_names_trackers() -> None:
    chosen = ["tensorboard:runs/tb", "mlflow:file:mlruns", "otel:http://localhost:4318", "wandb"]
    assert settings_of({"server": {"trackers": chosen}}).server.trackers == chosen
    assert settings_of({}).server.trackers == []
    assert set(choosing.KINDS) == set(TRACKERS)
    for wrong in ("prometheus", "tensorboard:", ""):
        with pytest.raises(ServerError, match=r"trackers.*tensorboard, mlflow, wandb, otel"):
            settings_of({"server": {"trackers": [wrong]}})


@pytest.mark.parametrize("kind", TRACKERS)
def test_a_missing_package_is_told_with_its_extra(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match=rf"pip install 'featherfed\[{kind}\]'"):
        check_trackers([f"{kind}:x"])


def test_the_environment_can_name_a_collector(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    for name in choosing.COLLECTOR:
        monkeypatch.delenv(name, raising=False)
    assert collector_tracker([]) == []
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert collector_tracker([]) == ["otel"]
    assert collector_tracker(["otel:http://other:4318"]) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert collector_tracker([]) == [], "a variable of the machine stops no run"
    assert "featherfed[otel]" in caplog.text


def test_infinite_scores_are_left_out() -> None:
    values = score_values({"loss": float("inf"), "accuracy": 0.5})
    assert values == {"score/accuracy": 0.5}


# ---- adapters ----


def test_tensorboard_gets_scalars_and_settings(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    pytest.importorskip("tensorflow")
    from featherfed.models.importing import importing_tensorflow

    with importing_tensorflow():
        import tensorflow as tf
        from tensorflow.core.util import event_pb2
    (tracker,) = make_trackers([f"tensorboard:{tmp_path}"])
    follow(tracker)
    (file,) = (tmp_path / "digits-1").iterdir()
    scalars: dict[str, dict[int, float]] = {}
    texts = []
    for record in tf.data.TFRecordDataset(str(file)):
        event = event_pb2.Event.FromString(record.numpy())
        for value in event.summary.value:
            if value.HasField("simple_value"):
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
            else:
                texts.append(value.tensor.string_val[0].decode())
    assert scalars == {
        "seconds": {1: 3.75, 2: 3.0},
        "bytes/up": {1: 900.0, 2: 950.0},
        "bytes/down": {1: 400.0, 2: 450.0},
        "bytes/wasted": {1: 30.0, 2: 0.0},
        "clients": {1: 3.0, 2: 2.0},
        "loss": {1: 0.5},
        "score/accuracy": {1: 0.75},
    }
    assert "| uplink | a \\| b c |" in texts[0]


@pytest.mark.filterwarnings("ignore")  # of MLflow's own packages
def test_mlflow_gets_one_run_that_goes_on_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    for _ in range(2):
        (tracker,) = make_trackers([f"mlflow:{uri}"])
        follow(tracker)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("featherfed")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "digits-1"
    assert run.info.status == "FINISHED"
    assert run.data.params["model"] == "cnn"
    assert run.data.params["rounds"] == "2"
    assert run.data.metrics["score/accuracy"] == 0.75
    steps = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "bytes/up")}
    assert steps == {1: 900.0, 2: 950.0}


def test_wandb_is_called_as_its_documentation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in: Weights & Biases itself is not among the packages of the tests."""
    calls: list[tuple[str, Any]] = []

    class Run:
        def define_metric(self, name: str, step_metric: str) -> None:
            calls.append(("define_metric", (name, step_metric)))

        def log(self, data: dict[str, Any]) -> None:
            calls.append(("log", data))

        def finish(self, exit_code: int) -> None:
            calls.append(("finish", exit_code))

    def init(**options: Any) -> Run:
        calls.append(("init", options))
        return Run()

    module = types.ModuleType("wandb")
    module.__spec__ = importlib.util.spec_from_loader("wandb", None)
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delitem(sys.modules, "featherfed.api.trackers.wandb", raising=False)
    (tracker,) = make_trackers(["wandb:thin-links"])
    follow(tracker)
    sys.modules.pop("featherfed.api.trackers.wandb")
    name, options = calls[0]
    assert name == "init"
    assert options["project"] == "thin-links"
    assert (options["id"], options["resume"]) == ("digits-1", "allow")
    assert options["config"] == SETTINGS
    assert calls[1] == ("define_metric", ("*", "version"))
    assert calls[2][1]["version"] == 1
    assert calls[2][1]["bytes/up"] == 900.0
    assert calls[3] == ("log", {"version": 1, "loss": 0.5, "score/accuracy": 0.75})
    assert calls[-1] == ("finish", 0)


def test_opentelemetry_gets_a_span_of_each_round_with_children() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import StatusCode

    from featherfed.api.trackers.otel import OtelTracker

    exporter = InMemorySpanExporter()
    follow(OtelTracker("", SimpleSpanProcessor(exporter)))
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["open", "train", "aggregate", "round"] * 2
    first = spans[3]
    assert (first.start_time, first.end_time) == (100_000_000_000, 106_000_000_000)
    times = [(span.start_time, span.end_time) for span in spans[:3]]
    assert times == [
        (100_000_000_000, 101_500_000_000),
        (101_500_000_000, 105_250_000_000),
        (105_250_000_000, 106_000_000_000),
    ]
    assert all(span.parent == first.context for span in spans[:3])
    assert dict(first.attributes or {}) == {
        "featherfed.run": "digits-1",
        "featherfed.round": 1,
        "featherfed.clients": 3,
        "featherfed.bytes.up": 900,
        "featherfed.bytes.down": 400,
        "featherfed.bytes.wasted": 30,
        "featherfed.score.loss": 0.5,
        "featherfed.score.accuracy": 0.75,
        "featherfed.scored_version": 1,
    }
    assert first.resource.attributes["service.name"] == "featherfed"
    assert spans[7].status.status_code is StatusCode.ERROR
    assert spans[7].status.description == "not finite"


def test_a_collector_that_is_away_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    from featherfed.api.trackers.otel import _WarnsOnce

    class Away(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.FAILURE

    exporter = _WarnsOnce(Away())
    assert [exporter.export([]) for _ in range(3)] == [SpanExportResult.FAILURE] * 3
    exporter.shutdown()
    assert caplog.text.count("cannot be sent") == 1


def test_traces_arrive_at_a_collector() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    bodies: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            bodies.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        (tracker,) = make_trackers([f"otel:http://127.0.0.1:{server.server_port}"])
        follow(tracker)
        server.shutdown()
        thread.join()
    assert {path for path, _ in bodies} == {"/v1/traces"}
    names = [
        span.name
        for _, body in bodies
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert names == ["open", "train", "aggregate", "round"] * 2


@pytest.mark.slow  # starts TensorFlow
def test_a_served_run_writes_for_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    pytest.importorskip("tensorflow_model_optimization")
    from featherfed.models.importing import importing_tensorflow

    with importing_tensorflow():
        import tf_keras
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [layers.InputLayer(SHAPE), layers.Flatten(), layers.Dense(2, activation="softmax")]
    )
    run = SmallRun(tmp_path, model, server={"trackers": [f"tensorboard:{tmp_path / 'tb'}"]})
    try:
        run.serve()
        run.join("one", windows(40, 0), "--runtime", "litert")
        run.finish("one")
    finally:
        run.processes.end()
    (file,) = tmp_path.glob("tb/small-*/events*")
    content = file.read_bytes()
    for tag in (b"bytes/up", b"score/accuracy", b"seconds"):
        assert content.count(tag) >= 2, tag
    assert "fails" not in run.processes.log("server")
