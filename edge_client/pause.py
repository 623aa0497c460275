"""Pause training while the device is too hot or runs on its battery."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from featherfed.edge_client.errors import ClientError

log = logging.getLogger(__name__)

LOOK_EVERY = 5.0
"""Seconds between two readings of the sensors."""
COOL_DOWN = 5.0
"""Degrees Celsius below the limit at which training goes on."""


@dataclass(frozen=True)
class Sensors:
    """Functions that read a device's sensors."""

    temperature: Callable[[], float | None]
    """Degrees Celsius of the hottest part, None if there is no sensor."""
    on_battery: Callable[[], bool | None]
    """Whether there is no mains power; None if the device has no battery."""
    battery: Callable[[], float | None] = lambda: None
    """Percent that the battery is charged, None if the device has none."""


def device_sensors() -> Sensors:
    """Return this machine's sensors, read by psutil; raise ImportError without psutil."""
    import psutil

    def temperature() -> float | None:
        # psutil lacks the function on systems without sensors
        groups: dict[str, Any] = getattr(psutil, "sensors_temperatures", dict)()
        readings = [reading.current for group in groups.values() for reading in group]
        return max(readings, default=None)

    def on_battery() -> bool | None:
        battery = getattr(psutil, "sensors_battery", lambda: None)()
        return None if battery is None else not battery.power_plugged

    def battery() -> float | None:
        found = getattr(psutil, "sensors_battery", lambda: None)()
        return None if found is None else found.percent

    return Sensors(temperature, on_battery, battery)


class PauseControl:
    """Pauses training between two steps while the device is too hot or on its battery."""

    def __init__(
        self,
        sensors: Sensors,
        pause_above: float | None,
        pause_on_battery: bool,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Pause above `pause_above` degrees Celsius, and with `pause_on_battery` on battery.

        Raises ClientError if the device has no sensor for it.
        """
        if pause_above is not None and sensors.temperature() is None:
            raise ClientError("--pause-above: this device shows no temperature; leave it out")
        if pause_on_battery and sensors.on_battery() is None:
            raise ClientError("--pause-on-battery: this device shows no battery; leave it out")
        self._sensors = sensors
        self._pause_above = pause_above
        self._pause_on_battery = pause_on_battery
        self._clock = clock
        self._sleep = sleep
        self._read_at = float("-inf")

    def wait_until_ready(self) -> None:
        """Return as soon as the device may train; reads its sensors every LOOK_EVERY seconds."""
        if self._clock() - self._read_at < LOOK_EVERY:
            return
        reason, margin = self._reason(0.0), COOL_DOWN
        if reason:
            log.warning("resting: %s", reason)
        while reason:
            self._sleep(LOOK_EVERY)
            reason = self._reason(margin)
            if not reason:
                log.info("training goes on")
        self._read_at = self._clock()

    def _reason(self, margin: float) -> str | None:
        """Return why to pause, or None; `margin` (degrees) is subtracted from the limit."""
        if self._pause_on_battery and self._sensors.on_battery():
            return "on battery"
        degrees = None if self._pause_above is None else self._sensors.temperature()
        if self._pause_above is not None and degrees is not None:
            limit = self._pause_above - margin
            if degrees > limit:
                return f"{degrees:.0f} degrees Celsius, more than {limit:.0f}"
        return None
