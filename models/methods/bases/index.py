"""Shared by methods whose sub-models are selections of global coordinates."""

from abc import ABC, abstractmethod

from torch import nn

from diastole.models.coordinates import Contribution, Slots, gather, scatter
from diastole.models.method import Base
from diastole.models.moment import Moment
from diastole.models.proxy import Proxy, supervised
from diastole.models.rows import patches
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.training import TrainConfig


class Indexed(Base, ABC):
    """A method that only has to name the coordinates of its sub-models.

    A subclass sets `whole`, and gives `initial`, `slots` and `module`.
    """

    whole: SubModelSpec
    partial = True

    @abstractmethod
    def initial(self, seed: int) -> State:
        """Return the global state that a run starts from."""

    @abstractmethod
    def slots(self, spec: SubModelSpec) -> Slots:
        """Return where the tensors of a sub-model of this round lie. Raises `SpecError`."""

    @abstractmethod
    def module(self, spec: SubModelSpec) -> nn.Module:
        """Return a freshly initialised module of a sub-model. Raises `SpecError`."""

    def compress(self, spec: SubModelSpec) -> State:
        """Return the values at the sub-model's coordinates."""
        return gather(self._state, self.slots(spec))

    def dilate(self, state: State, spec: SubModelSpec) -> Contribution:
        """Put the values that came back where they came from; only their coordinates are covered."""
        return patches(state, self.slots(spec))

    def learn(self, state: State, proxy: Proxy, training: TrainConfig, moment: Moment) -> State:
        """Train the whole model on the labelled proxy set by its own objective."""
        slots = self.slots(self.whole)
        return scatter(state, slots, supervised(self.module(self.whole), gather(state, slots), proxy, training, moment))
