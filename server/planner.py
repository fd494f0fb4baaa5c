"""Who takes part in a round, and with which sub-model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from diastole.models.compressor import Offer
from diastole.models.seeds import generator
from diastole.models.training import TrainConfig
from diastole.models.work import training_work
from diastole.proto.profile import Profile

SMOOTHING = 0.5


@dataclass(frozen=True, slots=True)
class Assignment:
    """A device and the size it is given."""

    device: str
    offer: Offer


@dataclass(slots=True)
class Planner:
    """Gives each device the most capable sub-model that fits its budgets.

    A size fits if its peak training memory is within the device's, and if its predicted round time (download,
    training, upload) is within the deadline. A device that no size fits, or that has no examples, takes no part.
    Unknown figures of a profile limit nothing.

    Attributes:
        offers: sizes on offer, smallest first.
        training: how devices train.
        seed: of the run.
        cohort: devices a round, drawn without replacement from those that something fits; None for all.
        deadline: seconds a round may take; None for no limit.
        ignore_budgets: give every device the largest size, as if it could.

    """

    offers: Sequence[Offer]
    training: TrainConfig
    seed: int
    cohort: int | None = None
    deadline: float | None = None
    ignore_budgets: bool = False
    _correction: dict[str, float] = field(default_factory=dict)

    def memory(self) -> dict[str, float]:
        """Return what was learned of each device's speed: a factor on the predicted seconds."""
        return dict(self._correction)

    def resume(self, memory: Mapping[str, float]) -> None:
        """Go on with another planner's `memory()`."""
        self._correction = dict(memory)

    def plan(self, round_number: int, devices: Mapping[str, Profile]) -> list[Assignment]:
        """Return the round's assignments in device order; the same devices give the same plan."""
        able = []
        for device in sorted(devices):
            offer = self.fit(device, devices[device])
            if offer is not None and devices[device].examples:
                able.append(Assignment(device, offer))
        if self.cohort is None or self.cohort >= len(able):
            return able
        drawn = torch.randperm(len(able), generator=generator(self.seed, round_number, "cohort"))[: self.cohort]
        return [able[int(k)] for k in drawn.sort().values]

    def fit(self, device: str, profile: Profile) -> Offer | None:
        """Return the most capable size that fits the device, or None."""
        if self.ignore_budgets:
            return self.offers[-1]
        return next((offer for offer in reversed(self.offers) if self._fits(device, profile, offer)), None)

    def training_seconds(self, device: str, profile: Profile, offer: Offer) -> float | None:
        """Return the predicted seconds of training, corrected by the device's past; None if unknown."""
        if profile.macs_per_second is None:
            return None
        work = training_work(offer.cost, self.training, profile.examples)
        return work / profile.macs_per_second * self._correction.get(device, 1.0)

    def observe(self, device: str, profile: Profile, offer: Offer, seconds: float) -> None:
        """Learn from how long the device really trained, or for how long it had not come back."""
        predicted = self.training_seconds(device, profile, offer)
        if predicted:
            before = self._correction.get(device, 1.0)
            self._correction[device] = before * (1 - SMOOTHING + SMOOTHING * seconds / predicted)

    def _fits(self, device: str, profile: Profile, offer: Offer) -> bool:
        if profile.memory is not None and offer.cost.memory > profile.memory:
            return False
        if self.deadline is None:
            return True
        seconds = self.training_seconds(device, profile, offer) or 0.0
        seconds += offer.cost.bytes_down / profile.down if profile.down else 0.0
        seconds += offer.cost.bytes_up / profile.up if profile.up else 0.0
        return seconds <= self.deadline
