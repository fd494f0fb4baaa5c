"""What a device says of itself."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from diastole.proto.coding import known
from diastole.v1 import common_pb2

MOST_KINDS, LONGEST_KIND = 64, 64
"""Of the speeds that a device tells, so many are read, and names of so many characters."""

MOST_CLASSES = 256
"""Of the classes that a device counts, so many are read."""

BLOCKS = (1, 2, 4, 8, 16, 32, 64)
"""Floats that a processor's vectors may have."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A device's own account of itself; `None` means unknown, and is then never a limit.

    Attributes:
        tier: the tier that the device asks for, or after it has joined the one that it is in; empty for none.
        examples: labelled examples the device can train on.
        memory: bytes it will spend on training.
        macs_per_second: multiply-accumulates a second in training, measured.
        down: bytes a second it can download.
        up: bytes a second it can upload.
        cores: CPU cores it may use.
        codecs: names of the codecs that it knows; nobody asks a simulated device.
        speeds: how fast it trains at each kind of work (`models/kinds.py`), in the kind's unit a second, measured;
            empty if only `macs_per_second` is known.
        simd_block: floats in a vector of its processor; 0 if unknown.
        levers: ways to train in less memory that it knows, by name.
        class_counts: examples of each class, if the device's owner allows to tell; else empty.
        memory_free: whether `memory` is what the device has free, so that all that training takes counts.

    """

    tier: str
    examples: int
    memory: int | None = None
    macs_per_second: float | None = None
    down: float | None = None
    up: float | None = None
    cores: int = 1
    codecs: tuple[str, ...] = ()
    speeds: Mapping[str, float] = field(default_factory=dict, hash=False)
    simd_block: int = 0
    levers: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()
    memory_free: bool = False

    def message(self, agent_version: str) -> common_pb2.DeviceProfile:
        """Return the profile as a wire message."""
        return common_pb2.DeviceProfile(
            tier=self.tier,
            # On the wire zero means unknown, so a device without memory sends 1.
            memory_bytes=0 if self.memory is None else max(1, self.memory),
            macs_per_second=self.macs_per_second or 0.0,
            bytes_per_second_down=self.down or 0.0,
            bytes_per_second_up=self.up or 0.0,
            cpu_cores=self.cores,
            examples=self.examples,
            agent_version=agent_version,
            codecs=self.codecs,
            speeds=[common_pb2.Speed(kind=kind, per_second=speed) for kind, speed in self.speeds.items()],
            simd_block=self.simd_block,
            levers=self.levers,
            class_counts=self.class_counts,
            memory_free=self.memory_free,
        )

    @staticmethod
    def from_message(message: common_pb2.DeviceProfile) -> "Profile":
        """Read a wire message; zero means unknown there, and so does a speed that makes no sense."""

        def speed(value: float) -> float | None:
            return value if 0 < value < math.inf else None

        return Profile(
            tier=message.tier,
            examples=message.examples,
            memory=message.memory_bytes or None,
            macs_per_second=speed(message.macs_per_second),
            down=speed(message.bytes_per_second_down),
            up=speed(message.bytes_per_second_up),
            cores=message.cpu_cores,
            # What nobody here knows is of no use, and may be anything.
            codecs=tuple(sorted(set(known()).intersection(message.codecs))),
            speeds={
                each.kind: each.per_second
                for each in message.speeds[:MOST_KINDS]
                if len(each.kind) <= LONGEST_KIND and speed(each.per_second)
            },
            simd_block=message.simd_block if message.simd_block in BLOCKS else 0,
            levers=tuple(name for name in message.levers[:16] if len(name) <= 64),
            class_counts=_counts(message),
            memory_free=message.memory_free,
        )

    def as_dict(self) -> dict[str, object]:
        """Return the profile for JSON."""
        return asdict(self) | {
            "codecs": list(self.codecs),
            "levers": list(self.levers),
            "class_counts": list(self.class_counts),
        }


def _counts(message: common_pb2.DeviceProfile) -> tuple[int, ...]:
    """Return what a device says of its classes; nothing if it cannot be so."""
    counts = message.class_counts
    honest = len(counts) <= MOST_CLASSES and sum(counts) == message.examples
    return tuple(counts) if honest else ()
