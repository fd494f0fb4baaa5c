"""Shared by methods whose sub-models are the first channels of every layer of the global model."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import nn

from diastole.models.channels import Layout, nested
from diastole.models.coordinates import Slot, Slots, in_place
from diastole.models.errors import SpecError
from diastole.models.hollow import hollow
from diastole.models.method import Size
from diastole.models.methods.bases.index import Indexed
from diastole.models.methods.registry import build, cost_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import layout
from diastole.models.spec import SubModelSpec
from diastole.models.start import inside
from diastole.models.state import State, state_of
from diastole.models.training import TrainConfig

T = TypeVar("T")
Shapes = dict[str, torch.Size]


class Sliced(Indexed):
    """A method that only has to name its sizes: their modules have the first channels of every set.

    The global parameters are those of the module of `whole`.
    """

    def __init__(
        self,
        model: ModelConfig,
        specs: Iterable[SubModelSpec],
        whole: SubModelSpec,
        training: TrainConfig,
        exported: Callable[[SubModelSpec], bool] = lambda spec: True,
    ) -> None:
        """Offer `specs`; those for which `exported` returns True are evaluated. Raises what `registry.build` raises."""
        self.whole = whole
        self._model, self._layout = model, self.axes(model)
        self._shapes: dict[SubModelSpec, dict[str, torch.Size]] = {}
        offered, sizes = list(dict.fromkeys(specs)), list[Size]()
        for spec in dict.fromkeys([*offered, whole]):
            with hollow():
                module = build(model, spec)
            self._shapes[spec] = {name: parameter.shape for name, parameter in module.named_parameters()}
            if spec in offered:
                sizes.append(Size(spec, cost_of(model, spec, training), exported(spec)))
        super().__init__(sizes)
        self._slots: dict[SubModelSpec, Slots] = {}

    def axes(self, model: ModelConfig) -> Layout:
        """Return which channels each axis of each global tensor runs over; a missing tensor is sliced as a prefix."""
        return layout(model)

    def initial(self, seed: int) -> State:
        """Return the parameters of a freshly initialised whole model."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return state_of(self.module(self.whole))

    def plain(self, name: str) -> str:
        """Return the plain network's name of a tensor of a sub-model, empty if that network has none like it."""
        return name

    def origins(self) -> Slots:
        """Return the counterparts of the whole model's tensors: the first channels of the plain network's."""
        return self._origins(self.whole)

    def slots(self, spec: SubModelSpec) -> Slots:
        """Return where the sub-model lies. Raises `SpecError` for one that is not on offer."""
        lookup(self._shapes, spec)
        if spec not in self._slots:
            self._slots[spec] = self._locate(spec)
        return self._slots[spec]

    def module(self, spec: SubModelSpec) -> nn.Module:
        """Return a freshly initialised module of the sub-model."""
        return build(self._model, spec)

    def _origins(self, spec: SubModelSpec) -> Slots:
        """Return the counterparts of a sub-model's tensors, by their names in the sub-model."""
        shapes = {plain: (name, shape) for name, shape in self._shapes[spec].items() if (plain := self.plain(name))}
        places = inside(self._model, {plain: shape for plain, (_, shape) in shapes.items()})
        return {name: Slot(plain, places[plain]) for plain, (name, _) in shapes.items()}

    def _locate(self, spec: SubModelSpec) -> Slots:
        """Return where a sub-model on offer lies: the first channels. A subclass that moves it clears `_slots`."""
        return in_place(nested(self._layout, self._shapes[self.whole], self._shapes[spec]))


def lookup(table: Mapping[SubModelSpec, T], spec: SubModelSpec) -> T:
    """Return what `table` has for `spec`. Raises `SpecError` naming the specs it knows."""
    if spec not in table:
        raise SpecError(f"no sub-model {spec.label!r}; on offer: {', '.join(known.label for known in table)}")
    return table[spec]
