"""Every contribution of a round at the same coordinates, block by block, in bounded memory."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diastole.models.coordinates import Contribution, Patch, Piece, Region, Scalars
from diastole.models.state import State

BLOCK = 1 << 21
"""Values, over all contributions, that are looked at together."""


def blocks(reference: State, contributions: Sequence[Contribution]) -> Iterator[tuple[str, slice, Tensor]]:
    """Yield, for some rows of one tensor at a time, what each contribution changes of them.

    The values are float64 `[contributions, rows, ...]`, NaN where a contribution does not speak for a coordinate. A
    tensor without axes has one row.
    """
    for name, tensor in reference.items():
        whole = tensor.unsqueeze(0) if not tensor.ndim else tensor
        patches = [_rowed(each[name], tensor) if name in each else [] for each in contributions]
        # What of an index is in some rows, a card would have to tell first.
        step = max(1, BLOCK // max(1, len(contributions) * whole[:1].numel())) if tensor.is_cpu else max(1, len(whole))
        for start in range(0, len(whole), step):
            rows = slice(start, min(start + step, len(whole)))
            part = whole[rows].double()
            found = torch.full((len(contributions), *part.shape), torch.nan, dtype=torch.float64, device=part.device)
            for place, pieces in enumerate(patches):
                for piece in pieces:
                    inside = piece if step >= len(whole) else _within(piece, rows, whole[:1].numel())
                    inside.region.put_(found[place], inside.values.double())
            yield name, rows, found - part


def _rowed(patch: Patch, tensor: Tensor) -> list[Piece]:
    """Return the pieces of a patch of a tensor, as if the tensor had at least one axis."""
    if tensor.ndim:
        return patch.pieces(tensor)
    return [Piece(Scalars(torch.zeros(1, dtype=torch.int64, device=tensor.device)), patch.values.reshape(1))]


def _within(patch: Piece, rows: slice, size: int) -> Piece:
    """Return the part of a piece that lies in some rows of `size` values, in coordinates of these rows."""
    region, values = patch.region, patch.values
    if isinstance(region, Scalars):
        inside = (region.index >= rows.start * size) & (region.index < rows.stop * size)
        return Piece(Scalars(region.index[inside] - rows.start * size), values[inside])
    first, *rest = region.axes
    if isinstance(first, Tensor):
        inside = (first >= rows.start) & (first < rows.stop)
        return Piece(Region((first[inside] - rows.start, *rest)), values[inside])
    start, stop = max(rows.start, first.start), max(rows.start, min(rows.stop, first.stop))
    stop = max(start, stop)
    part = values[start - first.start : stop - first.start]
    return Piece(Region((slice(start - rows.start, stop - rows.start), *rest)), part)
