"""Who takes part in a round, and with which sub-model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from diastole.models.compressor import Offer, most_capable
from diastole.models.cost import Cost
from diastole.models.moment import Moment
from diastole.models.seeds import generator
from diastole.models.training import TrainConfig
from diastole.models.work import training_work
from diastole.proto.profile import Profile

SMOOTHING = 0.5
RECOVERY = 0.1
"""The share of what was learned against a device that a round in which nothing fits it takes back."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A device and the size it is given."""

    device: str
    offer: Offer


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tier's devices are spared, whatever they themselves say they could do; None for no limit.

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


Assign = Callable[[Mapping[str, Sequence[Offer]], Moment], Mapping[str, Offer]]
"""A method's rule (`Compressor.assign`): which of the sizes that fit it each device of a cohort is given."""


@dataclass(slots=True)
class Planner:
    """Finds who can take part in a round with which sub-models; the method's own rule then chooses.

    A size fits if its peak training memory is within the device's, if it is within the limits of the device's tier,
    and if its predicted round time (download, training, upload) is within the deadline. A device that no size fits,
    or that has no examples, takes no part. Unknown figures of a profile limit nothing.

    Attributes:
        offers: sizes on offer, smallest first.
        training: how devices train.
        seed: of the run.
        cohort: devices a round, drawn without replacement from those that something fits; None for all.
        deadline: seconds a round may take; None for no limit.
        ignore_budgets: give every device the largest size, as if it could.
        limits: of tiers, by name.
        assign: the method's rule.

    """

    offers: Sequence[Offer]
    training: TrainConfig
    seed: int
    cohort: int | None = None
    deadline: float | None = None
    ignore_budgets: bool = False
    limits: Mapping[str, Limits] = field(default_factory=dict)
    assign: Assign = most_capable
    _correction: dict[str, float] = field(default_factory=dict)

    def memory(self) -> dict[str, float]:
        """Return what was learned of each device's speed: a factor on the predicted seconds."""
        return dict(self._correction)

    def resume(self, memory: Mapping[str, float]) -> None:
        """Go on with another planner's `memory()`."""
        self._correction = dict(memory)

    def plan(self, moment: Moment, devices: Mapping[str, Profile]) -> list[Assignment]:
        """Return the round's assignments in device order; the same devices give the same plan."""
        able = {}
        for device in sorted(devices):
            offers = self.fits(device, devices[device])
            if offers and devices[device].examples:
                able[device] = offers
            elif self._correction.get(device, 1.0) > 1:
                # Left out it could never show that it was slow but once.
                self._correction[device] -= RECOVERY * (self._correction[device] - 1)
        if self.cohort is not None and self.cohort < len(able):
            draws, names = generator(self.seed, moment.round, "cohort"), list(able)
            drawn = torch.randperm(len(names), generator=draws)[: self.cohort]
            able = {name: able[name] for name in (names[int(k)] for k in drawn.sort().values)}
        given = self.assign(able, moment)
        return [Assignment(device, given[device]) for device in able]

    def fits(self, device: str, profile: Profile) -> Sequence[Offer]:
        """Return the sizes that fit the device, smallest first."""
        if self.ignore_budgets:
            return self.offers[-1:]
        return [offer for offer in self.offers if self._fits(device, profile, offer)]

    def fit(self, device: str, profile: Profile) -> Offer | None:
        """Return the most capable exported size that fits the device, or None."""
        return next((offer for offer in reversed(self.fits(device, profile)) if offer.exported), None)

    def training_seconds(self, device: str, profile: Profile, offer: Offer) -> float | None:
        """Return the predicted seconds of training, corrected by the device's past; None if unknown."""
        if profile.macs_per_second is None:
            return None
        work = training_work(offer.cost, self.training, profile.examples)
        return work / profile.macs_per_second * self._correction.get(device, 1.0)

    def observe(self, device: str, profile: Profile, offer: Offer, seconds: float) -> None:
        """Learn from how long the device really trained."""
        predicted = self.training_seconds(device, profile, offer)
        if predicted:
            before = self._correction.get(device, 1.0)
            self._correction[device] = before * (1 - SMOOTHING + SMOOTHING * seconds / predicted)

    def missed(self, device: str, profile: Profile, offer: Offer, deadline: float) -> None:
        """Learn that the device was still out at the deadline.

        It takes longer than that, and nobody knows by how much, so twice as long is assumed, transfers included.
        """
        trained = 2 * deadline - transfer_seconds(profile, offer)
        self.observe(device, profile, offer, max(trained, self.training_seconds(device, profile, offer) or 0.0))

    def _fits(self, device: str, profile: Profile, offer: Offer) -> bool:
        if profile.memory is not None and offer.cost.memory > profile.memory:
            return False
        if profile.tier in self.limits and not self.limits[profile.tier].allow(offer.cost):
            return False
        if self.deadline is None:
            return True
        seconds = (self.training_seconds(device, profile, offer) or 0.0) + transfer_seconds(profile, offer)
        return seconds <= self.deadline


def transfer_seconds(profile: Profile, offer: Offer) -> float:
    """Return the predicted seconds of download and upload; 0 for what is unknown."""
    down = offer.cost.down / profile.down if profile.down else 0.0
    return down + (offer.cost.up / profile.up if profile.up else 0.0)
