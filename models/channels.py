"""Channels: which set of channels each axis of a tensor runs over, and how to select channels in all tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diastole.models.coordinates import Region
from diastole.models.crossing import fetch
from diastole.models.errors import ModelError
from diastole.models.state import State


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a tensor that runs over channels.

    Attributes:
        channels: name of the set of channels; axes with one name run over the same channels.
        repeat: number of consecutive entries of the axis that belong to one channel: the positions of a flattened map.
        swapped: the tensor is `[inputs, outputs, ...]` instead of `[outputs, inputs, ...]`, as in a transposed
            convolution. A table of embeddings is swapped too: it reads no channels.

    """

    channels: str
    repeat: int = 1
    swapped: bool = False


@dataclass(frozen=True, slots=True)
class Joined:
    """One axis of a tensor that runs over several sets of channels one after another, as after a concatenation.

    Attributes:
        parts: the sets in order, each with its number of entries on the axis; None stands for entries that are always
            kept. A set may come more than once.

    """

    parts: tuple[tuple[Axis | None, int], ...]


def spans(axis: Axis | Joined | None, length: int) -> tuple[tuple[Axis | None, int], ...]:
    """Return the sets that an axis of `length` entries runs over, in order, each with its number of entries."""
    return axis.parts if isinstance(axis, Joined) else ((axis, length),)


def reads(axes: Sequence[Axis | Joined | None]) -> int | None:
    """Return which axis of a weight has its input channels, given what all axes run over; None if no axis has."""
    parts = [part for axis in axes if axis is not None for part, _ in spans(axis, 0)]
    at = 0 if any(part.swapped for part in parts if part is not None) else 1
    return at if at < len(axes) and axes[at] is not None else None


Layout = Mapping[str, tuple[Axis | Joined | None, ...]]
"""For each parameter, the channels that each of its axes runs over; None for an axis that is always kept whole."""

Kept = Mapping[str, slice | Tensor]
"""The channels that are kept of each set: a slice from 0, or int64 indices without repetition, in order."""


def select(layout: Layout, shapes: Mapping[str, torch.Size], kept: Kept) -> dict[str, Region]:
    """Return the region of each tensor that belongs to the kept channels.

    Args:
        layout: of the model.
        shapes: of its tensors.
        kept: the kept channels of each set that is not kept whole.

    """
    return {name: _region(axes, shapes[name], kept) for name, axes in layout.items()}


def counts(layout: Layout, shapes: Mapping[str, torch.Size]) -> dict[str, int]:
    """Return how many channels each set has in a model whose tensors have these shapes.

    A joined axis has the lengths of its parts in the global model. Their lengths in this model follow from the other
    axes; where they do not, an axis that is as long as in the global model has all of every part.
    """
    axes = [
        (axis, size)
        for name, shape in shapes.items()
        for axis, size in zip(layout[name], shape, strict=True)
        if axis is not None
    ]
    found = {axis.channels: size // axis.repeat for axis, size in axes if isinstance(axis, Axis)}
    joined = [(axis, size) for axis, size in axes if isinstance(axis, Joined)]
    while joined:
        left = [(axis, size) for axis, size in joined if not _count(axis, size, found)]
        if len(left) == len(joined):
            left = [(axis, size) for axis, size in joined if not _all(axis, size, found)]
        if len(left) == len(joined):
            raise ModelError(f"the channels of {left[0][0].parts} cannot be told from the shapes of the tensors")
        joined = left
    return found


def _count(axis: Joined, size: int, found: dict[str, int]) -> bool:
    """Add to `found` the one set of a joined axis that is missing there; return False if several are missing."""
    unknown: dict[str, int] = {}
    for part, entries in axis.parts:
        if part is None:
            size -= entries
        elif part.channels in found:
            size -= found[part.channels] * part.repeat
        else:
            unknown[part.channels] = unknown.get(part.channels, 0) + part.repeat
    if len(unknown) == 1:
        ((channels, repeat),) = unknown.items()
        found[channels] = size // repeat
    return len(unknown) <= 1


def _all(axis: Joined, size: int, found: dict[str, int]) -> bool:
    """Add to `found` all sets of a joined axis that is whole; return False if it is not."""
    whole = size == sum(entries for _, entries in axis.parts)
    if whole:
        found |= {part.channels: entries // part.repeat for part, entries in axis.parts if part}
    return whole


def within(layout: Layout, shapes: Mapping[str, torch.Size]) -> Layout:
    """Return the layout of a narrower model whose tensors have these shapes: parts of joined axes are shorter there."""
    found = counts(layout, shapes)

    def shorter(axis: Axis | Joined | None) -> Axis | Joined | None:
        if not isinstance(axis, Joined):
            return axis
        return Joined(
            tuple((part, found[part.channels] * part.repeat if part else entries) for part, entries in axis.parts)
        )

    return {name: tuple(shorter(axis) for axis in axes) for name, axes in layout.items()}


def importance(layout: Layout, state: State) -> dict[str, Tensor]:
    """Return, for each set of channels, the L1 norm of all weights that read each channel: float64 `[channels]`.

    Once-for-all networks sort channels by this norm (Cai et al., ICLR 2020). Here it is summed over every layer that
    reads the set: the blocks of a residual stream, their shortcuts, the classifier. A set that no layer reads is left
    out. The norms are on the CPU, wherever the state is.
    """
    found: dict[str, Tensor] = {}
    for name, axes in layout.items():
        at = reads(axes)
        if at is None:
            continue
        norms = state[name].double().abs().movedim(at, 0).flatten(1).sum(1)
        parts = spans(axes[at], len(norms))
        for (part, _), mine in zip(parts, torch.split(norms, [entries for _, entries in parts]), strict=True):
            if part is not None:
                each = mine.view(-1, part.repeat).sum(1)
                found[part.channels] = found[part.channels] + each if part.channels in found else each
    return dict(zip(found, fetch(list(found.values())), strict=True))


def nested(layout: Layout, whole: Mapping[str, torch.Size], shapes: Mapping[str, torch.Size]) -> dict[str, Region]:
    """Return where the tensors of a narrower model lie in the global ones: the first channels of every set.

    Args:
        layout: of the global model, or of a model with more channels. A tensor that is not in it is a prefix of the
            global tensor of the same name.
        whole: shapes of the global tensors.
        shapes: of the narrower model's tensors.

    """
    regions = {name: Region.prefix(shape) for name, shape in shapes.items()}
    if any(isinstance(axis, Joined) for axes in layout.values() for axis in axes):
        there = [name for name in layout if name in whole]
        full = within({name: layout[name] for name in there}, {name: whole[name] for name in there})
        known = {name: axes for name, axes in full.items() if name in shapes}
        kept = {name: slice(0, count) for name, count in counts(known, {n: shapes[n] for n in known}).items()}
        regions |= select(known, whole, kept)
    return regions


def members(groups: Tensor, size: int) -> Tensor:
    """Return the positions of the members of `groups`, int64: `size` consecutive positions for each, in order."""
    # On the CPU, even while modules are built on another device.
    return (groups.unsqueeze(1) * size + torch.arange(size, device="cpu")).flatten()


def to_front(region: Region, shape: torch.Size) -> tuple[Region, Region] | None:
    """Return an order of entries that puts a region's first on every axis, and the order that undoes it.

    None if the region's entries come first already.
    """
    chosen = [axis for axis in region.axes if isinstance(axis, Tensor)]
    if all(torch.equal(axis, torch.arange(len(axis))) for axis in chosen):
        return None
    orders = []
    for axis, size in zip(chosen, shape, strict=True):
        left = torch.ones(size, dtype=torch.bool)
        left[axis] = False
        orders.append(torch.cat([axis, left.nonzero().flatten()]))
    return Region(tuple(orders)), Region(tuple(order.argsort() for order in orders))


def _region(axes: tuple[Axis | Joined | None, ...], shape: torch.Size, kept: Kept) -> Region:
    chosen = [_entries(axis, size, kept) for axis, size in zip(axes, shape, strict=True)]
    if all(isinstance(entries, slice) for entries in chosen):
        return Region(tuple(entries for entries in chosen if isinstance(entries, slice)))
    return Region(
        tuple(
            # On the CPU, even while modules are built on another device.
            entries if isinstance(entries, Tensor) else torch.arange(*entries.indices(size), device="cpu")
            for entries, size in zip(chosen, shape, strict=True)
        )
    )


def _entries(axis: Axis | Joined | None, size: int, kept: Kept) -> slice | Tensor:
    if isinstance(axis, Joined):
        parts, start = list[Tensor](), 0
        for part, entries in axis.parts:
            chosen = _entries(part, entries, kept)
            places = chosen if isinstance(chosen, Tensor) else torch.arange(*chosen.indices(entries), device="cpu")
            parts.append(places + start)
            start += entries
        return torch.cat(parts)
    if axis is None or axis.channels not in kept:
        return slice(0, size)
    channels = kept[axis.channels]
    if isinstance(channels, slice):
        return slice(0, channels.stop * axis.repeat)
    return members(channels, axis.repeat)
