"""Populations of devices as they are in the field: speed, memory, links, power, availability, mishaps.

A device is drawn from its population by the run's seed and its own number alone, so device 7 of 10 is device 7 of
10,000. Ready-made populations are in `presets.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from diastole.experiments.errors import ExperimentError
from diastole.models.cost import Cost
from diastole.models.kinds import KINDS
from diastole.models.levers import KNOWN
from diastole.models.seeds import derive_seed
from diastole.models.spec import STRICT
from diastole.models.training import TrainConfig
from diastole.models.work import training_seconds
from diastole.proto.profile import Profile
from diastole.proto.registry import Registry
from diastole.simulations.field.availability import Always, Availability, Battery, uniform

GOLDEN = (math.sqrt(5) - 1) / 2


@validated(frozen=True, slots=True, config=STRICT)
class DeviceClass:
    """Devices of one kind. Medians are of log-normal distributions.

    Attributes:
        name: the tier's label in reports.
        share: of the population; shares need not sum to one.
        macs_per_second: median speed, multiply-accumulates a second in the training step that agents time
            (`client/profile.py`).
        memory: training budget, as a share of the peak memory of training the full size: the models of a study
            are small, so bytes of real devices would never be a limit.
        down: median bytes a second it downloads.
        up: likewise uploads.
        watts: while it trains, above what it draws anyway.
        radio_watts: while it transfers, likewise.
        dropout: probability that a task is never finished, for whatever reason.
        straggler: probability that a task is trained slower than usual.
        slowdown: by this factor.
        availability: when it is online.
        zones: offsets from UTC in hours, one of which is the device's.
        speed_spread: standard deviation of the logarithm of the speed.
        link_spread: likewise of the link; one draw for both directions.
        source: where the numbers come from.
        speeds: median speed at each kind of work (`models/kinds.py`), in its unit a second; if any is given, all are,
            and tell the seconds of training in the place of `macs_per_second`.

    """

    name: str
    share: float = Field(gt=0)
    macs_per_second: float = Field(gt=0)
    memory: float = Field(gt=0)
    down: float = Field(gt=0)
    up: float = Field(gt=0)
    watts: float = Field(ge=0)
    radio_watts: float = Field(ge=0)
    dropout: float = Field(default=0.0, ge=0, le=1)
    straggler: float = Field(default=0.0, ge=0, le=1)
    slowdown: float = Field(default=1.0, ge=1)
    availability: Availability = Always()
    zones: tuple[float, ...] = Field(default=(0.0,), min_length=1)
    speed_spread: float = Field(default=0.0, ge=0)
    link_spread: float = Field(default=0.0, ge=0)
    source: str = ""
    speeds: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise `ValueError` for speeds of other kinds than there are."""
        if self.speeds and set(self.speeds) != set(KINDS):
            wrong = sorted(set(self.speeds) ^ set(KINDS))
            raise ValueError(f"speeds: {', '.join(wrong)} missing or unknown; needed are {', '.join(KINDS)}")


@dataclass(frozen=True, slots=True)
class Mixture:
    """A population: device classes, each with its share."""

    name: str
    classes: tuple[DeviceClass, ...]

    def fastest(self, cost: Cost, training: TrainConfig, examples: int) -> float:
        """Return the seconds that the median device of the fastest class takes to train a sub-model of that cost."""
        return min(
            training_seconds(cost, training, examples, kind.macs_per_second, kind.speeds)
            + cost.down / kind.down
            + cost.up / kind.up
            for kind in self.classes
        )


@dataclass(frozen=True, slots=True)
class FieldDevice:
    """One device of the field.

    Attributes:
        kind: its class.
        seed: of every draw about it.
        macs_per_second: its speed, as it would announce it.
        down: bytes a second.
        up: bytes a second.
        zone: offset from UTC in hours.
        speeds: its speeds by kind of work, if its class has them.

    """

    kind: DeviceClass
    seed: int
    macs_per_second: float
    down: float
    up: float
    zone: float = 0.0
    speeds: Mapping[str, float] = field(default_factory=dict, hash=False)

    def profile(self, examples: int, full_memory: int) -> Profile:
        """Return what it announces with that many examples, where the full size trains in `full_memory` bytes."""
        memory = math.ceil(self.kind.memory * full_memory)
        speeds = (self.macs_per_second, self.down, self.up)
        return Profile(self.kind.name, examples, memory, *speeds, speeds=self.speeds, levers=KNOWN)

    def battery(self) -> float:
        """Return the joules in its battery at time 0: half full to full; infinite on mains power."""
        if not isinstance(self.kind.availability, Battery):
            return math.inf
        return self.kind.availability.capacity * (1 + uniform(self.seed, "battery")) / 2

    def charged(self, joules: float, since: float, now: float) -> float:
        """Return the joules left `now` of the `joules` at the time `since`, if no task was run in between."""
        model = self.kind.availability
        return model.level(joules, since, now, self.zone) if isinstance(model, Battery) else joules

    def online(self, now: float, joules: float = math.inf) -> bool:
        """Return whether it can take a task `now`, with `joules` left in its battery."""
        return self.kind.availability.online(self.seed, self.zone, now, joules)

    def slowdown(self, task_id: str) -> float:
        """Return the factor by which the training of a task is slower than usual."""
        return self.kind.slowdown if uniform(self.seed, task_id, "straggler") < self.kind.straggler else 1.0

    def lost_at(self, task_id: str) -> float | None:
        """Return the share of a task's duration after which the device drops out, or None if it does not."""
        if uniform(self.seed, task_id, "drop-out") >= self.kind.dropout:
            return None
        return uniform(self.seed, task_id, "drop-out at")


POPULATIONS: Registry[Mixture] = Registry(
    "population",
    {
        "phones": "diastole.simulations.field.presets:PHONES",
        "pi": "diastole.simulations.field.presets:PI",
        "wearables": "diastole.simulations.field.presets:WEARABLES",
        "mixed": "diastole.simulations.field.presets:MIXED",
        "compute-limited": "diastole.simulations.field.presets:COMPUTE_LIMITED",
        "memory-limited": "diastole.simulations.field.presets:MEMORY_LIMITED",
        "bandwidth-limited": "diastole.simulations.field.presets:BANDWIDTH_LIMITED",
    },
    Mixture,
    ExperimentError,
)
"""Ready-made populations by name; a package of one's own adds to them by an entry point."""


def draw(population: Mixture, count: int, seed: int) -> list[FieldDevice]:
    """Return `count` devices of a population; device k depends on the population, k and the seed alone."""
    return [_device(population, derive_seed(seed, "population", k), k, seed) for k in range(count)]


def _device(population: Mixture, seed: int, number: int, run: int) -> FieldDevice:
    # Multiples of the golden ratio spread evenly, so that even a few devices have the classes in proportion.
    place = (uniform(run, "population", "classes") + GOLDEN * number) % 1.0 * sum(k.share for k in population.classes)
    for kind in population.classes:
        place -= kind.share
        if place < 0:
            break
    link, pace = _lognormal(kind.link_spread, seed, "link"), _lognormal(kind.speed_spread, seed, "speed")
    return FieldDevice(
        kind=kind,
        seed=seed,
        macs_per_second=kind.macs_per_second * pace,
        speeds={name: speed * pace for name, speed in kind.speeds.items()},
        down=kind.down * link,
        up=kind.up * link,
        zone=kind.zones[int(uniform(seed, "zone") * len(kind.zones))],
    )


def _lognormal(spread: float, seed: int, purpose: str) -> float:
    return math.exp(spread * NormalDist().inv_cdf(uniform(seed, purpose)))
