"""What methods share that average some tensors only over the devices of one size."""

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
    """A method some of whose tensors are a size's own, and the others prefixes of their namesakes in `whole`.

    A size's own tensor is a global tensor that no other size has: that of size k, counted from 0 for the smallest,
    is called `sizek.name`. `whole` is on offer, so it has its own ones too.
    """

    def __init__(
        self,
        model: ModelConfig,
        specs: Iterable[SubModelSpec],
        whole: SubModelSpec,
        training: TrainConfig,
        own: Callable[[SubModelSpec, str], bool],
    ) -> None:
        """Offer `specs`, of which `own` tells which tensors are their own. Raises what `registry.build` raises."""
        super().__init__(model, [*specs, whole], whole, training)
        self.sizes = [size.spec for size in self.offers()]
        self._own = own

    def initial(self, seed: int) -> State:
        """Return the parameters of a freshly initialised whole model, and every size's own of its own module."""
        state: State = {}
        for spec in (self.whole, *self.sizes):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                values = state_of(self.module(spec))
            for name, slot in self.slots(spec).items():
                state.setdefault(slot.source, values[name])
        return state

    def _locate(self, spec: SubModelSpec) -> Slots:
        """Return where a sub-model lies: its own tensors by themselves, the others among everybody's first channels."""
        number, shapes = self.sizes.index(spec), self._shapes[spec]
        # A size's own tensor may have any shape, which says nothing of how many channels the others have.
        shared = {name: shape for name, shape in shapes.items() if not self._own(spec, name)}
        found = in_place(nested(self._layout, self._shapes[self.whole], shared))
        return {
            name: found.get(name) or Slot(f"size{number}.{name}", Region.prefix(shape))
            for name, shape in shapes.items()
        }
