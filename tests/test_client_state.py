"""A client's state directory: damaged files, full disks, one client in each."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import Pull
from support.disk import damage, fill
from support.federation import Federation
from support.models import MANIFEST

from featherfed.cli.check import check_directory
from featherfed.edge_client import statefile
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.partial_download import FILE_NAME, WRITE_BYTES, PartialDownload
from featherfed.edge_client.state import ClientState, HeldModel, PendingUpdate
from featherfed.edge_client.state_directory import lock_state
from featherfed.proto import federation_pb2 as pb
from featherfed.simulator.files import ClientDisk, simulated_files
from featherfed.simulator.scheduler import Process, Scheduler

Start = Callable[..., Federation]


# ---- the client ----


def weights(value: float = 1.0) -> list[Any]:
    return [np.full(spec.shape, value, np.float32) for spec in MANIFEST]


def a_state(directory: Path) -> ClientState:
    state = ClientState(directory, "run")
    from featherfed.compression.exchange.manifest import weights_digest

    state.save_held(HeldModel(3, weights_digest(weights()), weights()))
    state.save_residual(weights(2))
    state.save_pending(PendingUpdate(4, 3, 10, 0.5, b"payload", weights(3), weights(4)))
    return state


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "small.npz"
    statefile.save(path, {"run": "x"}, {"residual": [np.arange(3, dtype=np.float32)]})
    good = path.read_bytes()
    rng = random.Random(1)
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(statefile.Damaged):
            statefile.load(path)
    for length in range(0, len(good), 7):
        path.write_bytes(good[:length])
        with pytest.raises(statefile.Damaged):
            statefile.load(path)
    path.write_bytes(good)
    assert statefile.load(path)[0] == {"run": "x"}


@pytest.mark.parametrize("name", ["model", "residual", "pending"])
def test_a_damaged_state_file_is_put_aside(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    a_state(tmp_path)
    damage(tmp_path / f"{name}.npz", at=0.3, length=50)
    state = ClientState(tmp_path, "run")
    found = {"model": state.held(), "residual": state.residual(), "pending": state.pending()}
    assert [key for key, value in found.items() if value is None] == [name]
    assert f"{name}.npz is damaged" in caplog.text
    assert (tmp_path / f"{name}.damaged").exists()
    assert not (tmp_path / f"{name}.npz").exists()


def test_a_client_with_a_damaged_state_goes_on(federation: Start) -> None:
    codec = {"uplink": "topk(0.1) | quantize(4)", "downlink": "quantize(8) | zstd"}
    server = federation(rounds=3, clients={"minimum": 1}, compression=codec)
    folder = server.directory / "clients" / "a"

    def spoil(task: pb.Train) -> None:
        for path in folder.glob("*.npz"):
            damage(path, at=0.3, length=50)

    (held,) = server.run_clients(server.client("a", trainer=Pull(1.0, spoil)))
    assert held.digest == server.store.versions.newest().digest
    left = {path.name for path in folder.glob("*.damaged")}
    assert left == {"residual.damaged"}, "the model is in memory, and written anew"


def test_check_notices_a_damaged_client(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_state(tmp_path)
    assert check_directory(tmp_path)
    statefile.save(tmp_path / "residual.npz", {"run": "other"}, {"residual": weights()})
    assert not check_directory(tmp_path)
    assert "files of several runs" in capsys.readouterr().out
    statefile.save(tmp_path / "residual.npz", {"run": "run"}, {"residual": weights()[:2]})
    assert not check_directory(tmp_path)
    assert "different shapes" in capsys.readouterr().out
    a_state(tmp_path)
    damage(tmp_path / "pending.npz", at=0.3, length=50)
    assert not check_directory(tmp_path)
    assert "pending.npz: its checksum does not fit" in capsys.readouterr().out


def test_a_state_directory_serves_one_client_at_a_time(tmp_path: Path) -> None:
    code = f"""
import sys, pathlib
from featherfed.edge_client.state_directory import lock_state
lock_state(pathlib.Path({str(tmp_path)!r}))"""
    with lock_state(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "another client uses the state directory" in done.stderr
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_full_disk_at_the_client_costs_no_update(
    federation: Start, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    codec = {"uplink": "topk(0.1) | quantize(4)", "downlink": "quantize(8) | zstd"}
    plain = federation("plain", rounds=4, clients={"minimum": 1}, compression=codec)
    expected = plain.run_clients(plain.client("a"))[0].digest

    server = federation(rounds=4, clients={"minimum": 1}, compression=codec)

    def on_train(task: pb.Train) -> None:
        if task.round == 2:
            fill(small_disk)
        if task.round == 4:
            (small_disk / "ballast").unlink()

    client = server.client("a", trainer=Pull(1.0, on_train))
    client._make_state = lambda run: ClientState(small_disk, run)
    (held,) = server.run_clients(client)
    assert held.digest == expected, "while the process lives, nothing is lost"
    assert "No space left" in caplog.text
    assert "pending.npz" in caplog.text
    assert (small_disk / "residual.npz").exists(), "written once there is room"
    assert [
        update.client for n in range(1, 5) for update in server.store.journal.updates(n)
    ] == 4 * ["a"]


def test_an_update_takes_no_more_room_than_it_needs(tmp_path: Path) -> None:
    state, payload = ClientState(tmp_path, "run"), random.Random(1).randbytes(10**5)
    state.save_pending(PendingUpdate(4, 3, 10, 0.5, payload, None, None))
    assert (tmp_path / "pending.npz").stat().st_size < len(payload) + 2000
    assert ClientState(tmp_path, "run").pending() == state.pending()
    assert state.pending() == PendingUpdate(4, 3, 10, 0.5, payload, None, None)


def test_an_unsent_update_keeps_its_evaluations(tmp_path: Path) -> None:
    one, other = pb.Evaluation(sums=[9, 0.5, 7, 9]), pb.Evaluation(sums=[9, 0.25, 8, 9])
    for before, after in ((one, other), (None, other), (None, None)):
        pending = PendingUpdate(4, 3, 10, 0.5, b"payload", None, None, before, after)
        ClientState(tmp_path, "run").save_pending(pending)
        assert ClientState(tmp_path, "run").pending() == pending


def test_what_a_round_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    state = ClientState(tmp_path, "run")
    state.save_held(HeldModel(3, b"", weights()))
    assert synced == [".new-model.npz"]
    state.save_pending(PendingUpdate(4, 3, 10, 0.5, b"payload", None, None))
    state.settle(None)
    assert synced == [".new-model.npz", ".new-pending.npz", tmp_path.name]
    state.sync()
    assert synced[3:] == [tmp_path.name]


def test_a_residual_is_never_used_twice(small_disk: Path) -> None:
    """The process ends after an update was sent that could not be written down."""
    a_state(small_disk).settle(weights(2))
    state = ClientState(small_disk, "run")
    fill(small_disk)
    state.save_pending(PendingUpdate(5, 4, 10, 0.5, b"payload", weights(3), weights(4)))
    assert state.pending() is not None
    assert state.residual() is not None
    again = ClientState(small_disk, "run")
    assert again.pending() is None
    assert again.residual() is None, "it is in the update that was sent"


def test_no_loss_of_power_brings_a_used_residual_back(tmp_path: Path) -> None:
    """It comes after an update was sent that the full disk did not take."""
    for seed in range(40):
        scheduler = Scheduler()
        process = Process(scheduler, "client")
        disk = ClientDisk(tmp_path / str(seed), random.Random(seed))
        process.disk = disk  # type: ignore[attr-defined]

        def work() -> None:
            a_state(disk.folder).settle(weights(4))  # noqa: B023
            state = ClientState(disk.folder, "run")  # noqa: B023
            disk.full = True  # noqa: B023
            state.save_pending(PendingUpdate(5, 4, 10, 0.5, b"", weights(5), weights(6)))

        with simulated_files(scheduler):
            process.spawn(work)
            while scheduler.step():
                pass
        disk.lose_power()
        again = ClientState(disk.folder, "run")
        assert again.residual() is None, "it is in the update that was sent"
        assert again.pending() is None, "settled again, it would bring its residual back"


def test_no_room_at_the_start_is_said_plainly(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(ClientError, match=r"No space left.*make room.*--state-dir"):
        lock_state(small_disk)
    assert not (small_disk / ".room").exists()


def test_a_download_that_cannot_be_kept_goes_on_in_memory(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(small_disk)
    link = pb.Link(version=1, size=3 * WRITE_BYTES)
    request = pb.FetchModelRequest(version=1)
    with PartialDownload(small_disk / FILE_NAME, request, 4 * WRITE_BYTES) as partial:
        assert partial.begin([link], 0)
        for _ in range(3):
            partial.add(bytes(WRITE_BYTES))
        assert partial.finish() == ([link], bytes(3 * WRITE_BYTES))
    assert caplog.text.count("The download goes on in memory") == 1
    assert not (small_disk / FILE_NAME).exists()
