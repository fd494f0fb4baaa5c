"""Which devices could take part in a round, and with which sub-models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from diastole.models.cost import Cost
from diastole.models.method import Size, most_capable
from diastole.models.moment import Moment
from diastole.models.training import TrainConfig
from diastole.models.work import training_seconds
from diastole.proto.coding import PLAIN, Coding
from diastole.proto.profile import Profile
from diastole.server.sampler import Sampler

SMOOTHING = 0.5
RECOVERY = 0.1
"""A device that looks too slow for every size is sent nothing, so it cannot show that it was slow only once. After each
such round the planner forgives it this share of its slowness."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A device and the size that it is given."""

    device: str
    size: Size


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that the operator lets a device of a tier spend, even if the device offers more; None for no limit.

    Attributes:
        training_macs: multiply-accumulates of training on one example.
        memory: peak bytes of training.
        payload: bytes to download, and to upload, a round.

    """

    training_macs: int | None = None
    memory: int | None = None
    payload: int | None = None

    def allow(self, cost: Cost) -> bool:
        """Return whether a sub-model is within every limit."""
        pairs = (
            (cost.training_macs, self.training_macs),
            (cost.memory, self.memory),
            (max(cost.bytes_down, cost.bytes_up), self.payload),
        )
        return all(limit is None or spent <= limit for spent, limit in pairs)


Assign = Callable[[Mapping[str, Sequence[Size]], Moment], Mapping[str, Size]]
"""A method's rule (`Method.assign`): it gives each device of a cohort one of the sizes that fit the device."""


@dataclass(slots=True)
class Planner:
    """Finds the sub-models that fit each device; the sampler draws the cohort, and the method's own rule then chooses.

    A size fits if its peak training memory is within the device's, if it is within the limits of the device's tier,
    and if its predicted round time (download, training, upload) is within the deadline. A device that no size fits,
    or that has no examples, takes no part. Unknown figures of a profile limit nothing.

    Attributes:
        sizes: the sizes on offer, smallest first.
        training: how devices train.
        deadline: seconds a round may take; None for no limit.
        ignore_budgets: give every device the largest size, even if it does not fit.
        limits: of tiers, by name.
        assign: the method's rule.
        coding: how payloads are encoded.

    """

    sizes: Sequence[Size]
    training: TrainConfig
    deadline: float | None = None
    ignore_budgets: bool = False
    limits: Mapping[str, Limits] = field(default_factory=dict)
    assign: Assign = most_capable
    coding: Coding = PLAIN
    _correction: dict[str, float] = field(default_factory=dict)
    _declined: dict[str, tuple[int, int | None]] = field(default_factory=dict)

    def memory(self) -> dict[str, float]:
        """Return what was learned of each device's speed: a factor on the predicted seconds."""
        return dict(self._correction)

    def resume(self, memory: Mapping[str, float]) -> None:
        """Go on with another planner's `memory()`."""
        self._correction = dict(memory)

    def plan(self, moment: Moment, devices: Mapping[str, Profile], sampler: Sampler) -> list[Assignment]:
        """Return the round's assignments in device order; the same devices give the same plan."""
        able = {}
        for device in sorted(devices):
            sizes = self.fits(device, devices[device])
            if sizes and devices[device].examples:
                able[device] = sizes
            elif self._correction.get(device, 1.0) > 1:
                self._correction[device] -= RECOVERY * (self._correction[device] - 1)
        cohort = {device: able[device] for device in sampler.sample(list(able), moment)}
        given = self.assign(cohort, moment)
        return [Assignment(device, given[device]) for device in cohort]

    def fits(self, device: str, profile: Profile) -> Sequence[Size]:
        """Return the sizes that fit the device, smallest first."""
        if self.ignore_budgets:
            return self.sizes[-1:]
        return [size for size in self.sizes if self._fits(device, profile, size)]

    def fit(self, device: str, profile: Profile) -> Size | None:
        """Return the most capable exported size that fits the device, or None."""
        return next((size for size in reversed(self.fits(device, profile)) if size.exported), None)

    def training_seconds(self, device: str, profile: Profile, size: Size) -> float | None:
        """Return the predicted seconds of training, corrected by the device's past; None if unknown."""
        if profile.macs_per_second is None:
            return None
        speeds = (profile.macs_per_second, profile.speeds)
        return training_seconds(size.cost, self.training, profile.examples, *speeds) * self._correction.get(device, 1.0)

    def transfer_seconds(self, profile: Profile, size: Size) -> float:
        """Return the predicted seconds of download and upload; 0 for what is unknown."""
        cost, found = size.cost, 0.0
        if profile.down:
            found += (cost.untrained + self.coding.bytes_down(cost.shapes, cost.up)) / profile.down
        if profile.up:
            found += self.coding.bytes_up(cost.shapes, cost.up) / profile.up
        return found

    def observe(self, device: str, profile: Profile, size: Size, seconds: float) -> None:
        """Learn from how long the device really trained."""
        predicted = self.training_seconds(device, profile, size)
        if predicted:
            before = self._correction.get(device, 1.0)
            self._correction[device] = before * (1 - SMOOTHING + SMOOTHING * seconds / predicted)

    def missed(self, device: str, profile: Profile, size: Size, deadline: float) -> None:
        """Learn that the device had not delivered by the deadline.

        Nobody knows how much longer it would have taken. The planner assumes twice the deadline, transfers included.
        """
        trained = 2 * deadline - self.transfer_seconds(profile, size)
        self.observe(device, profile, size, max(trained, self.training_seconds(device, profile, size) or 0.0))

    def declined(self, device: str, profile: Profile, size: Size) -> None:
        """Learn that the device has too little memory for a size, whatever its profile says.

        It is given nothing of as much memory again before it announces more than in `profile`.
        """
        self._declined[device] = (size.cost.memory, profile.memory)

    def _fits(self, device: str, profile: Profile, size: Size) -> bool:
        if profile.memory is not None and size.cost.memory > profile.memory:
            return False
        declined, announced = self._declined.get(device, (None, None))
        more = announced is not None and (profile.memory or 0) > announced
        if declined is not None and size.cost.memory >= declined and not more:
            return False
        if profile.tier in self.limits and not self.limits[profile.tier].allow(size.cost):
            return False
        if self.deadline is None:
            return True
        seconds = (self.training_seconds(device, profile, size) or 0.0) + self.transfer_seconds(profile, size)
        return seconds <= self.deadline
