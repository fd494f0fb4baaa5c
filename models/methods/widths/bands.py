"""Weights that are triangular in blocks, as the bands of them that are not zero."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from diastole.models.channels import Axis, Joined, Layout, reads, spans
from diastole.models.coordinates import Region

Entries = range | list[int]
"""Entries of an axis, ascending."""

Laid = tuple[Tensor, list[Tensor]]
"""A weight, and its bands as views of it."""


@dataclass(frozen=True, slots=True)
class Bands:
    """The bands of one weight: the outputs that each width adds, with the inputs that there are at that width.

    Everything beside the bands is zero. No two of them overlap.

    Attributes:
        regions: where the bands lie in the weight, the narrowest width's first.
        shape: of the weight.
        reads: the axis of its inputs.

    """

    regions: tuple[Region, ...]
    shape: tuple[int, ...]
    reads: int

    @property
    def inputs(self) -> int:
        """The number of all inputs."""
        return self.shape[self.reads]

    def names(self, weight: str) -> list[str]:
        """Return the names of the bands of a weight of this name. No attribute of a module is called like that."""
        return [f"{weight}[{k}]" for k in range(len(self.regions))]

    def parts(self, weight: Tensor) -> list[Tensor]:
        """Return copies of the bands of a weight."""
        return [region.take(weight) for region in self.regions]

    def whole(self, parts: Sequence[Tensor], laid: Laid | None = None) -> Tensor:
        """Return the weight that has these bands; differentiable, also under `vmap`.

        It is made anew, unless the bands still are where `lay` has put them.
        """
        there = None if laid is None or not all(map(_is, parts, laid[1])) else laid[0]
        if there is not None and not torch.is_grad_enabled():
            return there
        found: Tensor = _Whole.apply(self, there, *parts)  # type: ignore[no-untyped-call]
        return found

    def lay(self, parts: Sequence[nn.Parameter], memory: torch.memory_format) -> Laid | None:
        """Let the bands be views of their weight, in place; return it and the views, or None if that cannot be."""
        if parts[0].is_meta or any(region.block is None for region in self.regions):
            return None
        whole = self.whole(parts).detach()
        whole = whole.contiguous(memory_format=memory) if whole.ndim == 4 else whole
        views = [region.view(whole) for region in self.regions]
        for part, view in zip(parts, views, strict=True):
            part.data = view
        return whole, views

    @property
    def spare(self) -> int:
        """How many values of the weight are in none of the bands, if these are views of it."""
        if any(region.block is None for region in self.regions):
            return 0
        there = [prod(stop - start for start, stop in region.block or ()) for region in self.regions]
        return prod(self.shape) - sum(there)

    def stacked(self, count: int) -> "Bands":
        """Return the bands of so many weights, one behind another along a new first axis."""
        ahead = Region((slice(0, count),)), Region((torch.arange(count),))
        regions = [Region((*ahead[isinstance(each.axes[0], Tensor)].axes, *each.axes)) for each in self.regions]
        return Bands(tuple(regions), (count, *self.shape), self.reads + 1)


def _is(part: Tensor, view: Tensor) -> bool:
    """Return whether a band, as it is now, is this view; what stands in its place for a while has no memory to ask."""
    return isinstance(part, nn.Parameter) and part.data_ptr() == view.data_ptr() and part.stride() == view.stride()


class _Whole(torch.autograd.Function):
    """A weight from its bands."""

    @staticmethod
    def forward(bands: Bands, laid: Tensor | None, *parts: Tensor) -> Tensor:
        if laid is not None:
            return laid.view_as(laid)
        whole = parts[0].new_zeros(bands.shape)
        for region, part in zip(bands.regions, parts, strict=True):
            region.put_(whole, part)
        return whole

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.bands = inputs[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.bands.parts(gradients[0])

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], bands: Bands, laid: Tensor | None, *parts: Tensor
    ) -> tuple[Tensor, int]:
        count = info.batch_size
        each = [
            part.expand(count, *part.shape) if at is None else part.movedim(at, 0)
            for part, at in zip(parts, dims[2:], strict=True)
        ]
        return bands.stacked(count).whole(each), 0


def bands_of(axes: Layout, shapes: Mapping[str, torch.Size], sizes: Sequence[Mapping[str, int]]) -> dict[str, Bands]:
    """Return the bands of each weight that is not all one band.

    Args:
        axes: what the axes of the full width's parameters run over.
        shapes: of these parameters.
        sizes: channels of each set at every width, the full one last.

    """
    found = {}
    for name, along in axes.items():
        at = reads(along)
        if at is None or along[1 - at] is None:
            continue
        regions = _regions(entries(along[1 - at], sizes), entries(along[at], sizes), at, shapes[name])
        if len(regions) > 1 or regions[0].take(torch.empty(shapes[name], device="meta")).shape != shapes[name]:
            found[name] = Bands(regions, tuple(shapes[name]), at)
    return found


def entries(axis: Axis | Joined | None, sizes: Sequence[Mapping[str, int]]) -> list[Entries]:
    """Return the entries of an axis of the full width that are there at each width."""
    if isinstance(axis, Axis):
        return [range(size[axis.channels] * axis.repeat) for size in sizes]
    found = list[Entries]()
    for size in sizes:
        start, there = 0, list[int]()
        for part, length in spans(axis, -1):
            there += range(start, start + (size[part.channels] * part.repeat if part else length))
            start += sizes[-1][part.channels] * part.repeat if part else length
        found.append(there)
    return found


def added(before: Entries, after: Entries) -> Entries:
    """Return the entries of a width that the width before has not."""
    if isinstance(before, range) and isinstance(after, range):
        return range(len(before), len(after))
    old = set(before)
    return [entry for entry in after if entry not in old]


def _regions(written: Sequence[Entries], read: Sequence[Entries], at: int, shape: Sequence[int]) -> tuple[Region, ...]:
    """Return the bands of a weight, given the outputs and the inputs that there are at each width."""
    found, there = list[tuple[Entries, Entries, Entries]](), written[0][:0]
    for outputs, inputs in zip(written, read, strict=True):
        if found and len(found[-1][2]) == len(inputs):
            # Outputs without new inputs belong to the band before.
            found[-1] = found[-1][0], outputs, inputs
        elif len(outputs) > len(there):
            found.append((there, outputs, inputs))
        there = outputs
    return tuple(_region(added(before, outputs), inputs, at, shape) for before, outputs, inputs in found)


def _region(outputs: Entries, inputs: Entries, at: int, shape: Sequence[int]) -> Region:
    axes = [*((outputs, inputs) if at else (inputs, outputs)), *map(range, shape[2:])]
    if all(isinstance(axis, range) for axis in axes):
        return Region(tuple(slice(axis[0], axis[-1] + 1) for axis in axes))
    # On the CPU, even while modules are built on another device.
    return Region(tuple(torch.tensor(list(axis), device="cpu") for axis in axes))
