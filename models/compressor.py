"""The contract that every way of making sub-models fulfils, and what index-based methods share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diastole.models.cost import Cost
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.training import Examples


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
class Patch:
    """New values for a region of one global tensor; `values` has the region's shape."""

    region: Region
    values: Tensor


Contribution = Mapping[str, Patch]
"""What one device says of the global model: values in global coordinates, and the coordinates they speak for.
A tensor that is absent is not covered at all."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """The server's own labelled examples; `validation` is for selection only and is never trained on."""

    training: Examples
    validation: Examples


@dataclass(frozen=True, slots=True)
class Offer:
    """A size that a method offers, and what it costs a device."""

    spec: SubModelSpec
    cost: Cost


@dataclass(frozen=True, slots=True)
class Return:
    """What one device brought back: the trained sub-model and its number of examples."""

    spec: SubModelSpec
    state: State
    examples: int


class Compressor(Protocol):
    """One way of making sub-models of the global model and of bringing them back.

    A round calls, in this order: `prepare` once, `compress` for each distinct spec, `reconcile` once with what
    came back if `reconciles` is set, and `dilate` for each device.
    """

    reconciles: bool
    """True: `reconcile` must see all of a round's updates before any can be dilated, so the server keeps them
    until the round closes. False: updates are dilated and folded as they come."""

    def specs(self) -> list[Offer]:
        """Return the sizes on offer, smallest first by training work, then memory."""
        ...

    def prepare(self, state: State, proxy: Proxy | None, seed: int) -> None:
        """Do the server's own work for a round that starts from the global `state`.

        Raises `SpecError` if the method needs a proxy set and has none.
        """
        ...

    def memory(self) -> State:
        """Return what the method has learned and would lose with the process, by name; may be empty."""
        ...

    def resume(self, state: State, proxy: Proxy | None, memory: State) -> None:
        """Stand as after `prepare(state, proxy, ...)` in the process whose `memory()` this is, without its work."""
        ...

    def compress(self, spec: SubModelSpec) -> State:
        """Return the sub-model of the prepared global state that a device of `spec` trains."""
        ...

    def reconcile(self, returns: Sequence[Return], seed: int) -> list[float]:
        """Return the weight of each update in the aggregate; may fit `dilate` to them first.

        The result depends on the order of `returns`; callers sort them by device.
        """
        ...

    def dilate(self, state: State, spec: SubModelSpec) -> Contribution:
        """Return what a trained sub-model says in global coordinates."""
        ...


class IndexCompressor(ABC):
    """A method whose sub-models are selections of global coordinates: it only has to name them."""

    reconciles = False

    def __init__(self, offers: Sequence[Offer]) -> None:
        self._offers = sorted(offers, key=lambda offer: (offer.cost.training_macs, offer.cost.memory))
        self._state: State = {}

    @abstractmethod
    def regions(self, spec: SubModelSpec) -> Mapping[str, Region]:
        """Return the region of each global tensor that the sub-model holds. Raises `SpecError`."""

    def specs(self) -> list[Offer]:
        """Return the sizes on offer, smallest first."""
        return list(self._offers)

    def prepare(self, state: State, proxy: Proxy | None, seed: int) -> None:
        """Hold the global state; a selection needs no work."""
        self._state = state

    def memory(self) -> State:
        """Return nothing: a selection learns nothing."""
        return {}

    def resume(self, state: State, proxy: Proxy | None, memory: State) -> None:
        """Hold the global state."""
        self._state = state

    def compress(self, spec: SubModelSpec) -> State:
        """Return the selected coordinates."""
        return {name: region.take(self._state[name]) for name, region in self.regions(spec).items()}

    def reconcile(self, returns: Sequence[Return], seed: int) -> list[float]:
        """Weigh each update by its examples (FedAvg, McMahan et al. 2017)."""
        return [float(item.examples) for item in returns]

    def dilate(self, state: State, spec: SubModelSpec) -> Contribution:
        """Put the values back where they came from; only they are covered."""
        return {name: Patch(region, state[name]) for name, region in self.regions(spec).items()}


def full_region(tensor: Tensor) -> Region:
    """Return every coordinate of `tensor`."""
    return Region.prefix(tensor.shape)


def covered(contribution: Contribution, state: State) -> dict[str, Tensor]:
    """Return, for each global tensor, a boolean mask of the coordinates that `contribution` speaks for."""
    masks = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in state.items()}
    for name, patch in contribution.items():
        patch.region.put_(masks[name], torch.tensor(True))
    return masks
