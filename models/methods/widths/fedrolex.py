"""FedRolex: a window of channels that rolls over the global model (Alam et al., NeurIPS 2022, section 3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diastole.models.channels import Kept, members
from diastole.models.methods.registry import MethodRow
from diastole.models.methods.widths.heterofl import HeteroConfig, Masking, Width, build, check, check_head, classes
from diastole.models.methods.widths.width import check_widths
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.proxy import Proxy
from diastole.models.spec import SubModelSpec, labelled
from diastole.models.state import State
from diastole.models.training import TrainConfig


def spec_of(width: float, config: HeteroConfig | None = None) -> SubModelSpec:
    """Return the spec of a width, plain unless `config` says otherwise."""
    config = config or HeteroConfig()
    return labelled("fedrolex", Width(width, config.masked, config.scaler), width)


class FedRolexMethod(Masking):
    """Sub-models are consecutive channels on a ring; the first of them moves on with every round.

    The channels of each set lie on a ring. In round j a sub-model keeps those from place j - 1 onwards, across the seam
    if need be, in this order; abandoned rounds do not count, so no place is passed over. Layers that read a set keep
    the channels of its window, residual streams share one window, and the input and the classes are kept whole. Each
    coordinate is averaged over the devices that hold it, weighted by their examples. A device holds a weight between
    two channels only in rounds in which both are in their windows. Between layers of equal width, windows of half the
    ring or less never hold channels on opposite sides of the ring, so only a larger size trains the weights between
    these.

    What differs from the paper and its code: a place is a normalisation group, not a channel, so that GroupNorm sees
    whole groups; every channel of a set of K has then been in every window after K / group rounds; the paper needs K.
    The window moves upwards as in the paper's formula (its code moves it downwards). Their weights by past update
    counts and the overlap mode are left out. The scaler and the masked cross-entropy of their code, which are
    HeteroFL's, are options (`models/methods/widths/heterofl.py`).
    """

    def __init__(
        self,
        model: ModelConfig,
        widths: Sequence[float],
        training: TrainConfig,
        config: HeteroConfig | None = None,
    ) -> None:
        """Offer the widths. Raises `SpecError` for a width that cannot be built, or a model that cannot be `masked`."""
        check_head(config or HeteroConfig(), model)
        specs = [spec_of(width, config) for width in check_widths(widths)]
        super().__init__(model, specs, spec_of(1.0, config), training)
        self._round = 0

    def kept(self, spec: SubModelSpec) -> Kept:
        """Return the round's window over each set of channels; a window over the ring keeps the set's order."""
        rings = self._counts(self.whole)
        return {
            name: window(rings[name], size, self._round - 1, self._model.group)
            for name, size in self._counts(spec).items()
            if size < rings[name]
        }

    def prepare(self, state: State, proxy: Proxy | None, moment: Moment) -> State:
        """Hold the global state and move the windows on by a place; the first windows begin at the first place."""
        # Not the moment's round, which also counts abandoned rounds: no `prepare` follows those.
        self._move(self._round + 1)
        return super().prepare(state, proxy, moment)

    def memory(self) -> State:
        """Return the round of the windows: how often they have been prepared."""
        return {"round": torch.tensor(self._round)}

    def resume(self, state: State, proxy: Proxy | None, moment: Moment, memory: State) -> None:
        """Hold the global state and move the windows to where they were."""
        super().resume(state, proxy, moment, memory)
        self._move(int(memory["round"]))

    def _move(self, number: int) -> None:
        self._round = number
        self._slots.clear()


def window(channels: int, kept: int, offset: int, group: int) -> Tensor:
    """Return `kept` of the `channels` on a ring, int64, from its group number `offset` onwards, whole groups only."""
    groups = (torch.arange(kept // group) + offset) % (channels // group)
    return members(groups, group)


ROW = MethodRow(
    make=FedRolexMethod,
    module=build,
    size=Width,
    source="FedRolex (Alam et al., NeurIPS 2022)",
    idea="consecutive channels of every layer, which move on each round",
    options=HeteroConfig,
    classes=classes,
    check=check,
    footnote="FedRolex is judged by its global model: its smaller sizes are windows that nobody has just trained.",
    recipe={"training.clip": 1.0, "training.schedule": "step:0.4,0.6,0.8/4"},
)
