"""What methods share whose sub-models are the first entries of every axis of the global tensors."""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TypeVar

import torch
from torch import nn

from diastole.models.compressor import IndexCompressor, Offer, Region, Slots, in_place
from diastole.models.cost import Cost, measure
from diastole.models.errors import SpecError
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, state_of
from diastole.models.training import TrainConfig

T = TypeVar("T")
Build = Callable[[ModelConfig, SubModelSpec], nn.Module]


class Sliced(IndexCompressor):
    """A method that only has to say how its modules are built: a sub-model's tensor is a prefix of its namesake.

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
        self._model, self._build = model, build
        self._shapes: dict[SubModelSpec, dict[str, torch.Size]] = {}
        offered, offers = list(dict.fromkeys(specs)), list[Offer]()
        for spec in dict.fromkeys([*offered, whole]):
            with torch.device("meta"):
                module = build(model, spec)
            self._shapes[spec] = {name: parameter.shape for name, parameter in module.named_parameters()}
            if spec in offered:
                offers.append(Offer(spec, _cost(build, model, spec, training), exported(spec)))
        super().__init__(offers)

    def initial(self, seed: int) -> State:
        """Return the parameters of a freshly initialised whole model."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return state_of(self.module(self.whole))

    def slots(self, spec: SubModelSpec) -> Slots:
        """Return the prefix of every axis. Raises `SpecError` for a sub-model that is not on offer."""
        return in_place({name: Region.prefix(shape) for name, shape in lookup(self._shapes, spec).items()})

    def module(self, spec: SubModelSpec) -> nn.Module:
        """Return a freshly initialised module of the sub-model."""
        return self._build(self._model, spec)


@lru_cache(maxsize=1 << 12)
def _cost(build: Build, model: ModelConfig, spec: SubModelSpec, training: TrainConfig) -> Cost:
    """Return what a sub-model costs; a large family takes minutes, and a run makes its compressor more than once."""
    with torch.device("meta"):
        module = build(model, spec)
    return measure(module, model.input_shape, training)


def lookup(table: Mapping[SubModelSpec, T], spec: SubModelSpec) -> T:
    """Return what `table` has for `spec`. Raises `SpecError` naming the specs it knows."""
    if spec not in table:
        raise SpecError(f"no sub-model {spec.label!r}; on offer: {', '.join(known.label for known in table)}")
    return table[spec]
