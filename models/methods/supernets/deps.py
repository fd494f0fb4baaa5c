"""DepS: delayed epsilon-shrinking (Annavajjala et al., ECCV 2024), federated.

The largest sub-network is trained alone for about half of the run, then sub-networks join in whose learning rate rises
from zero: the supernet is never hurt by sub-networks that are still bad. What differs from the paper, and why:

* In the paper one machine trains the largest, the smallest and two random sub-networks in every step; here each
  device trains one, and the cohort of a round is the sandwich.
* During the warm-up a device that cannot hold the largest sub-network trains the largest it can: left out, its
  examples would be lost for half of the run.
* The ramp is applied on the server. If a round brings updates of the largest sub-network, the others weigh their
  examples times the factor: the mean is then the paper's sum of gradients, up to second order and a common factor. If a
  round brings none, a weight would cancel in the mean, so the changes of the devices are multiplied instead
  (`sent + factor * change`). Both also work with Adam, which undoes a factor on the loss.
* Devices train on labels. The paper's sub-networks learn from the largest one's logits alone, and few devices can
  hold that one.
"""

from collections.abc import Iterable, Iterator, Sequence

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from diastole.models.coordinates import Contribution, Patch
from diastole.models.method import Weight
from diastole.models.methods.registry import MethodRow
from diastole.models.methods.supernets.architectures import Architecture, build
from diastole.models.methods.supernets.supernet import Supernet, SupernetConfig
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import STRICT, SubModelSpec
from diastole.models.state import State
from diastole.models.task import Update
from diastole.models.training import TrainConfig


@validated(frozen=True, slots=True, config=STRICT)
class DepsConfig(SupernetConfig):
    """As for every supernet, and the ramp.

    Attributes:
        warmup: share of the rounds of the warm-up; the paper found a half best.
        ramp: share of the rounds, after the warm-up, over which sub-networks come to count in full. The paper's 5 of
            270 epochs would be a round or two of a short run.

    """

    warmup: float = Field(default=0.5, ge=0, lt=1)
    ramp: float = Field(default=0.1, ge=0, le=1)


class DepsMethod(Supernet):
    """Sub-networks of several depths and expansions that join late and slowly; kernels are fixed, as in the paper.

    Only in rounds of the ramp the server keeps all updates, until it knows whether the largest came back.
    """

    def __init__(self, model: ModelConfig, widths: Sequence[float], training: TrainConfig, config: DepsConfig) -> None:
        super().__init__("deps", model, widths, training, config, elastic=False)
        self._ramp, self._fade = config.ramp, 1.0

    def factor(self, moment: Moment) -> float:
        """Return how much a sub-network counts in a round: linear after the warm-up, from 0 to 1."""
        late = moment.round - self.warm_rounds(moment)
        return 1.0 if late <= 0 or not self._ramp else min(1.0, late / (self._ramp * moment.rounds))

    def needs_all(self, moment: Moment) -> bool:
        """Return whether it is a round of the ramp."""
        return self.factor(moment) < 1

    def weigh(self, updates: Iterable[Update], moment: Moment) -> Iterator[tuple[Update, Weight]]:
        """Weigh each update by its examples; if the largest came back, the others also by the ramp's factor."""
        share = self._fade = 1.0
        if self.needs_all(moment):
            updates = list(updates)
            if any(update.spec == self.whole for update in updates):
                share = self.factor(moment)
            else:
                self._fade = self.factor(moment)
        for update in updates:
            yield update, update.examples * (1.0 if update.spec == self.whole else share)

    def dilate(self, state: State, spec: SubModelSpec) -> Contribution:
        """Put the values back where they came from; without the largest, scale changes by the ramp's factor."""
        contribution = super().dilate(state, spec)
        if spec == self.whole or self._fade == 1:
            return contribution
        faded = {}
        for name, patch in contribution.items():
            sent = patch.region.view(self._state[name])
            faded[name] = Patch(patch.region, sent + self._fade * (patch.values - sent))
        return faded


ROW = MethodRow(
    make=DepsMethod,
    module=build,
    size=Architecture,
    source="DepS (Annavajjala et al., ECCV 2024)",
    idea="architectures of a supernet that join in late and slowly",
    options=DepsConfig,
    scheduled=lambda options: bool(options.warmup or options.ramp),
)
