"""When a device of the field can take a task: always, by day and night, on and off, or while its battery lasts.

Every answer is a function of the device's seed, the virtual time and, for a battery, the energy left: asking twice,
in another order or on another machine changes nothing. Times are seconds since midnight UTC of the first day; a zone
is a device's offset from UTC in hours.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from itertools import count
from typing import Annotated

from pydantic import Discriminator, PositiveFloat, Tag
from pydantic.dataclasses import dataclass as validated

from diastole.models.seeds import derive_seed
from diastole.models.spec import STRICT

HOUR, DAY = 3600.0, 86_400.0


def uniform(*names: str | int) -> float:
    """Return a draw from the open interval (0, 1) that depends on the names alone."""
    return ((derive_seed(*names) >> 11) + 0.5) / 2**52


@validated(frozen=True, slots=True, config=STRICT)
class Always:
    """Mains power, a cable, nobody else's device."""

    def online(self, seed: int, zone: float, now: float, joules: float) -> bool:
        """Return True."""
        return True


@validated(frozen=True, slots=True, config=STRICT)
class DayNight:
    """Online once a day around a fixed local hour, some devices longer than others, some all day, some not at all.

    Attributes:
        low: share of devices online at the quietest hour, twelve hours from the peak.
        high: share online at the peak.
        peak: local hour.

    """

    low: float
    high: float
    peak: float = 2.0

    def share(self, hour: float) -> float:
        """Return the share of devices online at a local hour."""
        return self.low + (self.high - self.low) * (1 + math.cos(2 * math.pi * (hour - self.peak) / 24)) / 2

    def online(self, seed: int, zone: float, now: float, joules: float) -> bool:
        """Return whether the share of devices online exceeds the device's threshold of the day."""
        hour = now / HOUR + zone
        # A day that turns at the quietest hour: a threshold redrawn there never cuts the time around the peak.
        day = math.floor((hour - self.peak - 12) / 24)
        return uniform(seed, "day", day) < self.share(hour)


@validated(frozen=True, slots=True, config=STRICT)
class Churn:
    """On and off for exponentially distributed times, whatever the hour.

    Attributes:
        on: mean seconds online.
        off: mean seconds offline.

    """

    on: PositiveFloat
    off: PositiveFloat

    def online(self, seed: int, zone: float, now: float, joules: float) -> bool:
        """Return the state of the on-off process, which starts anew, in equilibrium, at midnight UTC."""
        # Exponential times have no memory, so a new start keeps the shares and bounds the walk to one day.
        day = math.floor(now / DAY)
        at = day * DAY
        state = uniform(seed, "churn", day) < self.on / (self.on + self.off)
        for change in count():
            at -= math.log(uniform(seed, "churn", day, change)) * (self.on if state else self.off)
            if at > now:
                return state
            state = not state
        raise AssertionError("time passes")


@validated(frozen=True, slots=True, config=STRICT)
class Battery:
    """Online while the battery is above a floor; on the charger every night.

    Attributes:
        capacity: joules.
        floor: share of the capacity below which no task is taken.
        idle: watts that the owner's use of the device drains.
        charger: watts into the battery while plugged in.
        plug: local hour at which it is plugged in.
        unplug: local hour at which it is taken off.

    """

    capacity: PositiveFloat
    floor: float
    idle: float
    charger: float
    plug: float = 22.0
    unplug: float = 7.0

    def online(self, seed: int, zone: float, now: float, joules: float) -> bool:
        """Return whether enough energy is left."""
        return joules >= self.floor * self.capacity

    def level(self, joules: float, since: float, now: float, zone: float) -> float:
        """Return the joules left `now` of the `joules` at the time `since`, if no task was run in between."""
        at = since
        while at < now:
            hour = (at / HOUR + zone) % 24
            plugged = (hour - self.plug) % 24 < (self.unplug - self.plug) % 24
            # At least a hair, or rounding could hold the time still at a turn.
            until = min(now, at + HOUR * max(((self.unplug if plugged else self.plug) - hour) % 24, 1e-6))
            joules += (until - at) * (self.charger if plugged else -self.idle)
            joules, at = min(max(joules, 0.0), self.capacity), until
        return joules


def _rule(value: object) -> str:
    """Return the name of the rule that a value is, or that has the first known key of a table."""
    if not isinstance(value, Mapping):
        return type(value).__name__ if isinstance(value, DayNight | Churn | Battery) else "Always"
    rules = {field.name: rule.__name__ for rule in (DayNight, Churn, Battery) for field in fields(rule)}
    return next((rules[key] for key in value if key in rules), "Always")


Availability = Annotated[
    Annotated[Always, Tag("Always")]
    | Annotated[DayNight, Tag("DayNight")]
    | Annotated[Churn, Tag("Churn")]
    | Annotated[Battery, Tag("Battery")],
    Discriminator(_rule),
]
"""A rule that says when a device is online; a table is the rule whose keys it has."""
