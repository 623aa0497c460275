"""A client's rests: while the device is hot, or runs on its battery, training waits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from featherfed.edge_client.errors import ClientError

log = logging.getLogger(__name__)

LOOK_EVERY = 5.0
"""Seconds between two looks at the sensors; they are files that take milliseconds to read."""
COOL_DOWN = 5.0
"""Degrees Celsius below the limit at which training goes on."""


@dataclass(frozen=True)
class Sensors:
    """What a device says of itself."""

    temperature: Callable[[], float | None]
    """Degrees Celsius of the hottest part, None if there is no sensor."""
    on_battery: Callable[[], bool | None]
    """None if there is no battery."""


def device_sensors() -> Sensors:
    """Return this machine's sensors, by psutil; raises ImportError if that is not installed."""
    import psutil

    def temperature() -> float | None:
        # psutil has no such function where the system has no sensors at all
        groups: dict[str, Any] = getattr(psutil, "sensors_temperatures", dict)()
        readings = [reading.current for group in groups.values() for reading in group]
        return max(readings, default=None)

    def on_battery() -> bool | None:
        battery = getattr(psutil, "sensors_battery", lambda: None)()
        return None if battery is None else not battery.power_plugged

    return Sensors(temperature, on_battery)


class Rest:
    """Waits in `between_steps` for as long as the device should not work."""

    def __init__(
        self,
        sensors: Sensors,
        pause_above: float | None,
        pause_on_battery: bool,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Rest above `pause_above` degrees Celsius, and on battery if asked to.

        Raises ClientError if the device does not tell what the wish depends on.
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
        self._looked = float("-inf")

    def between_steps(self) -> None:
        """Return at once, or when the device may work again."""
        if self._clock() - self._looked < LOOK_EVERY:
            return
        reason, margin = self._reason(0.0), COOL_DOWN
        if reason:
            log.warning("resting: %s", reason)
        while reason:
            self._sleep(LOOK_EVERY)
            reason = self._reason(margin)
            if not reason:
                log.info("training goes on")
        self._looked = self._clock()

    def _reason(self, margin: float) -> str | None:
        if self._pause_on_battery and self._sensors.on_battery():
            return "on battery"
        degrees = None if self._pause_above is None else self._sensors.temperature()
        if self._pause_above is not None and degrees is not None:
            limit = self._pause_above - margin
            if degrees > limit:
                return f"{degrees:.0f} degrees Celsius, more than {limit:.0f}"
        return None
