"""Folding a round's updates: each as it comes or, if it is long, once the lengths of all are known."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from diastole.models.accumulator import scaled
from diastole.models.coordinates import Contribution
from diastole.models.errors import StateError
from diastole.models.method import Method, Weight
from diastole.models.moment import Moment
from diastole.models.state import State
from diastole.models.task import Update
from diastole.server.link import Failure
from diastole.server.opened import Opened
from diastole.server.processors import Processor, process
from diastole.server.robust.fold import Fold
from diastole.server.robust.norms import Norms, change, shortened


@dataclass(slots=True)
class Settling:
    """Folds the updates of one round.

    Attributes:
        opened: the round; learns whose updates cannot be folded.
        method: brings sub-models back.
        state: the global model that the round began with.
        held: names of its tensors that devices may not change.
        fold: takes the contributions.
        norms: of the round's updates.
        processors: what is done to each contribution.
        unit: what every weight is multiplied by before it is added up (`accumulator.unit`).
        moment: returns a moment of the round for a device's draws.
        accepted: told of every update that was folded in.
        refused: told of every update that could not be folded.

    """

    opened: Opened
    method: Method
    state: State
    held: Collection[str]
    fold: Fold
    norms: Norms
    processors: Sequence[Processor]
    unit: float
    moment: Callable[[str], Moment]
    accepted: Callable[[Update], None]
    refused: Callable[[Failure], None]
    _long: list[tuple[Update, Weight]] = field(default_factory=list)

    def settle(self, weighed: Iterable[tuple[Update, Weight]]) -> None:
        """Fold updates with their weights; when this returns, all are folded or refused."""
        for update, weight in weighed:
            self._settle(update, weight)
        for update, weight in sorted(self._long, key=lambda item: item[0].device):
            self._settle(update, weight, late=True)

    def _settle(self, update: Update, weight: Weight, *, late: bool = False) -> None:
        """Fold an update, or hold it until all norms are known."""
        try:
            if (contribution := self._contribution(update, weight, late=late)) is None:
                self._long.append((update, weight))
                return
            self.fold.add(update.device, contribution, scaled(weight, self.unit))
        except StateError as error:
            self.opened.fail(update.device)
            self.refused(Failure(update.device, str(error), faulty=True))
        else:
            self.accepted(update)

    def _contribution(self, update: Update, weight: Weight, *, late: bool) -> Contribution | None:
        """Return what an update contributes; None if it is too long to be folded before all norms are known."""
        dilated = self.method.dilate(update.told, update.spec)
        contribution = (
            {name: patch for name, patch in dilated.items() if name not in self.held} if self.held else dilated
        )
        if late:
            if (share := self.norms.share(update.device)) < 1:
                contribution = shortened(contribution, self.state, share)
        elif self.norms.most and not self.norms.near(update.device, change(contribution, self.state)):
            return None
        if not self.processors:
            return contribution
        return process(self.processors, contribution, weight, self.state, self.moment(update.device))
