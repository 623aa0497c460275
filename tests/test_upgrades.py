"""Files and peers of other versions: runs, clients' states, and what old and new ones say."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import Pull, join_request
from support.coordinator import DirectRun
from support.evaluator import DistanceEvaluator
from support.federation import Federation, settings
from support.models import TASK

from featherfed.api.backup import back_up
from featherfed.cli.check import check_directory
from featherfed.compression.exchange.manifest import Manifest, Role, TensorSpec, Uniform
from featherfed.compression.exchange.noise import MeanNoise
from featherfed.edge_client import session, statefile
from featherfed.edge_client.errors import ClientError, Rejected
from featherfed.edge_client.partial_download import FILE_NAME, PartialDownload
from featherfed.edge_client.state import ClientState, PendingUpdate
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.protocol import PROTOCOL
from featherfed.server.coordinator import admission
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import Refused, ServerError
from featherfed.server.settings.plan import make_plan
from featherfed.server.storage.schema import APPLICATION_ID, VERSION
from featherfed.server.storage.store import Store

Start = Callable[..., Federation]

SAMPLES = Path(__file__).parent / "golden" / "upgrades"
TOO_OLD, OTHER_PAYLOADS = "aab2a95", "cf85573"
TAKEN_OVER = sorted(
    path.name
    for path in SAMPLES.iterdir()
    if path.is_dir() and path.name not in (TOO_OLD, OTHER_PAYLOADS)
)

MANIFEST = Manifest(
    (
        TensorSpec("kernel", (12, 16), initial=Uniform(0.1), prunable=True),
        TensorSpec("bias", (16,)),
        TensorSpec("variance", (16,), Role.NONNEGATIVE),
    )
)
"""And the settings: those of make_sample.py."""
SETTINGS: dict[str, Any] = {
    "output": "run",
    "compression": {"uplink": "topk(0.1) | quantize(4)", "downlink": "quantize(8) | zstd"},
    "clients": {"minimum": 3, "quorum": 1.0, "deadline": 3600, "patience": 30},
}


def sample(name: str, folder: Path) -> Path:
    """Copy a sample to `folder`, its client's state to where a federation's clients have theirs."""
    (folder / "clients").mkdir(parents=True)
    shutil.copy(SAMPLES / name / "run.db", folder)
    shutil.copytree(SAMPLES / name / "c2", folder / "clients" / "c2")
    return folder / "run.db"


# ---- files of earlier versions ----


@pytest.mark.parametrize("name", TAKEN_OVER)
def test_a_run_of_an_earlier_version_goes_on_to_the_same_model(
    federation: Start, tmp_path: Path, name: str
) -> None:
    """Client c2 died with an update that it had not sent; the others come with nothing on disk.

    So version 2 is what it would have been, and 3 is not: two residuals are lost.
    """
    path = sample(name, tmp_path / "run")
    server = federation(manifest=MANIFEST, **SETTINGS)
    trained: list[tuple[int, int]] = []
    sessions = [
        server.client(
            f"c{i}",
            trainer=Pull(i / 3, lambda task, i=i: trained.append((task.round, i))),  # type: ignore[misc]
        )
        for i in range(3)
    ]
    state = server.store.load_state()
    assert (state.round, state.reported) == (2, {"c0", "c1"})
    server.run_clients(*sessions)
    server.join()
    digests = [version.digest.hex() for version in server.store.versions.all()]
    expected = json.loads((SAMPLES / name / "expected.json").read_text("utf-8"))["digests"]
    assert digests[:3] == expected[:3]
    assert sorted(trained) == [(3, 0), (3, 1), (3, 2)], "c2's update was not made again"
    server.close()
    assert check_directory(path.parent)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == VERSION


def test_scores_of_an_earlier_version_are_taken_over(tmp_path: Path) -> None:
    path = sample("format-1", tmp_path / "run")
    with closing(sqlite3.connect(path)) as db:
        loss, accuracy = db.execute(
            "SELECT loss, accuracy FROM versions WHERE version = 1"
        ).fetchone()
        own = dict(db.execute("SELECT client, accuracy FROM updates WHERE round = 1").fetchall())
    for _ in range(2):  # the second time its rows are checked
        with closing(Store(path)) as store:
            assert store.versions.get(0).scores is None
            assert store.versions.get(1).scores == {"loss": loss, "accuracy": accuracy}
            found = {u.client: u.scores for u in store.journal.updates(1)}
            assert found == {client: {"accuracy": value} for client, value in own.items()}
            assert store.clients.all()["c0"].num_held_out == 0


@pytest.mark.parametrize("name", TAKEN_OVER)
def test_the_noise_of_an_earlier_versions_rounds_is_unknown(tmp_path: Path, name: str) -> None:
    path = sample(name, tmp_path / "run")
    with closing(Store(path)) as store:
        assert store.journal.noise(1) is None
        with store.transaction():
            store.journal.add_noise(2, MeanNoise(4.2, 1.0))
    with closing(Store(path)) as store:  # its rows are checked
        assert store.journal.noise(1) is None
        assert store.journal.noise(2) == MeanNoise(4.2, 1.0)


@pytest.mark.parametrize("name", TAKEN_OVER)
def test_a_client_of_an_earlier_version_keeps_what_it_had(tmp_path: Path, name: str) -> None:
    path = sample(name, tmp_path / "run")
    with closing(sqlite3.connect(path)) as db:
        run = db.execute("SELECT name FROM run").fetchone()[0]
    state = ClientState(path.parent / "clients" / "c2", f"{run} {MANIFEST.digest.hex()}")
    held, pending, residual = state.held(), state.pending(), state.residual()
    assert held is not None
    assert pending is not None
    assert residual is not None
    assert (held.version, pending.round, pending.num_examples) == (1, 2, 100)
    assert check_directory(path.parent / "clients" / "c2")
    state.save_held(held)
    assert ClientState(path.parent / "clients" / "c2", f"{run} {MANIFEST.digest.hex()}").held()


def test_an_update_of_format_1_without_a_residual_is_read(tmp_path: Path) -> None:
    """Its bytes are hex digits, and it has a target that nothing needs."""
    figures = {"round": 2, "version": 1, "num_examples": 9, "loss": 0.5, "accuracy": 0.5}
    path, weights = tmp_path / "pending.npz", [np.ones(3, np.float32)]
    statefile.save(path, {"run": "run", **figures, "payload": "00ff"}, {"target": weights})
    figures.pop("accuracy")  # what is not sent any more
    expected = PendingUpdate(**figures, payload=b"\x00\xff", target=None, residual=None)  # type: ignore[arg-type]
    assert ClientState(tmp_path, "run").pending() == expected


def test_a_run_that_is_too_old_is_refused_by_name(tmp_path: Path) -> None:
    path = sample(TOO_OLD, tmp_path / "run")
    before = path.read_bytes()
    with pytest.raises(ServerError, match=r"run\.db was written by .* before 2026-11-23 .*finish"):
        Store(path)
    assert path.read_bytes() == before
    assert not check_directory(path.parent)
    with pytest.raises(ServerError, match="before 2026-11-23"):
        back_up(path.parent, tmp_path / "backup")


def test_an_open_round_whose_updates_no_longer_decode_is_refused_by_name(tmp_path: Path) -> None:
    path = sample(OTHER_PAYLOADS, tmp_path / "run")
    changed = settings(path.parent, **SETTINGS)
    plan = make_plan(changed, TASK, "{}", MANIFEST)
    says = r"run\.db: the update of c0 in round 2 was written by another version .* finish the run"
    with closing(Store(path)) as store, pytest.raises(ServerError, match=says):
        Coordinator(changed, store, plan, MANIFEST, TASK, DistanceEvaluator(), time.time)


def test_files_of_a_newer_version_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    Store(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
        db.execute("UPDATE provenance SET featherfed = '9.1'")
        db.commit()
    says = rf"newer featherfed \(9.1\): it has format {VERSION + 1}, .* knows {VERSION}. Update"
    with pytest.raises(ServerError, match=says):
        Store(path)
    assert not check_directory(tmp_path)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID + 1}")
    with pytest.raises(ServerError, match="is no run of featherfed"):
        Store(path)

    monkey = pytest.MonkeyPatch()
    state = ClientState(tmp_path / "state", "run")
    newer = statefile.FORMAT + 1
    monkey.setattr(statefile, "FORMAT", newer)
    state.save_residual([np.zeros(3, np.float32)])
    monkey.undo()
    with pytest.raises(ClientError, match=rf"residual\.npz was .* newer .*format {newer}"):
        state.residual()
    assert not check_directory(tmp_path / "state")


MIGRATE = """
import os, signal, sys
from pathlib import Path
from featherfed.server.storage import schema
from featherfed.server.storage.store import Store
place = sys.argv[2]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if place == "tables":
    schema.MIGRATIONS = (die,)
elif place == "rows":
    schema.checksums.store_all = die
else:
    schema._note_writer = die
Store(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("place", ["tables", "rows", "end"])
def test_a_migration_that_is_killed_begins_again(tmp_path: Path, place: str) -> None:
    path = sample("cd539e5", tmp_path / "run")
    command = [sys.executable, "-c", MIGRATE, str(path), place]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 0
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
    assert "refusals" in tables
    assert "checksums" not in tables
    for _ in range(2):  # the second time its rows are checked
        with closing(Store(path)) as store:
            assert store.load_state().round == 2


def test_versions_without_numbers_refuse_a_numbered_file(tmp_path: Path) -> None:
    """They run these statements when they open it (featherfed of 2026-11-24 to -27)."""
    Store(tmp_path / "run.db").close()
    with closing(sqlite3.connect(tmp_path / "run.db")) as db:
        assert db.execute("SELECT 1 FROM sqlite_master WHERE name = 'refusals'").fetchall()
        with pytest.raises(sqlite3.OperationalError, match="written by a newer featherfed, update"):
            db.execute(
                "INSERT INTO refused SELECT round, client, reason, COUNT(*), detail, MIN(at), "
                "MAX(at) FROM refusals GROUP BY round, client, reason"
            )


def test_there_is_a_sample_of_every_numbered_version() -> None:
    assert {f"format-{number}" for number in range(1, VERSION + 1)} <= set(TAKEN_OVER)
    assert {f"state-{number}" for number in range(2, statefile.FORMAT + 1)} <= set(TAKEN_OVER)


def test_one_changed_byte_in_an_unfinished_download_costs_only_bytes(tmp_path: Path) -> None:
    request, path = pb.FetchModelRequest(version=2), tmp_path / FILE_NAME
    links = [pb.Link(kind=pb.Link.SNAPSHOT, version=2, codec="float32", size=40)]
    with suppress(ConnectionError), PartialDownload(path, request, 1000) as part:
        part.begin(links, 0)
        part.add(bytes(30))
        raise ConnectionError
    good = path.read_bytes()
    for at in range(good.index(b"\n") + 1):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with PartialDownload(path, request, 1000) as part:
            assert part.begin(links, part.size), "else the client could not go on, ever"


# ---- peers of other versions ----

FROM_THE_FUTURE = bytes([0x9A, 0x3F, 3]) + b"new"
"""Field 1011, a text: what a newer peer adds to a message."""


def test_a_client_of_before_there_were_tasks_is_told_to_update(
    direct_run: Callable[..., DirectRun],
) -> None:
    run, request = direct_run().coordinator, join_request("old")
    assert run.admission.join(request).protocol == PROTOCOL
    for number in (0, 1):
        request.capabilities.protocol = number
        with pytest.raises(Refused, match=rf"protocol {number}, .*update featherfed on the client"):
            run.admission.join(request)
    request = join_request("unable")
    del request.capabilities.methods[:]
    with pytest.raises(Refused, match=r"the run needs .* update featherfed on it"):
        run.admission.join(request)


def test_each_side_refuses_the_other_below_its_oldest_protocol(
    federation: Start, direct_run: Callable[..., DirectRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "OLDEST", PROTOCOL + 1)
    with pytest.raises(Refused, match=r"speaks protocol 3, .*; update featherfed on the client"):
        direct_run("direct").coordinator.admission.join(join_request("old"))
    monkeypatch.undo()
    monkeypatch.setattr(session, "OLDEST", PROTOCOL + 1)
    server = federation(clients={"minimum": 1})
    with pytest.raises(ClientError, match=r"speaks protocol 3, .* update featherfed on the server"):
        server.run_clients(server.client("a"))


def test_a_run_goes_on_with_fields_that_are_unknown_here(federation: Start) -> None:
    server = federation(rounds=2, clients={"minimum": 1})
    transport = server.transport()
    stub = transport._stub
    for name in ("Join", "NextTask", "FetchModel"):
        call = getattr(stub, name)

        def both(request: Any, call: Any = call, **options: Any) -> Any:
            reply = call(type(request).FromString(from_the_future(request)), **options)
            if hasattr(reply, "SerializeToString"):
                return type(reply).FromString(from_the_future(reply))
            return (type(chunk).FromString(from_the_future(chunk)) for chunk in reply)

        setattr(stub, name, both)
    (held,) = server.run_clients(server.client("a", transport=transport))
    assert held.digest == server.store.versions.newest().digest


def from_the_future(message: Any) -> bytes:
    return bytes(message.SerializeToString()) + FROM_THE_FUTURE


def changed_reply(server: Federation, call: str, change: Callable[[Any], Any]) -> Any:
    """Run a client for which the replies of one call are changed."""
    transport = server.transport()
    original = getattr(transport, call)
    setattr(transport, call, lambda *args: change(original(*args)))
    return server.run_clients(server.client("a", transport=transport))


def with_role(reply: pb.JoinReply) -> pb.JoinReply:
    reply.plan.manifest[0].role = "quaternion"
    return reply


def with_initial(reply: pb.JoinReply) -> pb.JoinReply:
    reply.plan.manifest[0].ClearField("uniform_limit")
    return reply


def with_kind(found: Any) -> Any:
    found[0][0].kind = 9
    return found


def with_codec(reply: pb.NextTaskReply) -> pb.NextTaskReply:
    if reply.HasField("train"):
        reply.train.codec = "sketch(0.1, 0.2, entangled)"
    return reply


@pytest.mark.parametrize(
    ("call", "change", "says"),
    [
        ("next_task", lambda _: pb.NextTaskReply.FromString(FROM_THE_FUTURE), "kind of task"),
        ("next_task", with_codec, "wants a codec"),
        ("fetch_model", with_kind, "link of kind 9"),
        ("submit_update", lambda _: pb.SubmitReply(outcome=9), "round 1: the server's answer 9"),
        ("join", with_role, "gives 'kernel' the role 'quaternion'"),
        ("join", with_initial, "gives 'kernel' an initial value of a kind"),
    ],
)
def test_what_only_a_newer_server_sends_is_named(
    federation: Start, call: str, change: Callable[[Any], Any], says: str
) -> None:
    server = federation(rounds=1, clients={"minimum": 1})
    with pytest.raises(ClientError, match=f"{says}.*unknown to this version: update featherfed"):
        changed_reply(server, call, change)


def test_an_unknown_reason_is_told_in_the_servers_words(federation: Start) -> None:
    refusal = pb.SubmitReply(outcome=pb.REFUSED, reason=99, detail="it rains")  # type: ignore[arg-type]
    server = federation(rounds=1, clients={"minimum": 1})
    with pytest.raises(Rejected, match="update refused: it rains"):
        changed_reply(server, "submit_update", lambda _: refusal)


def test_a_call_that_an_older_server_does_not_know_says_who_is_old(federation: Start) -> None:
    server = federation(rounds=1, clients={"minimum": 1})
    transport = server.transport()
    transport._stub.Join = transport._channel.unary_unary(
        "/featherfed.v1.Federation/JoinTwice",
        request_serializer=pb.JoinRequest.SerializeToString,
        response_deserializer=pb.JoinReply.FromString,
    )
    with pytest.raises(Rejected, match="older than this client: update featherfed on it"):
        server.run_clients(server.client("a", transport=transport))
