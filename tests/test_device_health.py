"""Temperature and battery of clients: read where a system tells them, checked by the server."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.federation import Federation

from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.health import device_health, read_health
from featherfed.edge_client.pause import Sensors
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.client_health import ClientHealth, Health


def sensors(temperature: Any, battery: Any) -> Sensors:
    return Sensors(lambda: temperature, lambda: None, lambda: battery)


def fails(error: Exception) -> Callable[[], float | None]:
    def read() -> float | None:
        raise error

    return read


# ---- the device ----


@pytest.mark.parametrize(
    ("temperature", "battery", "told"),
    [
        (61.4, 79.6, (61, 80)),
        (0.0, 0.0, (0, 0)),
        (-12.0, 100.0, (-12, 100)),
        (None, 50.0, (None, 50)),
        (45.0, None, (45, None)),
        (float("nan"), float("inf"), (None, None)),
        (-273.15, 101.0, (None, None)),
        (1e9, -1.0, (None, None)),
        (None, None, (None, None)),
    ],
)
def test_a_device_tells_what_its_sensors_plausibly_say(
    temperature: float | None, battery: float | None, told: tuple[int | None, int | None]
) -> None:
    health = read_health(sensors(temperature, battery))
    if told == (None, None):
        assert health is None
        return
    assert health is not None
    assert health.HasField("temperature") == (told[0] is not None)
    assert health.HasField("battery") == (told[1] is not None)
    known = ClientHealth()
    known.hear("a", pb.HeartbeatRequest(health=health))
    assert known.of("a") == Health(*told)


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("odd"), RuntimeError("no")])
def test_a_sensor_that_fails_hides_nothing_else(error: Exception) -> None:
    health = read_health(Sensors(fails(error), lambda: None, lambda: 40.0))
    assert health == pb.DeviceHealth(battery=40)


def test_psutil_is_asked_and_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = SimpleNamespace(current=55.0)
    psutil = SimpleNamespace(
        sensors_temperatures=lambda: {"cpu": [SimpleNamespace(current=40.0), reading]},
        sensors_battery=lambda: SimpleNamespace(percent=12.3, power_plugged=True),
    )
    monkeypatch.setitem(sys.modules, "psutil", psutil)  # type: ignore[arg-type]
    assert device_health()() == pb.DeviceHealth(temperature=55, battery=12)
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace())  # type: ignore[arg-type]
    assert device_health()() is None, "psutil has no sensors on this system"
    monkeypatch.setitem(sys.modules, "psutil", None)  # type: ignore[arg-type]
    assert device_health()() is None


# ---- the server ----


@pytest.mark.parametrize(
    "health",
    [
        pb.DeviceHealth(),
        pb.DeviceHealth(temperature=201, battery=101),
        pb.DeviceHealth(temperature=-61, battery=2**32 - 1),
        pb.DeviceHealth(temperature=-(2**31)),
    ],
)
def test_the_server_believes_nothing_that_cannot_be(health: pb.DeviceHealth) -> None:
    known = ClientHealth()
    known.hear("a", pb.NextTaskRequest(health=pb.DeviceHealth(temperature=50, battery=50)))
    known.hear("a", pb.NextTaskRequest(health=health))
    assert known.of("a") == Health()


def test_a_call_without_health_changes_nothing() -> None:
    known = ClientHealth()
    assert known.of("a") == Health()
    known.hear("a", pb.HeartbeatRequest(health=pb.DeviceHealth(battery=7)))
    known.hear("a", pb.HeartbeatRequest())
    assert known.of("a") == Health(battery=7)


def test_without_sensors_a_call_has_not_one_byte_more() -> None:
    request = pb.NextTaskRequest(session=1, health=None)
    assert request.SerializeToString() == pb.NextTaskRequest(session=1).SerializeToString()
    told = pb.HeartbeatRequest(session=1, health=pb.DeviceHealth(temperature=61, battery=80))
    assert told.ByteSize() - pb.HeartbeatRequest(session=1).ByteSize() == 6


def test_health_reaches_the_coordinator_by_name_and_harms_no_round(
    federation: Callable[..., Federation], tmp_path: Path
) -> None:
    server = federation(rounds=2, clients={"minimum": 2, "patience": 1, "heartbeat": 1})
    hot = GrpcTransport(
        server.address, 10, health=lambda: pb.DeviceHealth(temperature=71, battery=33)
    )
    try:
        held = server.run_clients(server.client("hot", transport=hot), server.client("cool"))
        assert [model.version for model in held] == [2, 2]
    finally:
        hot.close()
    assert server.coordinator.health.of("hot") == Health(71, 33)
    assert server.coordinator.health.of("cool") == Health()
