"""Reads how this device is, temperature and battery, for the server's page."""

from __future__ import annotations

import logging
from collections.abc import Callable

from featherfed.edge_client.pause import Sensors, device_sensors
from featherfed.proto import federation_pb2 as pb

log = logging.getLogger(__name__)

COLDEST, HOTTEST = -60.0, 200.0
"""Degrees Celsius; a sensor that tells anything else is broken, or not connected."""


def device_health() -> Callable[[], pb.DeviceHealth | None]:
    """Return a function that reads this device's sensors; it gives None where there are none."""
    try:
        sensors = device_sensors()
    except ImportError:  # the extra `edge` brings psutil
        return lambda: None
    return lambda: read_health(sensors)


def read_health(sensors: Sensors) -> pb.DeviceHealth | None:
    """Return what the sensors tell, in whole degrees and percent; None if they tell nothing."""
    health = pb.DeviceHealth()
    temperature = _plausible(sensors.temperature, COLDEST, HOTTEST)
    if temperature is not None:
        health.temperature = temperature
    battery = _plausible(sensors.battery, 0.0, 100.0)
    if battery is not None:
        health.battery = battery
    return health if health.ByteSize() else None


def _plausible(read: Callable[[], float | None], least: float, most: float) -> int | None:
    try:
        value = read()
    except (OSError, ValueError, RuntimeError) as error:  # drivers fail in many ways
        log.debug("a sensor cannot be read: %s", error)
        return None
    return round(value) if value is not None and least <= value <= most else None
