"""The contract that every way of making sub-models fulfils, and what most of them share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from diastole.models.coordinates import Contribution, Slots, gather
from diastole.models.cost import Cost
from diastole.models.errors import SpecError
from diastole.models.moment import Moment
from diastole.models.proxy import Proxy
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Update
from diastole.models.training import TrainConfig

Weight = float | Mapping[str, float]
"""An update's weight in the aggregate: one number for all global tensors, or one for each tensor by name."""


@dataclass(frozen=True, slots=True)
class Size:
    """A sub-model that devices may be given, and what it costs them.

    Attributes:
        spec: names the sub-model.
        cost: of training it on a device.
        exported: whether users would deploy this size, so that it is evaluated and reported. A method with a large pool
            of sizes exports a few.

    """

    spec: SubModelSpec
    cost: Cost
    exported: bool = True


class Method(Protocol):
    """One way of making sub-models of the global model and of bringing them back.

    The coordinator calls `initial` once and `prepare` before the first round. In each round it calls `assign` once,
    `compress` for each distinct spec, `needs_all` and `weigh` once, `dilate` for each update that `weigh` yields,
    `learn` if the server trains too, and `prepare` for the next round. If a round is abandoned, the coordinator stops
    before `weigh`, or after the last update that `weigh` yields. It then calls neither `learn` nor `prepare`: the next
    round starts from the same prepared state.
    """

    whole: SubModelSpec
    """The global model as people use it. It may be larger than every size on offer; `compress` accepts it too."""

    partial: bool
    """Whether `dilate` takes the tensors of a part of a sub-model, and covers only their coordinates."""

    def offers(self) -> Sequence[Size]:
        """Return every size that a device may be given, smallest first by training work, then memory.

        If there is none, the server alone trains the global model.
        """
        ...

    def initial(self, seed: int) -> State:
        """Return the global state that a run starts from."""
        ...

    def origins(self) -> Slots:
        """Return, for each global tensor that has a counterpart in the plain network, the counterpart and its region.

        Several global tensors may have one counterpart. Tensors that are not named, such as exits or stitches, are the
        method's own. Raises `SpecError` if the method cannot tell.
        """
        ...

    def start(self, state: State, given: State) -> State:
        """Return the global state `state`, from `initial`, with given tensors in it.

        Args:
            state: fresh; what is not given stays as it is.
            given: tensors of the plain network, or global ones, by their names.

        Raises `SpecError` if the method cannot tell where they belong.

        """
        ...

    def prepare(self, state: State, proxy: Proxy | None, moment: Moment) -> State:
        """Do the server's own work for a round, and return the global state that the round starts from.

        Args:
            state: what the last round, or `initial`, has left.
            proxy: the server's own examples.
            moment: the round.

        Raises `SpecError` if the method needs a proxy set and has none.

        """
        ...

    def assign(self, fits: Mapping[str, Sequence[Size]], moment: Moment) -> Mapping[str, Size]:
        """Return the size that each device of a round's cohort is given.

        Args:
            fits: for each device, in the order of the names, the sizes that fit it, smallest first; at least one.
            moment: the round.

        """
        ...

    def compress(self, spec: SubModelSpec) -> State:
        """Return the parameters of the sub-model `spec`, made from the prepared global state."""
        ...

    def needs_all(self, moment: Moment) -> bool:
        """Return whether the method needs all updates of this round before it can weigh or dilate any.

        The coordinator then keeps the updates until the round closes; otherwise it folds and forgets each as it comes.
        """
        ...

    def weigh(self, updates: Iterable[Update], moment: Moment) -> Iterator[tuple[Update, Weight]]:
        """Yield each update with its weight in the aggregate; called once a round.

        Args:
            updates: of the round, as they come, in any order. A method that needs all gets all of them, in the order of
                the devices' names.
            moment: the round.

        """
        ...

    def dilate(self, state: State, spec: SubModelSpec) -> Contribution:
        """Return what a trained sub-model contributes, in global coordinates.

        Where `partial` is true, `state` may lack tensors that a device has not trained.
        """
        ...

    def learn(self, state: State, proxy: Proxy, training: TrainConfig, moment: Moment) -> State:
        """Return the global state after the server's own training on the proxy set, from the aggregated `state`.

        Called only if the experiment asks for such training, as it can for every method. Raises `SpecError` if the
        method needs labels and the proxy set has none.
        """
        ...

    def module(self, spec: SubModelSpec) -> nn.Module:
        """Return a freshly initialised module of a sub-model. Raises `SpecError`."""
        ...

    def memory(self) -> State:
        """Return, by name, what the method has learned beside the global state and would lose when the process ends."""
        ...

    def resume(self, state: State, proxy: Proxy | None, moment: Moment, memory: State) -> None:
        """Go on as after the `prepare` that returned `state`; `memory` is what `memory()` returned in that process."""
        ...


@runtime_checkable
class Wide(Protocol):
    """A method whose global model holds more sub-models than the method offers, for whoever looks for the best one.

    A sub-model is chosen by numbers, one from each of `choices`; a larger number is a larger sub-model, if any is.
    """

    @property
    def choices(self) -> tuple[int, ...]:
        """How many there are of each choice."""
        ...

    def at(self, numbers: Sequence[int]) -> SubModelSpec:
        """Return the sub-model of some choices."""
        ...

    def cut(self, spec: SubModelSpec) -> State:
        """Return the parameters of any sub-model that there is, from the global state that the method holds."""
        ...

    def lasting(self) -> State:
        """Return the part of `memory` that `cut` needs, by the same names."""
        ...


def by_cost(sizes: Iterable[Size]) -> list[Size]:
    """Return the sizes, smallest first by training work, then memory, then name."""
    return sorted(sizes, key=lambda size: (size.cost.training_macs, size.cost.memory, size.spec.label))


def most_capable(fits: Mapping[str, Sequence[Size]], moment: Moment) -> dict[str, Size]:
    """Return, for each device, the last, most capable of the sizes that fit it."""
    return {device: sizes[-1] for device, sizes in fits.items()}


class Base:
    """What most methods share: the most capable size for each device, FedAvg's weights, nothing to remember."""

    partial: bool = False

    def __init__(self, sizes: Iterable[Size]) -> None:
        self._sizes = by_cost(sizes)
        self._state: State = {}

    def offers(self) -> Sequence[Size]:
        """Return the sizes on offer, smallest first."""
        return tuple(self._sizes)

    def origins(self) -> Slots:
        """Refuse: a method that is to start from given weights, or to keep parts frozen, says where they lie."""
        raise SpecError(
            f"{type(self).__name__} does not say where a plain network lies in its global state, so it can neither "
            "start from given weights nor keep a part frozen"
        )

    def start(self, state: State, given: State) -> State:
        """Return the state with every given tensor where it belongs; a global tensor goes before a plain one."""
        fitting = {name for name in state if name in given and given[name].shape == state[name].shape}
        places = {
            name: slot
            for name, slot in self.origins().items()
            if slot.source in given and not (name == slot.source and name in fitting)
        }
        own = {name: given[name].clone() for name in state if name in given and name not in places}
        return {**state, **gather(given, places), **own}

    def prepare(self, state: State, proxy: Proxy | None, moment: Moment) -> State:
        """Hold the global state; most methods have no work to do for a round."""
        self._state = state
        return state

    def assign(self, fits: Mapping[str, Sequence[Size]], moment: Moment) -> Mapping[str, Size]:
        """Give each device the most capable size that fits it."""
        return most_capable(fits, moment)

    def needs_all(self, moment: Moment) -> bool:
        """Return False: an update's weight does not depend on the others."""
        return False

    def weigh(self, updates: Iterable[Update], moment: Moment) -> Iterator[tuple[Update, Weight]]:
        """Weigh each update by its examples (FedAvg, McMahan et al. 2017)."""
        for update in updates:
            yield update, float(update.examples)

    def memory(self) -> State:
        """Return nothing: most methods learn nothing beside the global state."""
        return {}

    def resume(self, state: State, proxy: Proxy | None, moment: Moment, memory: State) -> None:
        """Hold the global state."""
        self._state = state
