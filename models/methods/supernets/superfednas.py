"""SuperFedNAS: a weight-shared supernet, trained by a sandwich of devices (Khare et al., ECCV 2024).

Two things differ from the paper. Devices are never given more than fits them (`Supernet.assign`). Networks are
normalised by groups; the authors' code freezes batch normalisation as the identity and clips gradients instead.
Channels are not sorted, and there is no warm-up, unless options say so.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import cos, pi

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from diastole.models.accumulator import WEIGHT
from diastole.models.method import Weight
from diastole.models.methods.registry import MethodRow
from diastole.models.methods.supernets.architectures import Architecture, build
from diastole.models.methods.supernets.supernet import Supernet, SupernetConfig
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import STRICT
from diastole.models.task import Update
from diastole.models.training import TrainConfig


@validated(frozen=True, slots=True, config=STRICT)
class SuperFedNasConfig(SupernetConfig):
    """As for every supernet, and how much the largest sub-network's update weighs.

    Attributes:
        start: its share of the aggregate's weight in the first round.
        decay: share of the rounds over which this share falls to one update's even share.

    """

    start: float = Field(default=0.9, gt=0, lt=1)
    decay: float = Field(default=0.8, gt=0, le=1)


class SuperFedNasMethod(Supernet):
    """Sub-networks of several depths and expansions; the largest one's update weighs most at first.

    The largest one's update has the share beta(t) of the total weight; the others share the rest evenly, whatever their
    examples (the default of the authors' code). Here several devices may bring the largest sub-network back. Together
    they then have beta, which falls to their even share and never starts below it. If no device or every device brings
    it back, all updates weigh the same. The weights add up to the examples of the round.
    """

    def __init__(
        self, model: ModelConfig, widths: Sequence[float], training: TrainConfig, config: SuperFedNasConfig
    ) -> None:
        super().__init__("superfednas", model, widths, training, config, elastic=False)
        self._start, self._decay = config.start, config.decay

    def needs_all(self, moment: Moment) -> bool:
        """Return True: an update's share depends on how many there are, and how many of the largest."""
        return True

    def weigh(self, updates: Iterable[Update], moment: Moment) -> Iterator[tuple[Update, Weight]]:
        """Weigh the largest sub-network's updates by beta together, and the others by even shares of the rest."""
        everyone = list(updates)
        examples = sum(update.examples for update in everyone)
        largest = sum(update.spec == self.whole for update in everyone)
        others = len(everyone) - largest
        if largest and others:
            share = beta(moment.progress, self._start, largest / len(everyone), self._decay)
            each = {True: share / largest, False: (1 - share) / others}
            for update in everyone:
                yield update, max(each[update.spec == self.whole] * examples, 1 / WEIGHT)
        else:
            for update in everyone:
                yield update, examples / len(everyone)


def beta(progress: float, start: float, end: float, decay: float) -> float:
    """Return the largest sub-network's share of the weight: half a cosine from `start` to `end`, never below `end`.

    Args:
        progress: share of the rounds that is over, in [0, 1].
        start: at progress 0.
        end: from progress `decay` on.
        decay: in (0, 1].

    """
    return end + (max(start, end) - end) * 0.5 * (1 + cos(pi * min(progress / decay, 1.0)))


ROW = MethodRow(
    make=SuperFedNasMethod,
    module=build,
    size=Architecture,
    source="SuperFedNAS (Khare et al., ECCV 2024)",
    idea="architectures of a supernet; the largest one's update weighs most at first",
    options=SuperFedNasConfig,
    recipe={"training.clip": 1.0},
    scheduled=lambda options: True,
)
