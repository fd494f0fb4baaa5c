"""What a device has measured of its own speed."""

from dataclasses import dataclass

TURNS = 3
"""The networks take turns so often, so that a device's hot or busy moment meets them all."""


@dataclass(frozen=True, slots=True)
class Measured:
    """How fast a device trains.

    Attributes:
        macs_per_second: multiply-accumulates a second of the first of `PROBES`.
        speeds: by kind (`models/kinds.py`), a second.
        pace: the processor's seconds in a second of the clock, as both count.

    """

    macs_per_second: float
    speeds: dict[str, float]
    pace: float
