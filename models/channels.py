"""Channels: what the axes of a model's tensors run over, and selecting some of them everywhere at once."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diastole.models.compressor import Region
from diastole.models.state import State


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a tensor that runs over channels.

    Attributes:
        channels: the name of the set of channels; every axis that runs over the same ones has the same name.
        repeat: consecutive entries of the axis that belong to one channel: the positions of a flattened map.

    """

    channels: str
    repeat: int = 1


Layout = Mapping[str, tuple[Axis | None, ...]]
"""For each parameter, what each of its axes runs over; None for an axis that is always kept whole."""

Kept = Mapping[str, slice | Tensor]
"""For each set of channels, those that are kept: a slice from 0, or int64 indices without repetition, in order."""


def select(layout: Layout, shapes: Mapping[str, torch.Size], kept: Kept) -> dict[str, Region]:
    """Return the region of each tensor that belongs to the channels that are kept.

    Args:
        layout: of the model.
        shapes: of its tensors.
        kept: for each set of channels that is not kept whole.

    """
    return {name: _region(axes, shapes[name], kept) for name, axes in layout.items()}


def counts(layout: Layout, shapes: Mapping[str, torch.Size]) -> dict[str, int]:
    """Return how many channels each set has in a model whose tensors have these shapes."""
    return {
        axis.channels: size // axis.repeat
        for name, shape in shapes.items()
        for axis, size in zip(layout[name], shape, strict=True)
        if axis is not None
    }


def importance(layout: Layout, state: State) -> dict[str, Tensor]:
    """Return, for each set of channels, the L1 norm of all weights that read each channel: float64 `[channels]`.

    The criterion by which once-for-all networks sort channels (Cai et al., ICLR 2020), summed over every layer that
    reads the set: the blocks of a residual stream, their shortcuts, the classifier. Axis 1 of a tensor is what it
    reads. A set that nothing reads is left out.
    """
    found: dict[str, Tensor] = {}
    for name, axes in layout.items():
        axis = axes[1] if len(axes) > 1 else None
        if axis is not None:
            norms = state[name].double().abs().transpose(0, 1).flatten(1).sum(1).view(-1, axis.repeat).sum(1)
            found[axis.channels] = found[axis.channels] + norms if axis.channels in found else norms
    return found


def _region(axes: tuple[Axis | None, ...], shape: torch.Size, kept: Kept) -> Region:
    chosen = [_entries(axis, size, kept) for axis, size in zip(axes, shape, strict=True)]
    if all(isinstance(entries, slice) for entries in chosen):
        return Region(tuple(entries for entries in chosen if isinstance(entries, slice)))
    return Region(
        tuple(
            entries if isinstance(entries, Tensor) else torch.arange(*entries.indices(size))
            for entries, size in zip(chosen, shape, strict=True)
        )
    )


def _entries(axis: Axis | None, size: int, kept: Kept) -> slice | Tensor:
    if axis is None or axis.channels not in kept:
        return slice(0, size)
    channels = kept[axis.channels]
    if isinstance(channels, slice):
        return slice(0, channels.stop * axis.repeat)
    return (channels.unsqueeze(1) * axis.repeat + torch.arange(axis.repeat)).flatten()
