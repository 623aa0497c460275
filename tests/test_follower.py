"""Devices that only infer: they follow the releases over gRPC, through SIGKILL and full disks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import Pull
from support.federation import Federation
from support.hostile_server import HostileServer
from support.models import MANIFEST, TASK
from support.processes import Processes, wait_until
from support.releases import FIRST, SECOND, moved, sha

from featherfed.compression.errors import WireError
from featherfed.compression.exchange.filedelta import encode_file
from featherfed.edge_client.errors import BadRelease, ClientError, Rejected, TooLarge
from featherfed.edge_client.follower import (
    MAX_FILE_BYTES,
    Follower,
    ModelFile,
    Swap,
    decode_release,
)
from featherfed.edge_client.grpc_releases import GrpcReleaseSource
from featherfed.proto import federation_pb2 as pb
from featherfed.report.page import totals_text
from featherfed.report.schema import parse_metrics
from featherfed.server.observability import metrics_json as metrics
from featherfed.server.transfers.framing import framed_size

Start = Callable[..., Federation]


# ---- the device ----


class Script:
    """A source that gives prepared answers and keeps the requests."""

    def __init__(self, *answers: tuple[pb.Release, bytes] | None) -> None:
        self.answers = list(answers)
        self.requests: list[pb.FetchReleaseRequest] = []

    def fetch_release(
        self, request: pb.FetchReleaseRequest, limit: int
    ) -> tuple[pb.Release, bytes] | None:
        self.requests.append(request)
        return self.answers.pop(0)


def answer(
    new: bytes, old: bytes = b"", version: int = 1, **changes: Any
) -> tuple[pb.Release, bytes]:
    data = encode_file(new, old)
    release = pb.Release(
        version=version, digest=sha(new), size=len(new), compressed=len(data), delta=bool(old)
    )
    release.MergeFrom(pb.Release(**changes))
    return release, data


@pytest.fixture
def file(tmp_path: Path) -> Iterator[ModelFile]:
    made = ModelFile(tmp_path / "models", "int8")
    yield made
    made.close()


def test_a_follower_gets_the_whole_file_first_and_then_deltas(file: ModelFile) -> None:
    swaps: list[Swap] = []
    script = Script(answer(FIRST), answer(SECOND, FIRST, version=2), None)
    follower = Follower("d", "int8", script, file, swaps.append)
    assert follower.refresh()
    assert file.path.read_bytes() == FIRST
    follower.refresh()
    assert file.path.read_bytes() == SECOND
    assert follower.refresh(7) is None
    assert [request.have_digest for request in script.requests] == [b"", sha(FIRST), sha(SECOND)]
    assert script.requests[2].wait_seconds == 7
    assert [(s.version, s.size) for s in swaps] == [(1, 5000), (2, 5000)]
    assert swaps[1].received == len(encode_file(SECOND, FIRST))
    assert [p.name for p in sorted(file.path.parent.iterdir())] == [".lock", "model_int8.tflite"]


def test_an_edited_file_is_not_taken_for_what_it_was(file: ModelFile) -> None:
    script = Script(answer(FIRST), answer(FIRST))
    follower = Follower("d", "int8", script, file)
    follower.refresh()
    file.path.write_bytes(b"edited")
    follower.refresh()
    assert script.requests[1].have_digest == sha(b"edited")
    assert file.path.read_bytes() == FIRST


def test_a_delta_that_does_not_fit_is_followed_by_the_whole_file(file: ModelFile) -> None:
    file.replace(FIRST)
    script = Script(answer(SECOND, moved(FIRST, 9)), answer(SECOND))
    assert Follower("d", "int8", script, file).refresh()
    assert [request.have_digest for request in script.requests] == [sha(FIRST), b""]
    assert file.path.read_bytes() == SECOND


@pytest.mark.parametrize(
    "changes",
    [{"digest": bytes(32)}, {"size": 5001}, {"size": 4999}, {"size": MAX_FILE_BYTES + 1}],
)
def test_a_whole_file_that_does_not_fit_is_an_error_and_the_old_one_stays(
    file: ModelFile, changes: dict[str, Any]
) -> None:
    file.replace(FIRST)
    script = Script(answer(SECOND, **changes), answer(SECOND, **changes))
    with pytest.raises(BadRelease, match="not what it announced"):
        Follower("d", "int8", script, file).refresh()
    assert file.path.read_bytes() == FIRST
    assert not script.answers, "asked for the whole file once"


@pytest.mark.parametrize(
    ("new", "old", "says"),
    [(bytes(10**8), b"", "1[0-9]{6} are possible"), (bytes(1_200_000), FIRST, "1054826 are")],
    ids=["whole", "delta"],
)
def test_a_release_does_not_become_far_larger_than_it_travelled(
    file: ModelFile, new: bytes, old: bytes, says: str
) -> None:
    release, data = answer(new, old)
    with pytest.raises(WireError, match=rf"{len(data)} bytes that become {len(new)}; {says}"):
        decode_release(release, data, old)
    file.replace(FIRST)
    script = Script(answer(new, old), answer(bytes(10**8)))
    with pytest.raises(BadRelease, match="not what it announced"):
        Follower("d", "int8", script, file).refresh()
    assert file.path.read_bytes() == FIRST


def test_a_release_takes_at_most_half_of_the_room(
    file: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < file.room() <= MAX_FILE_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 0, 9))
    assert file.room() == 4


def test_once_waits_for_a_first_file_and_then_ends(file: ModelFile) -> None:
    pauses: list[float] = []
    script = Script(None, None, answer(FIRST))
    Follower("d", "int8", script, file, pause=pauses.append).run(once=True)
    assert len(pauses) == 2, "a server that answers at once is not asked without end"
    Follower("d", "int8", Script(None), file).run(once=True)


def test_releases_that_come_at_once_are_not_fetched_without_end(file: ModelFile) -> None:
    pauses: list[float] = []
    script = Script(answer(FIRST), answer(SECOND))
    with pytest.raises(IndexError):  # there is no third answer
        Follower("d", "int8", script, file, pause=pauses.append).run()
    assert len(pauses) == 2
    assert all(1 <= seconds <= 2 for seconds in pauses)


def test_a_directory_has_one_follower(file: ModelFile) -> None:
    with pytest.raises(ClientError, match="another process follows in"):
        ModelFile(file.path.parent, "float32")


def test_a_directory_that_cannot_be_used_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ClientError, match=r"cannot keep a model in .*taken: .*--model-dir"):
        ModelFile(tmp_path / "taken", "int8")
    with pytest.raises(ClientError, match=r"'\.\./x' is no kind of file"):
        ModelFile(tmp_path, "../x")


def test_a_full_disk_leaves_the_old_file(file: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.replace(FIRST)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ClientError, match="No space left on device; make room"):
        file.replace(SECOND)
    assert file.path.read_bytes() == FIRST
    assert {p.name for p in file.path.parent.iterdir()} == {".lock", "model_int8.tflite"}


def test_killed_in_mid_swap_50_times_the_file_is_always_a_released_one(tmp_path: Path) -> None:
    script = Path(__file__).parent / "support" / "killed_follower.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "0", "50"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["kills"] == 50
    assert seen["whole"] == 50 - seen["none yet"]
    assert seen["none yet"] <= 5
    assert seen["swapped"] >= 10, "some swaps went through"
    assert seen["left over"] >= 5, "some were cut off"
    assert seen["goes on"] == 1


# ---- over gRPC ----


class Meter:
    """Wraps a stub and adds up what every message of FetchRelease takes in its gRPC stream."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self.up = self.down = self.payload = 0

    def FetchRelease(self, request: Any, timeout: float) -> Iterator[Any]:
        self.up += framed_size(request)
        for chunk in self._stub.FetchRelease(request, timeout=timeout):
            self.down += framed_size(chunk)
            self.payload += len(chunk.data)
            yield chunk


class Following:
    """A follower in a thread of its own, until it has the run's last version."""

    def __init__(self, server: Federation, directory: Path, name: str = "camera") -> None:
        self.swaps: list[Swap] = []
        self.digests: list[bytes] = []
        self._source = GrpcReleaseSource(server.address, 10)
        self.meter = Meter(self._source._stub)
        self._source._stub = self.meter  # type: ignore[assignment]
        self.file = ModelFile(directory, "int8")
        self._follower = Follower(name, "int8", self._source, self.file, self._swapped)
        self._stop = False
        self._last = server.settings.rounds
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _swapped(self, swap: Swap) -> None:
        assert sha(self.file.path.read_bytes()) == swap.digest
        self.swaps.append(swap)

    def _run(self) -> None:
        while not self._stop and not (self.swaps and self.swaps[-1].version == self._last):
            self._follower.refresh(1)

    def close(self) -> None:
        self._stop = True
        self._thread.join(60)
        self._source.close()
        self.file.close()


def test_every_version_reaches_a_follower_and_the_ledger_counts_its_bytes(
    federation: Start, tmp_path: Path
) -> None:
    rounds = 5
    server = federation(rounds=rounds, clients={"minimum": 1}, compression={"uplink": "float32"})
    following = Following(server, tmp_path / "models")

    def wait_for_version(task: pb.Train) -> None:
        wait_until(lambda: task.round == 1 or following.swaps[-1:])
        wait_until(lambda: task.round == 1 or following.swaps[-1].version == task.round - 1)

    server.run_clients(server.client("only", trainer=Pull(0.2, wait_for_version)))
    wait_until(lambda: following.swaps[-1].version == rounds)
    following.close()
    server.join()
    assert server.finished
    assert [swap.version for swap in following.swaps] == [1, 2, 3, 4, 5]
    assert sha(following.file.path.read_bytes()) == sha(server.release("int8")[1])
    received = [swap.received for swap in following.swaps]
    assert all(size < received[0] for size in received[1:]), "deltas"
    entries = [e for e in server.store.ledger.entries() if e.client == "camera"]
    assert {e.kind for e in entries} == {"release"}
    up = [e for e in entries if e.direction == "uplink"]
    down = [e for e in entries if e.direction == "downlink"]
    meter = following.meter
    assert (sum(e.payload_bytes for e in up), sum(e.message_bytes for e in up)) == (0, meter.up)
    assert sum(e.message_bytes for e in down) == meter.down
    assert sum(e.payload_bytes for e in down) == meter.payload == sum(received)
    _check_metrics(server, meter)


def _check_metrics(server: Federation, meter: Meter) -> None:
    found = metrics.collect(server.store, server.settings, TASK, MANIFEST, {"featherfed": "0"})
    assert [one["device"] for one in found["releases"]] == ["camera"]
    traffic = found["releases"][0]
    nothing = {"control_bytes": 0, "retry_bytes": 0}
    assert traffic["uplink"] == {"payload_bytes": 0, "message_bytes": meter.up, **nothing}
    down = {"payload_bytes": meter.payload, "message_bytes": meter.down, **nothing}
    assert traffic["downlink"] == down
    assert {c["client"] for r in found["rounds"] for c in r["clients"]} == {"only"}
    found["final"] = metrics.final(server.store, server.settings, TASK, 0.0, [])
    assert [one["client"] for one in found["final"]["clients"]] == ["only"]
    training = [e for e in server.store.ledger.entries() if e.client == "only"]
    total = found["final"]["totals"]["downlink"]
    assert total["message_bytes"] + total["control_bytes"] == sum(
        e.message_bytes for e in training if e.direction == "downlink"
    )
    text = totals_text(parse_metrics({**found, "num_test_examples": 1}))
    assert f"1 device that only infers took {meter.down:,} bytes down" in text


def test_a_follower_that_came_late_or_lost_its_file_has_the_final_model(
    federation: Start, tmp_path: Path
) -> None:
    server = federation(rounds=2, clients={"minimum": 2})
    following = Following(server, tmp_path / "models")
    held: list[Any] = []

    def lose(task: pb.Train) -> None:
        if task.round == 2:
            wait_until(lambda: following.swaps)
            following.file.path.write_bytes(b"damaged")
            held.append(task)

    clients = [server.client("a", trainer=Pull(1.0, lose)), server.client("b")]
    server.run_clients(*clients)
    wait_until(lambda: following.swaps[-1].version == 2)
    following.close()
    server.join()
    assert held
    assert following.file.path.read_bytes() == server.release("int8")[1]


def test_the_server_stays_for_a_device_that_does_not_have_the_final_model(
    federation: Start,
) -> None:
    server = federation(rounds=2, clients={"minimum": 1})
    source = GrpcReleaseSource(server.address, 10)
    request = pb.FetchReleaseRequest(device="d")

    def ask(task: pb.Train) -> None:
        if task.round == 2:
            source.fetch_release(request, 10**6)

    server.run_clients(server.client("a", trainer=Pull(1.0, ask)))
    time.sleep(0.7)
    assert not server.finished
    found = source.fetch_release(request, 10**6)
    assert found
    assert found[0].version == 2
    server.join()
    assert server.finished
    source.close()


def test_a_server_that_stays_serves_devices_that_come_after_the_run(federation: Start) -> None:
    stay = {"port": 0, "linger": 1, "stay": True}
    server = federation(rounds=1, clients={"minimum": 1}, server=stay)
    server.run_clients(server.client("a"))
    time.sleep(1.5)
    source = GrpcReleaseSource(server.address, 10)
    found = source.fetch_release(pb.FetchReleaseRequest(device="late"), 10**6)
    assert found
    assert found[0].version == 1
    source.close()
    server.close()
    assert server.finished


def test_refusals_reach_the_device(federation: Start) -> None:
    server = federation(rounds=1)
    source = GrpcReleaseSource(server.address, 10)
    request = pb.FetchReleaseRequest(device="../../x", kind="int8")
    with pytest.raises(Rejected, match="1 to 64 letters"):
        source.fetch_release(request, 100)
    request = pb.FetchReleaseRequest(device="d", kind="exe")
    with pytest.raises(Rejected, match="no files of the kind 'exe'"):
        source.fetch_release(request, 100)
    assert server.store.ledger.entries() == [], "calls that were refused are not counted"
    request = pb.FetchReleaseRequest(device="d", wait_seconds=1)
    began = time.monotonic()
    assert source.fetch_release(request, 100) is None, "there is no version 1 yet"
    assert time.monotonic() - began > 0.9
    source.close()


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ((10, 10), "sends more than it announced"),
        ((101, 10), "a release of 101 bytes in 10; at most 100 are possible"),
        ((10, 101), "a release of 10 bytes in 101; at most 100 are possible"),
        ((10, 20), "sends messages without data"),
    ],
)
def test_more_than_was_announced_or_is_possible_is_not_read(
    sizes: tuple[int, int], says: str
) -> None:
    release = pb.Release(size=sizes[0], compressed=sizes[1])
    first = pb.ReleaseChunk(release=release, data=bytes(5))
    rest = [pb.ReleaseChunk(data=bytes(6)), pb.ReleaseChunk(), pb.ReleaseChunk(data=bytes(1))]
    with HostileServer(FetchRelease=[first, *rest]) as server:
        source = GrpcReleaseSource(server.address, 5)
        with pytest.raises(Rejected, match=says) as raised:
            source.fetch_release(pb.FetchReleaseRequest(device="d"), 100)
        assert isinstance(raised.value, TooLarge) == ("possible" in says)
        source.close()


def test_few_bytes_that_are_sent_as_many_are_not_read() -> None:
    release = pb.Release(size=10, compressed=2000)
    with HostileServer(FetchRelease=[pb.ReleaseChunk(release=release)]) as server:
        source = GrpcReleaseSource(server.address, 5)
        with pytest.raises(TooLarge, match="a release of 10 bytes in 2000"):
            source.fetch_release(pb.FetchReleaseRequest(device="d"), 10**6)
        source.close()


def test_the_command_follows_until_it_is_told_to_stop(federation: Start, tmp_path: Path) -> None:
    server = federation(rounds=2, clients={"minimum": 2})
    processes = Processes(tmp_path)
    path = tmp_path / "models" / "model_int8.tflite"
    arguments = ("follow", server.address, "--model-dir", "models", "--name", "camera")

    def gate(task: pb.Train) -> None:
        if task.round == 2:
            wait_until(path.exists)
            processes.start("second", *arguments)
            assert processes.wait("second") == 1
            processes.kill("first")
            path.unlink()
            processes.start("first", *arguments)
            wait_until(path.exists)

    try:
        processes.start("first", *arguments)
        server.run_clients(server.client("a", trainer=Pull(1.0, gate)), server.client("b"))
        newest = server.release("int8")[1]
        wait_until(lambda: path.read_bytes() == newest)
        assert "another process follows in models" in processes.log("second")
        wait_until(lambda: "version 2 is in models/model_int8.tflite" in processes.log("first"))
        processes.running["first"].send_signal(signal.SIGTERM)
        assert processes.wait("first") == 0, processes.log("first")
        assert "stopped; the file in models stays as it is" in processes.log("first")
    finally:
        processes.end()
