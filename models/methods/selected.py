"""What methods share whose sub-models are some channels of every layer, not always the first ones."""

from abc import abstractmethod
from collections.abc import Callable, Iterable

from diastole.models.channels import Kept, counts, select
from diastole.models.compressor import Slots, in_place
from diastole.models.methods.sliced import Build, Sliced, lookup
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import layout
from diastole.models.spec import SubModelSpec
from diastole.models.training import TrainConfig


class Selected(Sliced):
    """A method that only has to say which channels of each set a sub-model keeps.

    What writes a channel and all that read it, the layers of a residual stream among them, then keep the same ones;
    the input and the classes are kept whole. A sub-model has a tensor of its own for each global one.
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
        super().__init__(model, specs, whole, build, training, exported)
        self._layout = layout(model)
        self._counts = {spec: counts(self._layout, shapes) for spec, shapes in self._shapes.items()}
        self._chosen: dict[SubModelSpec, Slots] = {}

    @abstractmethod
    def kept(self, spec: SubModelSpec) -> Kept:
        """Return the channels that a sub-model keeps of each set that it does not keep whole.

        A subclass calls `_choose_anew` when they change.
        """

    def slots(self, spec: SubModelSpec) -> Slots:
        """Return where the channels lie that are kept. Raises `SpecError` for a sub-model that is not on offer."""
        lookup(self._shapes, spec)
        if spec not in self._chosen:
            self._chosen[spec] = in_place(select(self._layout, self._shapes[self.whole], self.kept(spec)))
        return self._chosen[spec]

    def _choose_anew(self) -> None:
        self._chosen.clear()
