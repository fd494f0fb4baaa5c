"""The contract that every way of making sub-models fulfils, and what index-based methods share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from diastole.models.cost import Cost
from diastole.models.errors import SpecError
from diastole.models.moment import Moment
from diastole.models.seeds import generator
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, state_of
from diastole.models.training import Examples, TrainConfig, fit


@dataclass(frozen=True, slots=True)
class Region:
    """Coordinates of one global tensor: the outer product of one set of indices an axis.

    `axes` are either all slices, or all int64 index tensors without repetition. The empty tuple is a scalar.
    """

    axes: tuple[slice, ...] | tuple[Tensor, ...]

    @staticmethod
    def prefix(shape: Sequence[int]) -> "Region":
        """Return the first `shape[k]` indices of every axis k."""
        return Region(tuple(slice(0, size) for size in shape))

    @property
    def _key(self) -> tuple[slice | Tensor, ...]:
        dims = range(len(self.axes))
        axes: Sequence[slice | Tensor] = self.axes
        return tuple(
            axis.reshape([-1 if other == dim else 1 for other in dims]) if isinstance(axis, Tensor) else axis
            for dim, axis in enumerate(axes)
        )

    def rows(self, start: int, stop: int) -> "Region":
        """Return the part of this region from its row `start` up to, not including, its row `stop`."""
        first, *rest = self.axes
        if isinstance(first, Tensor):
            return Region((first[start:stop], *rest))
        return Region((slice(first.start + start, min(first.start + stop, first.stop)), *rest))

    def view(self, tensor: Tensor) -> Tensor:
        """Return the values of `tensor` in this region; a copy only if the axes are index tensors."""
        return tensor[self._key]

    def take(self, tensor: Tensor) -> Tensor:
        """Return a copy of the values of `tensor` in this region."""
        return tensor[self._key].clone()

    def add_(self, tensor: Tensor, values: Tensor) -> None:
        """Add `values` to `tensor` in this region, in place."""
        tensor[self._key] += values

    def put_(self, tensor: Tensor, values: Tensor) -> None:
        """Set the values of `tensor` in this region, in place."""
        tensor[self._key] = values


@dataclass(frozen=True, slots=True)
class Scalars:
    """Any set of coordinates of one global tensor, which a `Region`, an outer product, may be unable to name.

    `index` is int64 `[n]` into the flattened tensor (row-major), without repetition; values have the shape `[n]`.
    """

    index: Tensor

    def rows(self, start: int, stop: int) -> "Scalars":
        """Return the coordinates from number `start` up to, not including, number `stop`."""
        return Scalars(self.index[start:stop])

    def view(self, tensor: Tensor) -> Tensor:
        """Return a copy of the values of `tensor` at these coordinates."""
        return tensor.take(self.index)

    def take(self, tensor: Tensor) -> Tensor:
        """Return a copy of the values of `tensor` at these coordinates."""
        return tensor.take(self.index)

    def add_(self, tensor: Tensor, values: Tensor) -> None:
        """Add `values` to `tensor` at these coordinates, in place."""
        tensor.put_(self.index, values.expand(self.index.shape), accumulate=True)

    def put_(self, tensor: Tensor, values: Tensor) -> None:
        """Set the values of `tensor` at these coordinates, in place."""
        tensor.put_(self.index, values.expand(self.index.shape))


Coordinates = Region | Scalars
"""Where in a global tensor values belong."""


@dataclass(frozen=True, slots=True)
class Patch:
    """New values for some coordinates of one global tensor; `values` has the shape that they are taken in."""

    region: Coordinates
    values: Tensor


Contribution = Mapping[str, Patch]
"""What one device says of the global model: values in global coordinates, and the coordinates they speak for.
A tensor that is absent is not covered at all."""


Weight = float | Mapping[str, float]
"""What an update weighs in the aggregate: as much in every global tensor, or in each, by name, what is said there."""
NO_LABEL = -1


@dataclass(frozen=True, slots=True)
class Proxy:
    """The server's own examples; `validation` is for selection only and is never trained on.

    A label of `NO_LABEL` says that there is none.
    """

    training: Examples
    validation: Examples

    @property
    def labelled(self) -> bool:
        """Whether every example has a label."""
        return not any(bool((part.y == NO_LABEL).any()) for part in (self.training, self.validation))

    def without_labels(self) -> "Proxy":
        """Return the same examples without their labels."""
        parts = (self.training, self.validation)
        return Proxy(*(Examples(part.x, torch.full_like(part.y, NO_LABEL)) for part in parts))


@dataclass(frozen=True, slots=True)
class Offer:
    """A size that a method offers, and what it costs a device.

    Attributes:
        spec: the size.
        cost: to train it.
        exported: it is one of the sizes that users would deploy, so it is evaluated and reported. A method with a
            large pool of sizes marks a few.

    """

    spec: SubModelSpec
    cost: Cost
    exported: bool = True


def by_cost(offers: Iterable[Offer]) -> list[Offer]:
    """Return the offers, smallest first by training work, then memory, then name."""
    return sorted(offers, key=lambda offer: (offer.cost.training_macs, offer.cost.memory, offer.spec.label))


@dataclass(frozen=True, slots=True)
class Return:
    """What one device brought back: the trained sub-model and its number of examples."""

    spec: SubModelSpec
    state: State
    examples: int


class Compressor(Protocol):
    """One way of making sub-models of the global model and of bringing them back.

    A round calls, in this order: `assign` once, `compress` for each distinct spec, `reconcile` once with what came
    back if `reconciles` is set, `dilate` for each device, `learn` once if the server trains too, and `prepare` once
    for the round that follows. `prepare` also comes before the first round. A round may be abandoned before
    `learn`; nothing is then prepared for the one that follows, whose number only `assign` tells.
    """

    reconciles: bool
    """True: `reconcile` must see all of a round's updates before any can be dilated, so the server keeps them
    until the round closes. False: updates are dilated and folded as they come."""

    whole: SubModelSpec
    """The global model as people use it, which may be larger than every size on offer; `compress` takes it too."""

    def initial(self, seed: int) -> State:
        """Return the global state that a run starts from."""
        ...

    def specs(self) -> list[Offer]:
        """Return every size that a device may be given, smallest first by training work, then memory."""
        ...

    def assign(self, fits: Mapping[str, Sequence[Offer]], moment: Moment) -> Mapping[str, Offer]:
        """Return the size that each device of a round's cohort is given.

        Args:
            fits: for each device, by name in order, the sizes within its budgets, smallest first; at least one.
            moment: the round.

        """
        ...

    def prepare(self, state: State, proxy: Proxy | None, moment: Moment) -> None:
        """Do the server's own work for a round that starts from the global `state`.

        Raises `SpecError` if the method needs a proxy set and has none.
        """
        ...

    def memory(self) -> State:
        """Return what the method has learned and would lose with the process, by name; may be empty."""
        ...

    def resume(self, state: State, proxy: Proxy | None, moment: Moment, memory: State) -> None:
        """Stand as after `prepare(state, proxy, moment)` in the process whose `memory()` this is, without its work."""
        ...

    def compress(self, spec: SubModelSpec) -> State:
        """Return the sub-model of the prepared global state that a device of `spec` trains."""
        ...

    def reconcile(self, returns: Sequence[Return], seed: int) -> Sequence[Weight]:
        """Return the weight of each update in the aggregate; may fit `dilate` to them first.

        The result depends on the order of `returns`; callers sort them by device.
        """
        ...

    def dilate(self, state: State, spec: SubModelSpec) -> Contribution:
        """Return what a trained sub-model says in global coordinates."""
        ...

    def learn(self, state: State, proxy: Proxy, training: TrainConfig, moment: Moment) -> State:
        """Return the global state after the server's own training on the proxy set, from the aggregated `state`.

        Raises `SpecError` if the method needs labels and the proxy set has none.
        Called only if the experiment asks for such training, which it then does for every method alike.
        """
        ...


def most_capable(fits: Mapping[str, Sequence[Offer]], moment: Moment) -> dict[str, Offer]:
    """Return, for each device, the last of the sizes that fit it."""
    return {device: offers[-1] for device, offers in fits.items()}


class Base:
    """What most methods share: the most capable size for each device, FedAvg's weights, supervised proxy training."""

    reconciles = False

    def __init__(self, offers: Iterable[Offer]) -> None:
        self._offers = by_cost(offers)
        self._state: State = {}

    def specs(self) -> list[Offer]:
        """Return the sizes on offer, smallest first."""
        return list(self._offers)

    def assign(self, fits: Mapping[str, Sequence[Offer]], moment: Moment) -> Mapping[str, Offer]:
        """Give each device the most capable size within its budgets."""
        return most_capable(fits, moment)

    def memory(self) -> State:
        """Return nothing: most methods learn nothing beside the global state."""
        return {}

    def reconcile(self, returns: Sequence[Return], seed: int) -> Sequence[Weight]:
        """Weigh each update by its examples (FedAvg, McMahan et al. 2017)."""
        return [float(item.examples) for item in returns]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor of a sub-model lies in the global model: the global tensor's name, and the region of it."""

    source: str
    region: Coordinates


Slots = Mapping[str, Slot]
"""For each tensor of a sub-model, by its name there, where it lies. No two share a global coordinate."""


def in_place(regions: Mapping[str, Coordinates]) -> Slots:
    """Return the slots of a sub-model whose tensors have the names of the global ones."""
    return {name: Slot(name, region) for name, region in regions.items()}


class IndexCompressor(Base, ABC):
    """A method whose sub-models are selections of global coordinates: it only has to name them.

    A subclass sets `whole`, and gives `slots` and the modules.
    """

    whole: SubModelSpec

    @abstractmethod
    def slots(self, spec: SubModelSpec) -> Slots:
        """Return where the tensors of a sub-model of this round lie. Raises `SpecError`."""

    @abstractmethod
    def module(self, spec: SubModelSpec) -> nn.Module:
        """Return a freshly initialised module of a sub-model. Raises `SpecError`."""

    def prepare(self, state: State, proxy: Proxy | None, moment: Moment) -> None:
        """Hold the global state; a selection needs no work."""
        self._state = state

    def resume(self, state: State, proxy: Proxy | None, moment: Moment, memory: State) -> None:
        """Hold the global state."""
        self._state = state

    def compress(self, spec: SubModelSpec) -> State:
        """Return the selected coordinates."""
        return gather(self._state, self.slots(spec))

    def dilate(self, state: State, spec: SubModelSpec) -> Contribution:
        """Put the values back where they came from; only they are covered."""
        return {slot.source: Patch(slot.region, state[name]) for name, slot in self.slots(spec).items()}

    def learn(self, state: State, proxy: Proxy, training: TrainConfig, moment: Moment) -> State:
        """Train the whole model on the labelled proxy set by its own objective."""
        slots = self.slots(self.whole)
        return scatter(state, slots, supervised(self.module(self.whole), gather(state, slots), proxy, training, moment))


def supervised(module: nn.Module, state: State, proxy: Proxy, training: TrainConfig, moment: Moment) -> State:
    """Return the parameters of a module after training from `state` on the labelled proxy set, by its own objective.

    Raises `SpecError` if the proxy set has no labels.
    """
    if not proxy.labelled:
        raise SpecError("the proxy set has no labels, so nothing can be trained on it by its labels")
    module.load_state_dict(state)
    with torch.enable_grad():
        fit(module, proxy.training, training, generator(moment.seed), moment.progress)
    return state_of(module)


def gather(state: State, slots: Slots) -> State:
    """Return a copy of the coordinates of the global `state` that the slots name, by the sub-model's names."""
    return {name: slot.region.take(state[slot.source]) for name, slot in slots.items()}


def scatter(state: State, slots: Slots, values: State) -> State:
    """Return a copy of the global `state` with a sub-model's `values` put where the slots say."""
    changed = {source: state[source].clone() for source in {slot.source for slot in slots.values()}}
    for name, slot in slots.items():
        slot.region.put_(changed[slot.source], values[name])
    return {**state, **changed}


def full_region(tensor: Tensor) -> Region:
    """Return every coordinate of `tensor`."""
    return Region.prefix(tensor.shape)


def covered(contribution: Contribution, state: State) -> dict[str, Tensor]:
    """Return, for each global tensor, a boolean mask of the coordinates that `contribution` speaks for."""
    masks = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in state.items()}
    for name, patch in contribution.items():
        patch.region.put_(masks[name], torch.tensor(True))
    return masks
