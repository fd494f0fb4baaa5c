"""What a run cost in the field, where simulated devices have speeds, links and batteries."""

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Spent:
    """What work in the field cost.

    Attributes:
        training: seconds of training.
        transfer: seconds of download and upload.
        joules: of training and radio, above what the device draws anyway.
        down: payload bytes downloaded; of a broken transfer, those until it broke.
        up: likewise uploaded.

    """

    training: float = 0.0
    transfer: float = 0.0
    joules: float = 0.0
    down: int = 0
    up: int = 0

    @property
    def seconds(self) -> float:
        """Seconds the device was busy."""
        return self.training + self.transfer

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Spent)))


@dataclass(frozen=True, slots=True)
class FieldCost:
    """What a run cost in the field.

    Attributes:
        seconds: virtual, from the start of the clock to the end of the run.
        devices: each device's cost, by name.
        rounds: the cost of all devices in each round, by number.

    """

    seconds: float
    devices: Mapping[str, Spent]
    rounds: Mapping[int, Spent]
