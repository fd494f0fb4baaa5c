"""Shared by methods that average some tensors only over the devices of one size."""

from collections.abc import Callable, Iterable

import torch

from diastole.models.channels import nested
from diastole.models.coordinates import Region, Slot, Slots, in_place
from diastole.models.methods.bases.sliced import Sliced
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, state_of
from diastole.models.training import TrainConfig


class PerSize(Sliced):
    """A method in which each size owns some tensors; its other tensors are prefixes of those of `whole`.

    An owned tensor is a global tensor that no other size has. For size k, counted from 0 for the smallest, it is called
    `sizek.name`. `whole` is on offer, so it owns tensors too.
    """

    def __init__(
        self,
        model: ModelConfig,
        specs: Iterable[SubModelSpec],
        whole: SubModelSpec,
        training: TrainConfig,
        own: Callable[[SubModelSpec, str], bool],
    ) -> None:
        """Offer `specs`; `own` says whether a spec owns the tensor of a name. Raises what `registry.build` raises."""
        super().__init__(model, [*specs, whole], whole, training)
        self.sizes = [size.spec for size in self.offers()]
        self._own = own

    def initial(self, seed: int) -> State:
        """Return fresh parameters of the whole model, and each size's own tensors from a fresh module of that size."""
        state: State = {}
        for spec in (self.whole, *self.sizes):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                values = state_of(self.module(spec))
            for name, slot in self.slots(spec).items():
                state.setdefault(slot.source, values[name])
        return state

    def origins(self) -> Slots:
        """Return the counterparts of the whole model's tensors, and of those that sizes own."""
        found: dict[str, Slot] = {}
        for spec in (self.whole, *self.sizes):
            slots = self.slots(spec)
            for name, slot in self._origins(spec).items():
                found.setdefault(slots[name].source, slot)
        return found

    def _locate(self, spec: SubModelSpec) -> Slots:
        """Return where a sub-model lies: owned tensors by themselves, the others in the shared first channels."""
        number, shapes = self.sizes.index(spec), self._shapes[spec]
        # An owned tensor may have any shape, so it does not tell how many channels the others have.
        shared = {name: shape for name, shape in shapes.items() if not self._own(spec, name)}
        found = in_place(nested(self._layout, self._shapes[self.whole], shared))
        return {
            name: found.get(name) or Slot(f"size{number}.{name}", Region.prefix(shape))
            for name, shape in shapes.items()
        }
