"""Devices that only infer: deltas between files, releases, following over gRPC, SIGKILL."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import MANIFEST, Federation, Pull
from hypothesis import given
from hypothesis import strategies as st
from processes import Processes, wait_until

from featherfed.compression.errors import WireError
from featherfed.compression.filedelta import decode_file, encode_file
from featherfed.compression.stages.zstd import Zstd
from featherfed.edge_client.errors import BadRelease, ClientError, Rejected
from featherfed.edge_client.follower import MAX_FILE_BYTES, Follower, ModelFile, Swap
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.report.page import totals_text
from featherfed.report.schema import parse_metrics
from featherfed.server.errors import Refused
from featherfed.server.observability import metrics_json as metrics
from featherfed.server.transfers.framing import framed_size
from featherfed.server.transfers.releases import KEPT, Offer, Releases

Start = Callable[..., Federation]


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def moved(file: bytes, seed: int) -> bytes:
    """Return a file a few steps from another one."""
    rng = np.random.default_rng(seed)
    steps = (rng.random(len(file)) < 0.1) * rng.integers(1, 4, len(file))
    return (np.frombuffer(file, np.uint8) + steps.astype(np.uint8)).tobytes()


FIRST = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()
SECOND = moved(FIRST, 1)


# ---- deltas ----


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_file_comes_out_of_its_delta(new: bytes, old: bytes) -> None:
    assert decode_file(encode_file(new, old), len(new), old) == new
    assert decode_file(encode_file(new), len(new)) == new


def test_a_delta_between_near_files_is_small() -> None:
    assert len(encode_file(SECOND, FIRST)) < 0.3 * len(encode_file(SECOND))


@given(st.binary(max_size=60), st.integers(0, 300), st.binary(max_size=300))
def test_any_bytes_give_a_file_of_the_announced_size_or_a_wire_error(
    payload: bytes, size: int, old: bytes
) -> None:
    with suppress(WireError):
        assert len(decode_file(payload, size, old)) == size


@given(st.data())
def test_a_mutated_delta_gives_a_file_of_the_announced_size_or_a_wire_error(data: Any) -> None:
    payload = bytearray(encode_file(SECOND[:200], FIRST[:200]))
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] ^= data.draw(st.integers(1, 255))
    with suppress(WireError):
        assert len(decode_file(bytes(payload), 200, FIRST)) == 200


@pytest.mark.parametrize("size", [0, 4999, 5001, 2**20])
def test_another_size_than_announced_is_refused(size: int) -> None:
    with pytest.raises(WireError):
        decode_file(encode_file(FIRST), size)


def test_a_bomb_is_refused_before_it_is_large() -> None:
    bomb = Zstd(19).compress(bytes(2**26))
    assert len(bomb) < 10_000
    for size in (100, 2**25):
        with pytest.raises(WireError):
            decode_file(bomb, size)


def test_a_delta_of_the_past_gives_what_it_always_did() -> None:
    golden = bytes.fromhex("28b52ffd0000410000030001fe000000ff")
    assert decode_file(golden, 8, b"\x10\xff\x02\x03") == b"\x13\xff\x03\x01\x00\x00\x00\xff"


# ---- releases on the server ----


class Maker:
    """Exports what it is told to have trained."""

    def __init__(self) -> None:
        self.version = 0
        self.files: list[bytes] = [FIRST]
        self.made: list[tuple[str, int]] = []
        self.fails = False

    def train(self) -> None:
        self.version += 1
        self.files.append(moved(self.files[-1], self.version))

    def __call__(self, kind: str) -> tuple[int, bytes]:
        self.made.append((kind, self.version))
        if self.fails:
            raise RuntimeError("cannot be converted")
        return self.version, self.files[self.version]


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def releases(tmp_path: Path, maker: Maker) -> Iterator[Releases]:
    made = Releases(tmp_path / "releases", ("int8", "float32"), lambda: maker.version, maker)
    yield made
    made.close()


def file_of(offer: Offer | None, old: bytes = b"") -> bytes:
    assert offer is not None
    data = decode_file(offer.data, offer.release.size, old if offer.release.delta else b"")
    assert sha(data) == offer.release.digest
    assert len(offer.data) == offer.release.compressed
    return data


def test_version_0_is_not_released(releases: Releases, maker: Maker) -> None:
    assert releases.offer("", b"").result() is None
    assert maker.made == []


def test_a_device_gets_a_delta_if_its_file_is_known_and_else_all(
    releases: Releases, maker: Maker
) -> None:
    maker.train()
    first = releases.offer("", b"").result()
    assert file_of(first) == maker.files[1]
    assert releases.offer("int8", sha(maker.files[1])).result() is None
    maker.train()
    delta = releases.offer("int8", sha(maker.files[1])).result()
    assert file_of(delta, maker.files[1]) == maker.files[2]
    assert delta
    assert delta.release.delta
    whole = releases.offer("int8", sha(b"edited by hand")).result()
    assert file_of(whole) == maker.files[2]
    assert whole
    assert len(delta.data) < len(whole.data) / 3
    assert maker.made == [("int8", 1), ("int8", 2)]


def test_a_delta_that_is_no_smaller_is_not_sent(releases: Releases, maker: Maker) -> None:
    maker.train()
    releases.offer("", b"").result()
    maker.version, maker.files = 2, [b"", maker.files[1], bytes(5000)]
    offer = releases.offer("", sha(maker.files[1])).result()
    assert file_of(offer) == bytes(5000)
    assert offer
    assert not offer.release.delta


def test_many_that_ask_at_once_have_it_made_once(releases: Releases, maker: Maker) -> None:
    maker.train()
    asked = [releases.offer("int8", bytes([i]) * 32) for i in range(50)]
    assert {file_of(one.result()) for one in asked} == {maker.files[1]}
    assert maker.made == [("int8", 1)]


def test_the_last_files_are_kept_and_found_again(
    releases: Releases, maker: Maker, tmp_path: Path
) -> None:
    for _ in range(KEPT + 3):
        maker.train()
        releases.offer("int8", b"").result()
    releases.offer("float32", b"").result()
    folder = tmp_path / "releases"
    assert len(list(folder.glob("int8-*"))) == KEPT
    left = folder / ".new-int8-00009.tflite"
    left.write_bytes(b"of a server that was killed")
    (folder / "notes.tflite").write_bytes(b"somebody else's")
    maker.made.clear()
    again = Releases(folder, ("int8",), lambda: maker.version, maker)
    assert not left.exists()
    delta = again.offer("int8", sha(maker.files[4])).result()
    assert file_of(delta, maker.files[4]) == maker.files[KEPT + 3]
    assert delta
    assert delta.release.delta
    dropped = again.offer("int8", sha(maker.files[3])).result()
    assert dropped
    assert not dropped.release.delta
    assert maker.made == [], "what is on disk is not made again"
    again.close()


def test_a_damaged_file_is_no_base_and_is_made_again_if_it_is_the_newest(
    releases: Releases, maker: Maker, tmp_path: Path
) -> None:
    for _ in range(2):
        maker.train()
        releases.offer("int8", b"").result()
    for path in (tmp_path / "releases").iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    offer = releases.offer("int8", sha(maker.files[1])).result()
    assert file_of(offer) == maker.files[2]
    assert offer
    assert not offer.release.delta
    assert maker.made == [("int8", 1), ("int8", 2), ("int8", 2)]


def test_a_version_that_cannot_be_released_is_tried_once(releases: Releases, maker: Maker) -> None:
    maker.train()
    maker.fails = True
    for _ in range(3):
        with pytest.raises(Refused, match="could not be released as int8; the server's log"):
            releases.offer("int8", b"").result()
    assert maker.made == [("int8", 1)]
    maker.fails = False
    maker.train()
    assert file_of(releases.offer("int8", b"").result()) == maker.files[2]


def test_odd_requests_are_refused(releases: Releases) -> None:
    with pytest.raises(Refused, match="no files of the kind 'exe'; ask for one of int8, float32"):
        releases.offer("exe", b"")
    with pytest.raises(Refused, match="5 bytes are no SHA-256"):
        releases.offer("int8", b"short")


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


def test_whole_then_delta(file: ModelFile) -> None:
    swaps: list[Swap] = []
    script = Script(answer(FIRST), answer(SECOND, FIRST, version=2), None)
    follower = Follower("d", "int8", script, file, swaps.append)
    assert follower.step()
    assert file.path.read_bytes() == FIRST
    follower.step()
    assert file.path.read_bytes() == SECOND
    assert follower.step(7) is None
    assert [request.have_digest for request in script.requests] == [b"", sha(FIRST), sha(SECOND)]
    assert script.requests[2].wait_seconds == 7
    assert [(s.version, s.size) for s in swaps] == [(1, 5000), (2, 5000)]
    assert swaps[1].received == len(encode_file(SECOND, FIRST))
    assert [p.name for p in sorted(file.path.parent.iterdir())] == [".lock", "model_int8.tflite"]


def test_an_edited_file_is_not_taken_for_what_it_was(file: ModelFile) -> None:
    script = Script(answer(FIRST), answer(FIRST))
    follower = Follower("d", "int8", script, file)
    follower.step()
    file.path.write_bytes(b"edited")
    follower.step()
    assert script.requests[1].have_digest == sha(b"edited")
    assert file.path.read_bytes() == FIRST


def test_a_delta_that_does_not_fit_is_followed_by_the_whole_file(file: ModelFile) -> None:
    file.replace(FIRST)
    script = Script(answer(SECOND, moved(FIRST, 9)), answer(SECOND))
    assert Follower("d", "int8", script, file).step()
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
        Follower("d", "int8", script, file).step()
    assert file.path.read_bytes() == FIRST
    assert not script.answers, "asked for the whole file once"


def test_once_waits_for_a_first_file_and_then_ends(file: ModelFile) -> None:
    pauses: list[float] = []
    script = Script(None, None, answer(FIRST))
    Follower("d", "int8", script, file, pause=pauses.append).run(once=True)
    assert len(pauses) == 2, "a server that answers at once is not asked without end"
    Follower("d", "int8", Script(None), file).run(once=True)


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
    script = Path(__file__).with_name("killed_follower.py")
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
    """A follower in a thread of its own."""

    def __init__(self, server: Federation, directory: Path, name: str = "camera") -> None:
        self.swaps: list[Swap] = []
        self.digests: list[bytes] = []
        self._transport = server.transport()
        self.meter = Meter(self._transport._stub)
        self._transport._stub = self.meter  # type: ignore[assignment]
        self.file = ModelFile(directory, "int8")
        self._follower = Follower(name, "int8", self._transport, self.file, self._swapped)
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _swapped(self, swap: Swap) -> None:
        assert sha(self.file.path.read_bytes()) == swap.digest
        self.swaps.append(swap)

    def _run(self) -> None:
        while not self._stop:
            self._follower.step(1)

    def close(self) -> None:
        self._stop = True
        self._thread.join(10)
        self._transport.close()
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
    entries = [e for e in server.store.ledger() if e.client == "camera"]
    assert {e.kind for e in entries} == {"release"}
    up = [e for e in entries if e.direction == "uplink"]
    down = [e for e in entries if e.direction == "downlink"]
    meter = following.meter
    assert (sum(e.payload_bytes for e in up), sum(e.message_bytes for e in up)) == (0, meter.up)
    assert sum(e.message_bytes for e in down) == meter.down
    assert sum(e.payload_bytes for e in down) == meter.payload == sum(received)
    _check_metrics(server, meter)


def _check_metrics(server: Federation, meter: Meter) -> None:
    found = metrics.collect(server.store, server.settings, MANIFEST, {"featherfed": "0"})
    assert [one["device"] for one in found["releases"]] == ["camera"]
    traffic = found["releases"][0]
    nothing = {"control_bytes": 0, "retry_bytes": 0}
    assert traffic["uplink"] == {"payload_bytes": 0, "message_bytes": meter.up, **nothing}
    down = {"payload_bytes": meter.payload, "message_bytes": meter.down, **nothing}
    assert traffic["downlink"] == down
    assert {c["client"] for r in found["rounds"] for c in r["clients"]} == {"only"}
    found["final"] = metrics.final(server.store, server.settings, 0.0, [])
    assert [one["client"] for one in found["final"]["clients"]] == ["only"]
    training = [e for e in server.store.ledger() if e.client == "only"]
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
    transport = server.transport()
    request = pb.FetchReleaseRequest(device="d")

    def ask(task: pb.Train) -> None:
        if task.round == 2:
            transport.fetch_release(request, 10**6)

    server.run_clients(server.client("a", trainer=Pull(1.0, ask)))
    time.sleep(0.7)
    assert not server.finished
    found = transport.fetch_release(request, 10**6)
    assert found
    assert found[0].version == 2
    server.join()
    assert server.finished
    transport.close()


def test_a_server_that_stays_serves_devices_that_come_after_the_run(federation: Start) -> None:
    stay = {"port": 0, "linger": 1, "stay": True}
    server = federation(rounds=1, clients={"minimum": 1}, server=stay)
    server.run_clients(server.client("a"))
    time.sleep(1.5)
    transport = server.transport()
    found = transport.fetch_release(pb.FetchReleaseRequest(device="late"), 10**6)
    assert found
    assert found[0].version == 1
    transport.close()
    server.close()
    assert server.finished


def test_refusals_reach_the_device(federation: Start) -> None:
    server = federation(rounds=1)
    transport = server.transport()
    request = pb.FetchReleaseRequest(device="../../x", kind="int8")
    with pytest.raises(Rejected, match="1 to 64 letters"):
        transport.fetch_release(request, 100)
    request = pb.FetchReleaseRequest(device="d", kind="exe")
    with pytest.raises(Rejected, match="no files of the kind 'exe'"):
        transport.fetch_release(request, 100)
    assert server.store.ledger() == [], "calls that were refused are not counted"
    request = pb.FetchReleaseRequest(device="d", wait_seconds=1)
    began = time.monotonic()
    assert transport.fetch_release(request, 100) is None, "there is no version 1 yet"
    assert time.monotonic() - began > 0.9
    transport.close()


class Liar(pb_grpc.FederationServicer):
    """Announces little and sends much."""

    def FetchRelease(self, request: Any, context: Any) -> Iterator[pb.ReleaseChunk]:
        yield pb.ReleaseChunk(release=pb.Release(size=10, compressed=10), data=bytes(5))
        yield pb.ReleaseChunk(data=bytes(6))


def test_more_than_was_announced_is_not_read() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    pb_grpc.add_FederationServicer_to_server(Liar(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    transport = GrpcTransport(f"127.0.0.1:{port}", 5)
    for limit in (100, 4):
        with pytest.raises(Rejected, match="sends more than it announced"):
            transport.fetch_release(pb.FetchReleaseRequest(device="d"), limit)
    transport.close()
    server.stop(None)


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
