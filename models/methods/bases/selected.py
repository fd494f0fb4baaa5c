"""Shared by methods whose sub-models are some channels of every layer, not always the first ones."""

from abc import abstractmethod
from collections.abc import Mapping

from diastole.models.channels import Kept, counts, select
from diastole.models.coordinates import Slots, in_place
from diastole.models.methods.bases.sliced import Sliced
from diastole.models.spec import SubModelSpec


class Selected(Sliced):
    """A method that only has to say which channels of each set a sub-model keeps.

    All layers that write or read a set, such as those of a residual stream, then keep the same channels; the input and
    the classes are kept whole. A sub-model has one tensor for each global tensor.
    """

    @abstractmethod
    def kept(self, spec: SubModelSpec) -> Kept:
        """Return the channels that a sub-model keeps of each set that it does not keep whole.

        A subclass clears `_slots` when these channels change.
        """

    def _locate(self, spec: SubModelSpec) -> Slots:
        return in_place(select(self._layout, self._shapes[self.whole], self.kept(spec)))

    def _counts(self, spec: SubModelSpec) -> Mapping[str, int]:
        """Return how many channels of each set a sub-model on offer keeps."""
        return counts(self._layout, self._shapes[spec])
