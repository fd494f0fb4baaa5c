"""Global coordinates: where in the global model the values of a sub-model belong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor

from diastole.models.crossing import send
from diastole.models.state import State

Block = tuple[tuple[int, int], ...]
"""The first and the one-past-last index of each axis."""


@dataclass(frozen=True, slots=True)
class Region:
    """Coordinates of one global tensor: the outer product of one set of indices for each axis.

    `axes` are either all slices, or all int64 index tensors without repetition. The empty tuple is a scalar.
    The tensors whose values are meant may be on any device; index tensors are sent to a card once.
    """

    axes: tuple[slice, ...] | tuple[Tensor, ...]
    _there: dict[torch.device, "Region"] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def prefix(shape: Sequence[int]) -> "Region":
        """Return the first `shape[k]` indices of every axis k."""
        return Region(tuple(slice(0, size) for size in shape))

    @property
    def block(self) -> Block | None:
        """Its ranges, if its axes are slices without steps; None otherwise."""
        slices = [axis for axis in self.axes if isinstance(axis, slice) and axis.step in (None, 1)]
        return tuple([(axis.start, axis.stop) for axis in slices]) if len(slices) == len(self.axes) else None

    def _key(self, values: Tensor) -> tuple[slice | Tensor, ...]:
        """Return what indexes the values of a tensor, on its device."""
        dims = range(len(self.axes))
        axes: Sequence[slice | Tensor] = _on(self, values.device).axes
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

    def part(self, inner: "Region") -> "Region":
        """Return the part of this region that `inner` names, by places in this region."""
        outside, inside = self.block, inner.block
        if outside is not None and inside is not None:
            pairs = zip(outside, inside, strict=True)
            return Region(tuple(slice(first + start, first + stop) for (first, _), (start, stop) in pairs))
        outer: Sequence[slice | Tensor] = self.axes
        places: Sequence[slice | Tensor] = inner.axes
        return Region(tuple(_indices(axis)[_indices(each)] for axis, each in zip(outer, places, strict=True)))

    def view(self, tensor: Tensor) -> Tensor:
        """Return the values of `tensor` in this region; a copy only if the axes are index tensors."""
        return tensor[self._key(tensor)]

    def take(self, tensor: Tensor) -> Tensor:
        """Return a copy of the values of `tensor` in this region."""
        return tensor[self._key(tensor)].clone()

    def add_(self, tensor: Tensor, values: Tensor) -> None:
        """Add `values` to `tensor` in this region, in place."""
        tensor[self._key(tensor)] += values

    def put_(self, tensor: Tensor, values: Tensor) -> None:
        """Set the values of `tensor` in this region, in place."""
        tensor[self._key(tensor)] = values


def _indices(axis: slice | Tensor) -> Tensor:
    # On the CPU, even while modules are built on another device.
    return axis if isinstance(axis, Tensor) else torch.arange(axis.start, axis.stop, device="cpu")


@dataclass(frozen=True, slots=True)
class Scalars:
    """Any set of coordinates of one global tensor, which a `Region`, an outer product, may be unable to name.

    `index` is int64 `[n]` into the flattened tensor (row-major), without repetition; values have the shape `[n]`.
    """

    index: Tensor
    _there: dict[torch.device, "Scalars"] = field(default_factory=dict, repr=False, compare=False)

    def rows(self, start: int, stop: int) -> "Scalars":
        """Return the coordinates from number `start` up to, not including, number `stop`."""
        return Scalars(self.index[start:stop])

    def view(self, tensor: Tensor) -> Tensor:
        """Return a copy of the values of `tensor` at these coordinates."""
        return self.take(tensor)

    def take(self, tensor: Tensor) -> Tensor:
        """Return a copy of the values of `tensor` at these coordinates."""
        return tensor.take(_on(self, tensor.device).index)

    def add_(self, tensor: Tensor, values: Tensor) -> None:
        """Add `values` to `tensor` at these coordinates, in place."""
        tensor.put_(_on(self, tensor.device).index, values.expand(self.index.shape), accumulate=True)

    def put_(self, tensor: Tensor, values: Tensor) -> None:
        """Set the values of `tensor` at these coordinates, in place."""
        tensor.put_(_on(self, tensor.device).index, values.expand(self.index.shape))


@dataclass(frozen=True, slots=True)
class Tiles:
    """Several regions of one global tensor, none of which overlap: the parts of one that a sub-model has apart.

    Values are flat, `[n]`: those of the first region (row-major), then those of the next.
    """

    regions: tuple[Region, ...]

    def view(self, tensor: Tensor) -> Tensor:
        """Return a copy of the values of `tensor` in these regions."""
        return self.take(tensor)

    def take(self, tensor: Tensor) -> Tensor:
        """Return a copy of the values of `tensor` in these regions."""
        return torch.cat([region.view(tensor).flatten() for region in self.regions])

    def add_(self, tensor: Tensor, values: Tensor) -> None:
        """Add `values` to `tensor` in these regions, in place."""
        for region, part in self.split(tensor, values):
            region.add_(tensor, part)

    def put_(self, tensor: Tensor, values: Tensor) -> None:
        """Set the values of `tensor` in these regions, in place."""
        for region, part in self.split(tensor, values):
            region.put_(tensor, part)

    def split(self, tensor: Tensor, values: Tensor) -> "list[tuple[Region, Tensor]]":
        """Return each region with its part of the values, or with all of them if they are one for all."""
        if not values.ndim:
            return [(region, values) for region in self.regions]
        shapes = [region.view(tensor).shape for region in self.regions]
        parts = torch.split_with_sizes(values, [shape.numel() for shape in shapes])
        return [(r, part.view(shape)) for r, part, shape in zip(self.regions, parts, shapes, strict=True)]


Coordinates = Region | Scalars | Tiles
"""The coordinates of a global tensor that values belong to."""


@overload
def _on(region: Region, device: torch.device) -> Region: ...
@overload
def _on(region: Scalars, device: torch.device) -> Scalars: ...
def _on(region: Region | Scalars, device: torch.device) -> Region | Scalars:
    """Return the same coordinates with index tensors that are on a device, sent there at the first call."""
    index = region.index if isinstance(region, Scalars) else next(iter(region.axes), None)
    if not isinstance(index, Tensor) or index.device == device:
        return region
    there: dict[torch.device, Any] = region._there
    if device not in there:
        there[device] = (
            Scalars(send(region.index, device))
            if isinstance(region, Scalars)
            else Region(tuple(send(axis, device) for axis in region.axes if isinstance(axis, Tensor)))
        )
    found: Region | Scalars = there[device]
    return found


@dataclass(frozen=True, slots=True)
class Patch:
    """New values for some coordinates of one global tensor; `values` has the shape that `region.take` returns."""

    region: Coordinates
    values: Tensor

    def pieces(self, tensor: Tensor) -> "list[Piece]":
        """Return its values apart, by the regions of `tensor` that they lie in."""
        if isinstance(self.region, Tiles):
            return [Piece(region, part) for region, part in self.region.split(tensor, self.values)]
        return [Piece(self.region, self.values)]


@dataclass(frozen=True, slots=True)
class Piece:
    """A patch, or the part of one that lies in one region; `values` has the shape that `region.take` returns."""

    region: Region | Scalars
    values: Tensor


Contribution = Mapping[str, Patch]
"""What one device contributes: values in global coordinates. A tensor that is absent is not covered at all."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor of a sub-model lies in the global model: the global tensor's name, and a region of that tensor."""

    source: str
    region: Coordinates


Slots = Mapping[str, Slot]
"""For each tensor of a sub-model, by its name in the sub-model, its slot. No two slots share a global coordinate, but
several may be of one global tensor."""


def in_place(regions: Mapping[str, Coordinates]) -> Slots:
    """Return the slots of a sub-model whose tensors have the names of the global ones."""
    return {name: Slot(name, region) for name, region in regions.items()}


def gather(state: State, slots: Slots) -> State:
    """Return a copy of the values of the global `state` in the slots, under the sub-model's names."""
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
    masks = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in state.items()}
    for name, patch in contribution.items():
        patch.region.put_(masks[name], torch.ones((), dtype=torch.bool, device=masks[name].device))
    return masks
