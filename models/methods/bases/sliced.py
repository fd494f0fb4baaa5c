"""What methods share whose sub-models are the first channels of every layer of the global model."""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TypeVar

import torch
from torch import nn

from diastole.models.channels import Layout, nested
from diastole.models.compressor import IndexCompressor, Offer, Slots, in_place
from diastole.models.cost import Cost, measure
from diastole.models.errors import SpecError
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import layout
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, state_of
from diastole.models.training import TrainConfig

T = TypeVar("T")
Build = Callable[[ModelConfig, SubModelSpec], nn.Module]
Shapes = dict[str, torch.Size]


@lru_cache(maxsize=1 << 12)
def cost_of(build: Build, model: ModelConfig, spec: SubModelSpec, training: TrainConfig) -> Cost:
    """Return what training a sub-model costs, measured once a process. Raises what `build` raises."""
    with torch.device("meta"):
        module = build(model, spec)
    return measure(module, model.input_shape, training)


class Sliced(IndexCompressor):
    """A method that only has to say how its modules are built: they have the first channels of every set.

    The parameters of the module of `whole` are the global ones.
    """

    def __init__(
        self,
        model: ModelConfig,
        specs: Iterable[SubModelSpec],
        whole: SubModelSpec,
        build: Build,
        training: TrainConfig,
        exported: Callable[[SubModelSpec], bool] = lambda spec: True,
    ) -> None:
        """Offer `specs`; those that `exported` says are evaluated. Raises what `build` raises."""
        self.whole = whole
        self._model, self._build, self._layout = model, build, self.axes(model)
        self._shapes: dict[SubModelSpec, dict[str, torch.Size]] = {}
        offered, offers = list(dict.fromkeys(specs)), list[Offer]()
        for spec in dict.fromkeys([*offered, whole]):
            with torch.device("meta"):
                module = build(model, spec)
            self._shapes[spec] = {name: parameter.shape for name, parameter in module.named_parameters()}
            if spec in offered:
                offers.append(Offer(spec, cost_of(build, model, spec, training), exported(spec)))
        super().__init__(offers)
        self._slots: dict[SubModelSpec, Slots] = {}

    def axes(self, model: ModelConfig) -> Layout:
        """Return which channels each axis of each global tensor runs over; one that is not there is a prefix."""
        return layout(model)

    def initial(self, seed: int) -> State:
        """Return the parameters of a freshly initialised whole model."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return state_of(self.module(self.whole))

    def slots(self, spec: SubModelSpec) -> Slots:
        """Return where the sub-model lies. Raises `SpecError` for one that is not on offer."""
        lookup(self._shapes, spec)
        if spec not in self._slots:
            self._slots[spec] = self._locate(spec)
        return self._slots[spec]

    def module(self, spec: SubModelSpec) -> nn.Module:
        """Return a freshly initialised module of the sub-model."""
        return self._build(self._model, spec)

    def _locate(self, spec: SubModelSpec) -> Slots:
        """Return where a sub-model on offer lies: the first channels. A subclass that moves it clears `_slots`."""
        return in_place(nested(self._layout, self._shapes[self.whole], self._shapes[spec]))


def lookup(table: Mapping[SubModelSpec, T], spec: SubModelSpec) -> T:
    """Return what `table` has for `spec`. Raises `SpecError` naming the specs it knows."""
    if spec not in table:
        raise SpecError(f"no sub-model {spec.label!r}; on offer: {', '.join(known.label for known in table)}")
    return table[spec]
