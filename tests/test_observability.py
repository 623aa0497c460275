"""What an operator sees: log lines that nobody can forge, refusals by reason, Prometheus."""

from __future__ import annotations

import io
import json
import logging
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.clients import Pull, profile
from support.federation import Federation
from support.models import MANIFEST, TASK
from support.processes import run

from featherfed.cli.log import TextFormatter, _json, cut_texts
from featherfed.edge_client.errors import Rejected, SessionLost
from featherfed.edge_client.session import Session
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.peer_text import printable
from featherfed.report.render import render
from featherfed.server.observability import metrics_json as metrics
from featherfed.server.observability.status import _counts
from featherfed.server.rounds.transitions import Phase, RunState
from featherfed.server.rpc.calls import STATUS_OF_REASON
from featherfed.server.storage import refusals
from featherfed.server.storage.store import Store

SERVICE = "/featherfed.v1.Federation"
Start = Callable[..., Federation]
DOCS = (Path(__file__).parent.parent / "docs" / "observability.md").read_text("utf-8")
HOSTILE = "x\n12:00:00 INFO round 9: closed\r\x1b[2J\u202e"


def join_request(name: str) -> pb.JoinRequest:
    return Session(profile(name), None, None, None)._join_request()  # type: ignore[arg-type]


def lines(formatter: logging.Formatter, log: Callable[[logging.Logger], None]) -> list[str]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    log(logger)
    return stream.getvalue().splitlines()


def fail(logger: logging.Logger) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("it failed: %s", HOSTILE)


def test_a_peers_text_forges_no_line() -> None:
    (line,) = lines(TextFormatter(), lambda log: log.warning("refused: %s", HOSTILE))
    assert line.isprintable()
    assert r"x\n12:00:00 INFO round 9: closed\r\x1b[2J\u202e" in line
    first, *rest = lines(TextFormatter(), fail)
    assert first.isprintable()
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


NASTY = (
    HOSTILE,
    "kitchen\u202egnp.exe",
    "\x1b]0;title\x07\x1b[31mred",
    "<script>alert(1)</script>|`*_[x](http://x)",
    'a" b="c}\n# HELP x',
    "\u2028\u2066\U000e0001\x00\x7f\x9b",
    "../../etc/passwd",
    "x" * 200_000,
)
"""Texts that a peer may send wherever a message has one."""


def nasty_calls(server: Federation, text: str) -> None:
    """Send a text in every field of every message that takes one."""
    stub = server.transport()._stub
    names, stages = join_request(text), join_request("stages")
    stages.capabilities.stages[:], stages.capabilities.methods[:] = [text], [text]
    runtime, version, classes = (join_request(n) for n in ("runtime", "version", "classes"))
    runtime.capabilities.runtime = text
    version.capabilities.featherfed = text
    classes.data.class_names[:] = [text] * 2 if len(text) < 1000 else [text]
    calls: list[Callable[[], object]] = [
        *(lambda r=r: stub.Join(r, timeout=20) for r in (names, stages, runtime, version, classes)),
        lambda: list(stub.FetchRelease(pb.FetchReleaseRequest(device=text), timeout=20)),
        lambda: list(stub.FetchRelease(pb.FetchReleaseRequest(device="d", kind=text), timeout=20)),
    ]
    for call in calls:
        try:
            call()
        except grpc.RpcError as error:
            details = cast(Any, error).details()
            assert details.isprintable(), details
            assert len(details) < 5000


def test_no_text_of_a_peer_reaches_an_operator_as_it_came(
    federation: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not by the log, metrics.json, the report, Prometheus or the status."""
    with caplog.at_level(logging.DEBUG):
        server, url = watched(federation, caplog)
        for text in NASTY:
            nasty_calls(server, text)
        server.run_clients(server.client("a"), server.client("b"), server.client("c"))
    handler = logging.StreamHandler()
    handler.addFilter(cut_texts)
    ours = [record for record in caplog.records if record.name.startswith("featherfed")]
    for record in filter(handler.filter, ours):
        for formatter in (TextFormatter(), _json()):
            line = formatter.format(record)
            assert line.isprintable(), line
            assert len(line) < 20_000
    found = metrics.collect(server.store, server.settings, TASK, MANIFEST, {})
    assert sum(len(one["refused"]) for one in found["rounds"]) > 3
    found |= {"featherfed": "0", "num_test_examples": 1, "final": None}
    (tmp_path / "metrics.json").write_text(json.dumps(found), "utf-8")
    page = render(tmp_path).read_text("utf-8")
    scraped = urllib.request.urlopen(url, timeout=5).read().decode()
    state = str(server.coordinator.status())
    for shown in (page, scraped, state, *strings(found)):
        assert all(char.isprintable() or char == "\n" for char in shown)
        assert "x" * 5000 not in shown
    assert "<script>" not in page
    assert all(text.isprintable() and len(text) < 5000 for text in strings(found))


def strings(value: object) -> list[str]:
    """Return all texts in a value of JSON."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return [text for one in value for text in strings(one)]
    return [value] if isinstance(value, str) else []


def test_a_log_lines_texts_are_cut() -> None:
    record = logging.makeLogRecord({"msg": "%s", "args": ("x" * 3_000_000,), "detail": "y" * 9999})
    assert cut_texts(record)
    (line,) = TextFormatter().format(record).splitlines()
    assert len(line) < 4100
    assert line.endswith("... (2,996,000 characters more)")
    assert len(record.__dict__["detail"]) < 4100
    wrong = logging.makeLogRecord({"msg": "%s %s", "args": ("x",)})
    assert cut_texts(wrong), "logging itself reports it"


def test_a_peers_text_is_escaped_and_cut() -> None:
    assert printable("plain: ä 中 ✓ \\") == "plain: ä 中 ✓ \\"
    assert printable(HOSTILE) == r"x\n12:00:00 INFO round 9: closed\r\x1b[2J\u202e"
    assert printable("\ud800\0\u2028\U000e0001") == r"\ud800\x00\u2028\U000e0001"
    assert printable("x" * 3_000_000, 5) == "xxxxx... (2,999,995 characters more)"
    assert printable("x" * 5, 5) == "xxxxx"


def test_json_lines_have_the_fields() -> None:
    (line,) = lines(
        _json(), lambda log: log.warning("refused %s", HOSTILE, extra={"event": "e", "round": 3})
    )
    data = json.loads(line)
    assert (data["level"], data["logger"]) == ("WARNING", "test")
    assert (data["event"], data["round"]) == ("e", 3)
    assert HOSTILE in data["message"]
    assert data["timestamp"].endswith("+00:00")


def test_a_command_logs_json_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATHERFED_LOG_FORMAT", "yaml")
    done = run("join", "127.0.0.1:9", "--data", "x", cwd=tmp_path)
    assert "Invalid value for '--log-format'" in done.stderr
    monkeypatch.delenv("FEATHERFED_LOG_FORMAT")
    model = str(tmp_path)
    options = ["--once", "--give-up-after", "0.5", "--log-format", "json"]
    done = run("follow", "127.0.0.1:9", "--model-dir", model, *options, cwd=tmp_path)
    first, last = done.stderr.splitlines()
    assert json.loads(first)["message"].startswith("no answer, trying again")
    assert last.startswith("featherfed: 127.0.0.1:9")


def test_the_life_of_a_run_is_logged(federation: Start, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        server = federation(rounds=2)
        transport = server.transport()
        with pytest.raises(Rejected):
            transport.join(join_request(HOSTILE))
        server.run_clients(*[server.client(f"c{i}") for i in range(3)])
        server.join()
    events = [r.__dict__["event"] for r in caplog.records if "event" in r.__dict__]
    once = ["run_opened", "round_opened", "round_closed", "version_made", "run_finished"]
    assert [e for e in events if e in once] == [
        "run_opened",
        *2 * ["round_opened", "round_closed", "version_made"],
        "run_finished",
    ]
    assert events.count("client_joined") == 3
    assert events.count("update_accepted") == 6
    assert events[-1] == "shutdown"
    (refused,) = [r for r in caplog.records if r.__dict__.get("event") == "refused"]
    fields = ("run", "round", "client", "reason")
    run_name = server.coordinator.plan.run
    assert [refused.__dict__[f] for f in fields] == [run_name, 1, "(stranger)", "BAD_NAME"]
    for event in set(events):
        assert f"`{event}`" in DOCS, "docs/observability.md lists every event"


def test_the_status_names_no_client_and_tells_no_number_of_examples(federation: Start) -> None:
    server = federation(clients={"minimum": 3, "quorum": 1.0, "deadline": 30})
    for name, count in (("zoe", 70_001), ("adam", 70_002)):
        server.coordinator.admission.join(Session(
            profile(name, count), None, None, None,  # type: ignore[arg-type]
        )._join_request())  # fmt: skip
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(f"{SERVICE}/GetStatus")
        told = call(pb.StatusRequest().SerializeToString())
    assert pb.StatusReply.FromString(told).client_counts == pb.ClientCounts(present=2)
    for secret in (b"zoe", b"adam", pb.DataSummary(num_examples=70_001).SerializeToString()[1:]):
        assert secret not in told
    assert all(f.type == f.TYPE_UINT32 for f in pb.ClientCounts.DESCRIPTOR.fields)


def test_the_status_is_as_large_for_ten_thousand_clients() -> None:
    names = [f"c{i}" for i in range(10_000)]
    state = RunState(
        Phase.TRAINING, 2, cohort=tuple(names[:5000]), reported=frozenset(names[:3000]),
        lost=frozenset(names[4900:5100]), late=frozenset(names[5050:5300]),
    )  # fmt: skip
    counts = _counts(state, len(names))
    assert counts == pb.ClientCounts(present=4700, training=1900, reported=3000, lost=200, late=200)
    assert counts.ByteSize() < 20


def test_a_million_refusals_are_one_row(federation: Start) -> None:
    server = federation(rounds=1)
    transport = server.transport()
    for _ in range(50):
        with pytest.raises(SessionLost):
            transport.next_task(7)
    transport.join(join_request("bad"))
    wrong = join_request("bad")
    wrong.data.inputs[0].shape[:] = (9, 9, 9)
    for _ in range(3):
        with pytest.raises(Rejected):
            transport.join(wrong)
    server.run_clients(*[server.client(n) for n in ("a", "b", "bad")])
    (round_,) = metrics.collect(server.store, server.settings, TASK, MANIFEST, {})["rounds"]
    found = {(r["client"], r["reason"]): r["count"] for r in round_["refused"]}
    assert found == {("(stranger)", "UNKNOWN_SESSION"): 50, ("bad", "DATA_MISMATCH"): 3}


def test_garbage_in_any_kind_of_call_is_counted_as_a_refusal(federation: Start) -> None:
    server, junk = federation(rounds=1), b"\xff" * 9
    with grpc.insecure_channel(server.address) as channel:
        calls = [
            lambda: channel.unary_unary(f"{SERVICE}/Join")(junk, timeout=5),
            lambda: next(channel.unary_stream(f"{SERVICE}/FetchModel")(junk, timeout=5)),
            lambda: channel.stream_unary(f"{SERVICE}/SubmitUpdate")(iter([junk]), timeout=5),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as raised:
                call()
            assert cast(Any, raised.value).code() is grpc.StatusCode.INVALID_ARGUMENT
    (row,) = server.store.refusals.all()
    assert (row.client, row.reason, row.count) == ("(stranger)", "MALFORMED", 3)


def test_the_rows_of_refusals_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MAX_ROWS", 5)
    for again in range(2):
        store = Store(tmp_path / "run.db")
        for number in range(20):
            first = store.refusals.add(1, f"c{number}", "LATE", "x", float(number))
            assert first == (number <= 5 and not again)
        store.close()
    store = Store(tmp_path / "run.db")
    counts = {row.client: row.count for row in store.refusals.all()}
    assert counts == {**{f"c{n}": 2 for n in range(5)}, "(others)": 30}
    store.close()


def test_bytes_sent_again_are_told_by_round(federation: Start) -> None:
    server = federation(rounds=1, clients={"minimum": 1})
    transport = server.transport()
    submit = transport.submit_update

    def submit_twice(header: pb.UpdateHeader, payload: bytes) -> pb.SubmitReply:
        submit(header, payload)
        return submit(header, payload)

    transport.submit_update = submit_twice  # type: ignore[method-assign]
    server.run_clients(server.client("a", transport=transport))
    (round_,) = metrics.collect(server.store, server.settings, TASK, MANIFEST, {})["rounds"]
    (client,) = round_["clients"]
    assert round_["wasted_bytes"] == client["uplink"]["retry_bytes"] > 0


# ---- Prometheus ----


def scrape(url: str) -> dict[str, float]:
    """Return samples by name and labels; the parser refuses what Prometheus would."""
    with urllib.request.urlopen(url, timeout=5) as reply:
        text = reply.read().decode()
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}"] = sample.value
    return samples


def watched(federation: Start, caplog: pytest.LogCaptureFixture) -> tuple[Federation, str]:
    with caplog.at_level(logging.INFO):
        server = federation(
            rounds=2, server={"port": 0, "linger": 0, "stay": True, "metrics": "127.0.0.1:0"}
        )
    urls = [r.__dict__["url"] for r in caplog.records if r.__dict__.get("event") == "metrics"]
    return server, urls[-1]


def test_prometheus_sees_the_run(federation: Start, caplog: pytest.LogCaptureFixture) -> None:
    server, url = watched(federation, caplog)
    fresh = scrape(url)
    assert fresh["featherfed_phase{phase=gathering}"] == 1
    with pytest.raises(Rejected):
        server.transport().join(join_request("../x"))
    seen: list[dict[str, float]] = []
    trainer = Pull(1.0, lambda task: seen.append(scrape(url)))
    clients = [server.client("a", trainer=trainer), server.client("b"), server.client("c")]
    server.run_clients(*clients)
    during, after = seen[0], scrape(url)
    assert during["featherfed_phase{phase=training}"] == 1
    assert during["featherfed_clients{state=training}"] >= 1
    assert after["featherfed_model_version{}"] == after["featherfed_rounds{}"] == 2
    assert after["featherfed_updates_total{outcome=accepted}"] == 6
    assert after["featherfed_refusals_total{reason=BAD_NAME}"] == 1
    assert after["featherfed_upload_acknowledgement_seconds_count{}"] == 6
    assert after["featherfed_aggregation_seconds_count{}"] == 2
    assert after["featherfed_storage_failing{}"] == 0
    assert 0 < after["featherfed_score{metric=accuracy}"] < 1
    entries = [
        e for e in server.store.ledger.entries() if (e.direction, e.kind) == ("uplink", "transfer")
    ]
    name = "{direction=uplink,kind=transfer}"
    assert after["featherfed_message_bytes_total" + name] == sum(e.message_bytes for e in entries)
    assert after["featherfed_payload_bytes_total" + name] == sum(e.payload_bytes for e in entries)
    for sample in after:
        family = re.sub(r"(_bucket|_count|_sum|_created)?\{.*", "", sample)
        assert f"`{family}`" in DOCS, "docs/observability.md lists every metric"
    server.close()
    caplog.clear()
    _, url = watched(federation, caplog)
    again = scrape(url)
    for counter in ("updates_total{outcome=accepted}", "refusals_total{reason=BAD_NAME}"):
        assert again[f"featherfed_{counter}"] == after[f"featherfed_{counter}"], "it was restarted"


def test_docs_list_every_reason_and_its_status() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([A-Z_]+) \| \w.* \|$", DOCS, re.MULTILINE)
    expected = [(name, STATUS_OF_REASON[value].name) for name, value in pb.Reason.items()]
    assert rows == expected
