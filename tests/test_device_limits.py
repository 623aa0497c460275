"""A client rests when its device is hot or on battery, and keeps to its limit of memory."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.federation import Federation
from support.processes import run

from featherfed.api import memory
from featherfed.datasets.sources import load_train_test
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.pause import (
    COOL_DOWN,
    LOOK_EVERY,
    PauseControl,
    Sensors,
    device_sensors,
)


class Device:
    """A device whose sensors are read from lists, and whose time is its sleep."""

    def __init__(self, degrees: list[float | None], on_battery: list[bool | None]) -> None:
        self.now = 0.0
        self.slept = 0
        self.looks = 0
        self._degrees, self._on_battery = degrees, on_battery

    def _next(self, values: list[Any]) -> Any:
        self.looks += 1
        return values.pop(0) if len(values) > 1 else values[0]

    def pause(
        self, pause_above: float | None = None, pause_on_battery: bool = False
    ) -> PauseControl:
        def sleep(seconds: float) -> None:
            self.slept += 1
            self.now += seconds

        sensors = Sensors(lambda: self._next(self._degrees), lambda: self._next(self._on_battery))
        return PauseControl(
            sensors, pause_above, pause_on_battery, clock=lambda: self.now, sleep=sleep
        )


def test_a_hot_device_rests_until_it_is_well_below_the_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    # the first is read when the wish is checked
    device = Device([50, 71, 69, 66, 70 - COOL_DOWN], [None])
    pause = device.pause(pause_above=70)
    pause.wait_until_ready()
    assert device.slept == 3, "at 69 and 66 degrees it is not cool yet"
    assert "resting: 71 degrees Celsius, more than 70" in caplog.text
    assert caplog.text.count("training goes on") == 1
    pause.wait_until_ready()
    assert device.slept == 3


def test_a_device_at_its_limit_does_not_rest(caplog: pytest.LogCaptureFixture) -> None:
    device = Device([70], [None])
    device.pause(pause_above=70).wait_until_ready()
    assert (device.slept, caplog.text) == (0, "")


def test_a_device_on_battery_waits_for_mains_power() -> None:
    device = Device([None], [False, True, True, False])
    device.pause(pause_on_battery=True).wait_until_ready()
    assert device.slept == 2


def test_a_device_rests_while_it_is_hot_or_on_battery() -> None:
    device = Device([20, 90, 90, 20], [False, True, False])
    device.pause(pause_above=70, pause_on_battery=True).wait_until_ready()
    assert device.slept == 3


def test_sensors_are_read_every_few_seconds_only() -> None:
    device = Device([20], [None])
    pause = device.pause(pause_above=70)
    for _ in range(1000):
        device.now += LOOK_EVERY / 100
        pause.wait_until_ready()
    assert device.looks == pytest.approx(11, abs=2)


def test_a_sensor_that_vanishes_lets_training_go_on() -> None:
    device = Device([20, 90, None], [None])
    device.pause(pause_above=70).wait_until_ready()
    assert device.slept == 1


def test_a_device_without_the_sensor_says_so() -> None:
    with pytest.raises(ClientError, match="--pause-above: this device shows no temperature"):
        Device([None], [None]).pause(pause_above=70)
    with pytest.raises(ClientError, match="--pause-on-battery: this device shows no battery"):
        Device([None], [None]).pause(pause_on_battery=True)
    Device([None], [None]).pause()


def test_the_sensors_of_this_machine_answer() -> None:
    sensors = device_sensors()
    assert sensors.temperature() is None or -50 < sensors.temperature() < 150  # type: ignore[operator]
    assert sensors.on_battery() in (None, True, False)


# ---- memory ----


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_too_little_memory_is_one_plain_message(tmp_path: Path) -> None:
    load_train_test("digits")[1].save(tmp_path / "data.npz")
    join = ["join", "127.0.0.1:1", "--data", "data.npz", "--name", "a", "--state-dir", "state"]
    done = run(*join, "--runtime", "litert", "--memory", "20", cwd=tmp_path)
    assert done.returncode == 1
    assert "of memory were in use, more than --memory 20" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    enough = [*join, "--runtime", "litert", "--memory", "2000", "--give-up-after", "0"]
    done = run(*enough, cwd=tmp_path)
    assert "127.0.0.1:1" in done.stderr
    assert "--memory" not in done.stderr


def test_memory_that_cannot_be_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "peak_memory", lambda: None)
    with pytest.raises(ClientError, match=r"--memory: .* has no /proc"):
        memory.limit_memory(100)


def test_memory_that_runs_out_is_one_plain_message(
    tmp_path: Path, federation: Callable[..., Federation]
) -> None:
    (tmp_path / "greedy.py").write_text("def data():\n    raise MemoryError", "utf-8")
    done = run("join", federation().address, "--data", "greedy:data", cwd=tmp_path)
    assert done.returncode == 1
    assert "not enough memory" in done.stderr
    assert "Traceback" not in done.stderr
