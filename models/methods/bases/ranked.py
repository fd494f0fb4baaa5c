"""Shared by methods whose sub-models are the first channels of every layer, in an order that may be learned."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from diastole.models.channels import Kept, counts, importance, members
from diastole.models.hollow import hollow
from diastole.models.methods.bases.selected import Selected
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import narrowed, network
from diastole.models.proxy import Proxy
from diastole.models.spec import STRICT, SubModelSpec
from diastole.models.state import State
from diastole.models.training import TrainConfig


@validated(frozen=True, slots=True, config=STRICT)
class RankConfig:
    """Which channels come first.

    Attributes:
        sort: whether the most important channels come first; if not, the order is that of the global tensors.
        every: rounds from one sort to the next; 0 to sort once, after the first round.
        keep: widths whose sets of channels only the first sort may change.

    """

    sort: bool = False
    every: int = Field(default=0, ge=0)
    keep: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()


class Ranked(Selected):
    """A method whose sub-models are the first channels of every set.

    With `sort`, the server orders the channels by importance before it slices, as once-for-all networks do between the
    phases of their training (Cai et al., ICLR 2020, section 3.3; `channels.importance`). Two things differ. Whole
    normalisation groups are sorted, by the sum over their channels, so that GroupNorm sees the same groups. The order
    is kept beside the global tensors, which never move, so that the server optimiser's moments and all that was learned
    of a coordinate stay with the coordinate. The whole model in sorted order is the same function.

    The initial state is random, so there is nothing to sort at first: the first sort comes after the first `every`
    rounds (after the first round, if `every` is 0). A later sort may change which channels a size consists of, unless
    its width is in `keep`. Channels then do not cross the edge of this size, as in once-for-all networks for sizes that
    have been trained. If `keep` had every width, a later sort would change nothing.
    """

    def __init__(
        self,
        model: ModelConfig,
        specs: Iterable[SubModelSpec],
        whole: SubModelSpec,
        training: TrainConfig,
        config: RankConfig,
    ) -> None:
        super().__init__(model, specs, whole, training)
        self._config, self._sorted = config, 0
        self._order: dict[str, Tensor] = {}
        if config.sort:
            self._order = {name: torch.arange(size) for name, size in self._counts(whole).items()}
        with hollow():
            fixed = [network(model, narrowed(model, width)) for width in sorted(config.keep)]
        self._fixed = [counts(self._layout, {n: p.shape for n, p in net.named_parameters()}) for net in fixed]

    def kept(self, spec: SubModelSpec) -> Kept:
        """Return the first channels, in order of rank."""
        return {
            name: self._order[name][:size] if name in self._order else slice(0, size)
            for name, size in self._counts(spec).items()
        }

    def prepare(self, state: State, proxy: Proxy | None, moment: Moment) -> State:
        """Hold the global state, and sort its channels if it is time to."""
        super().prepare(state, proxy, moment)
        if self._config.sort and self._due(moment.round):
            self._sort(state)
            self._sorted = moment.round
            self._slots.clear()
        return state

    def memory(self) -> State:
        """Return the order of the channels, and the round before which it was made."""
        if not self._config.sort:
            return {}
        return {"sorted": torch.tensor(self._sorted), **{f"order/{name}": o for name, o in self._order.items()}}

    def resume(self, state: State, proxy: Proxy | None, moment: Moment, memory: State) -> None:
        """Hold the global state, and take the order as it is."""
        super().resume(state, proxy, moment, memory)
        if self._config.sort:
            self._sorted = int(memory["sorted"])
            self._order = {name: memory[f"order/{name}"].clone() for name in self._order}
            self._slots.clear()

    def _due(self, number: int) -> bool:
        """Return whether to sort before round `number`."""
        if not self._config.every:
            return not self._sorted and number > 1
        return number - max(1, self._sorted) >= self._config.every

    def _sort(self, state: State) -> None:
        group = self._model.group
        for name, scores in importance(self._layout, state).items():
            fixed = [sizes[name] // group for sizes in self._fixed] if self._sorted else []
            groups = rank(scores.view(-1, group).sum(1), self._order[name][::group] // group, fixed)
            self._order[name] = members(groups, group)


def rank(scores: Tensor, before: Tensor, fixed: Sequence[int]) -> Tensor:
    """Return an order, as positions in `scores`, in which higher scores come first.

    Args:
        scores: what is ordered, `[n]`.
        before: the order so far: a permutation of the positions in `scores`. Of equal scores, the one that came first
            stays first.
        fixed: numbers, ascending; for each number k, the first k of the order stay the same set.

    """
    parts = [before[start:stop] for start, stop in pairwise((0, *fixed, len(before)))]
    return torch.cat([part[scores[part].argsort(descending=True, stable=True)] for part in parts])
