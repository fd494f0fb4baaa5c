"""Exact, order-free aggregation of contributions."""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor

from diastole.models.coordinates import Block, Contribution, Coordinates, Piece, Region, full_region
from diastole.models.crossing import device_of, number, numbers
from diastole.models.errors import StateError
from diastole.models.method import Weight
from diastole.models.native import fold as native
from diastole.models.rows import RowPatches, Waiting
from diastole.models.state import State

# A term weight * delta is split into a coarse integer, in units of 2^-20, and a fine one, in units of 2^-60. Within the
# limits below both sums stay within 63 bits, and up to 2^23 terms may be folded.
COARSE = 2.0**20
FINE = 2.0**60
WEIGHT = 2.0**20
MAX_DELTA = 2.0**16
BLOCK = 1 << 18
ROWS = 1 << 25
"""Values of rows that are added at once; each takes 24 bytes. Fewer than 2^13 rows may be, so that sums stay exact."""
MAX_TOTAL_WEIGHT = 2.0**26
MOST_EXAMPLES = 2.0**45
"""Of all devices of a round together: with the unit of so many, one example is still a whole number of 2^-20."""
NEARLY = 0.999
"""Of what may be added; the limit of the loop in C++ is rounded to float32."""


class Accumulator:
    """Folds contributions one at a time, in place, and forgets them.

    Keeps, for each global coordinate, the sum of `weight * (value - reference)` over the contributions that
    cover it, and the sum of their weights. Sums are integers, so the result is the same bits for every order of
    arrival. Memory: 16 bytes a coordinate, 8 more in tensors that are covered at scattered coordinates, and some
    scratch, however many contributions.
    """

    def __init__(self, reference: State) -> None:
        """Start empty, around the global state that contributions are compared with."""
        self._reference = reference
        self._coarse = {name: _zeros(tensor) for name, tensor in reference.items()}
        self._fine = {name: _zeros(tensor) for name, tensor in reference.items()}
        # Most contributions cover one of a few blocks of slices: a sum for each block is enough until the mean.
        self._blocks: dict[str, dict[Block, int]] = {name: {} for name in reference}
        self._scattered: dict[str, Tensor] = {}
        device = device_of(reference)
        self._term = self._part = torch.empty(0, dtype=torch.float64, device=device)
        self._whole = torch.empty(0, dtype=torch.int64, device=device)
        self._total = dict.fromkeys(reference, 0.0)
        self._waiting: Waiting | None = None
        self.count = 0

    @cached_property
    def _largest(self) -> dict[str, float]:
        """The largest magnitude in each tensor of the reference; rows of a stack do not ask."""
        return dict(zip(self._reference, magnitudes(self._reference.values()), strict=True))

    def fold(self, contribution: Contribution, weight: Weight) -> None:
        """Add one contribution; nothing is changed if it is refused.

        `weight` is rounded to a multiple of 2^-20. Raises `StateError` if it is below that, if all weights of a tensor
        come to more than 2^26, or if a value is further than 2^16 from the reference. Weights of more examples are
        brought within these limits by `scaled`, which changes no mean. Rows of a stack are added together, by the next
        contribution that is not of theirs, or by `mean`.
        """
        if isinstance(contribution, RowPatches) and not isinstance(weight, Mapping):
            self._take(contribution, weight)
            self.count += 1
            return
        self._add_rows()
        exact = {
            name: _exact(weight[name] if isinstance(weight, Mapping) else weight, self._total[name])
            for name in contribution
        }
        pieces = [(name, each) for name, patch in contribution.items() for each in patch.pieces(self._reference[name])]
        # The loop in C++ looks at values as it adds them; if one is far away, what it added is taken away again.
        quick = [(*piece, block) for piece in pieces if (block := self._quick(*piece)) is not None]
        slow = [piece for piece in pieces if self._quick(*piece) is None]
        self._check(slow)
        if not self._add_quickly(quick, exact):
            self._check(piece[:2] for piece in quick)
            slow = pieces
        for name, piece in slow:
            for part in _blocks(piece):
                self._add(name, part, exact[name])
        for name, piece in pieces:
            self._weigh(name, piece.region, round(exact[name] * WEIGHT))
        for name, weighed in exact.items():
            self._total[name] += weighed
        self.count += 1

    def _take(self, patches: RowPatches, weight: float) -> None:
        """Let a row wait for others of its stack."""
        if self._waiting is None or not self._waiting.takes(patches):
            self._add_rows()
            self._waiting = Waiting(patches)
        waiting = self._waiting
        exact = _exact(weight, sum(waiting.weights) + max(self._total[name] for name in patches))
        # Written so that NaN is refused too.
        if not patches.moved[0] <= MAX_DELTA:
            self._check((name, each) for name, p in patches.items() for each in p.pieces(self._reference[name]))
        waiting.numbers.append(patches.row.number)
        waiting.weights.append(exact)

    def _add_rows(self) -> None:
        """Add the rows that wait: the same integers as one after another, summed over the rows at once."""
        waiting, self._waiting = self._waiting, None
        if waiting is None or not waiting.numbers:
            return
        slots, farthest = waiting.patches.slots, waiting.patches.row.stack.moves.farthest
        total = sum(waiting.weights)
        # Whole numbers below 2^53 are exact in float64, which a card adds sooner.
        small = max(farthest[k] for k in waiting.numbers) * total * COARSE < 2.0**52
        for name, values, weights in waiting.parts(ROWS):
            slot = slots[name]
            scale = (weights * COARSE).view(-1, *[1] * (values.ndim - 1))
            term = values.double().sub_(slot.region.view(self._reference[slot.source])).mul_(scale)
            part = term.round()
            coarse = part.sum(0).long() if small else part.long().sum(0)
            slot.region.add_(self._coarse[slot.source], coarse)
            slot.region.add_(self._fine[slot.source], term.sub_(part).mul_(FINE / COARSE).round_().sum(0).long())
        for source, patch in waiting.patches.items():
            for piece in patch.pieces(self._reference[source]):
                self._weigh(source, piece.region, sum(round(weight * WEIGHT) for weight in waiting.weights))
            self._total[source] += total

    def _quick(self, name: str, patch: Piece) -> Block | None:
        """Return the block that a patch fills, if the loop in C++ can add it."""
        block, reference = _block(patch.region), self._reference[name]
        fits = block is not None and patch.values.shape == _shape(reference.shape, block)
        return block if fits and native.takes(patch.values, reference) else None

    def _add_quickly(self, pieces: Iterable[tuple[str, Piece, Block]], weights: Mapping[str, float]) -> bool:
        """Add patches by the loop in C++; return False, and add none, if some value may be too far away for it."""
        added = []
        for name, patch, block in pieces:
            scale = weights[name] * COARSE
            limit = NEARLY * min(MAX_DELTA, native.MOST / scale) - self._largest[name]
            sums = self._coarse[name], self._fine[name], self._reference[name]
            call = partial(native.add, *sums, patch.values, block, scale, limit)
            added.append(call)
            if not call():
                for each in added:
                    each(undo=True)
                return False
        return True

    def _check(self, pieces: Iterable[tuple[str, Piece]]) -> None:
        pieces = list(pieces)
        tops = magnitudes(patch.values for _, patch in pieces)
        for (name, patch), top in zip(pieces, tops, strict=True):
            _check_near(name, patch.values, top, self._reference[name], patch.region, self._largest[name])

    def _weigh(self, name: str, region: Coordinates, weight: int) -> None:
        """Add a weight to the coordinates of a tensor that a contribution speaks for."""
        block = _block(region)
        if block is not None:
            self._blocks[name][block] = self._blocks[name].get(block, 0) + weight
            return
        if name not in self._scattered:
            self._scattered[name] = _zeros(self._reference[name])
        sums = self._scattered[name]
        region.add_(sums, torch.full((), weight, dtype=torch.int64, device=sums.device))

    def _weight(self, name: str) -> Tensor:
        """Return the sum of weights for each coordinate of a tensor."""
        weight = self._scattered[name].clone() if name in self._scattered else _zeros(self._reference[name])
        for block, total in self._blocks[name].items():
            weight[tuple(slice(start, stop) for start, stop in block)] += total
        return weight

    def _add(self, name: str, patch: Piece, weight: float) -> None:
        """Add a part of a tensor, in scratch memory that is small enough to stay in the processor's cache."""
        count, shape = patch.values.numel(), patch.values.shape
        if count > len(self._whole):
            self._whole = self._whole.new_empty(count)
            self._term, self._part = self._term.new_empty(2, count)
        term, part, whole = (scratch[:count].view(shape) for scratch in (self._term, self._part, self._whole))
        # COARSE is a power of two, so this rounds as `weight * delta` would.
        term.copy_(patch.values).sub_(part.copy_(patch.region.view(self._reference[name]))).mul_(weight * COARSE)
        torch.round(term, out=part)
        patch.region.add_(self._coarse[name], whole.copy_(part))
        term.sub_(part).mul_(FINE / COARSE).round_()
        patch.region.add_(self._fine[name], whole.copy_(term))

    def mean(self) -> tuple[State, dict[str, Tensor]]:
        """Return the coverage-normalised mean delta and the mask of covered coordinates.

        For each coordinate: `sum(weight * delta) / sum(weight)` over the contributions that cover it, float64,
        and zero where none does.
        """
        self._add_rows()
        deltas, masks = {}, {}
        for name in self._reference:
            weight = self._weight(name)
            masks[name] = weight > 0
            total = self._coarse[name].double() / COARSE + self._fine[name].double() / FINE
            deltas[name] = total / (weight.double() / WEIGHT).masked_fill_(~masks[name], 1.0)
        return deltas, masks


def unit(total: float) -> float:
    """Return what weights are multiplied by so that they may be added up, if they come to `total` at most.

    1 if they are within `MAX_TOTAL_WEIGHT` as they are; otherwise a power of two by which they come to half of that at
    most, so that rounding takes none of them beyond it. All weights of a sum are multiplied by the same, so the mean
    stays; up to `MOST_EXAMPLES` whole numbers stay exact, and so the mean is the same bits in every order.
    """
    if total <= MAX_TOTAL_WEIGHT:
        return 1.0
    return max(2.0 ** -math.ceil(math.log2(2 * total / MAX_TOTAL_WEIGHT)), MAX_TOTAL_WEIGHT / MOST_EXAMPLES / 2)


def scaled(weight: Weight, by: float) -> Weight:
    """Return a weight, or one for each tensor, times a `unit`; what could be counted before can be counted still."""
    if isinstance(weight, Mapping):
        return {name: _scaled(each, by) for name, each in weight.items()}
    return _scaled(weight, by)


def _scaled(weight: float, by: float) -> float:
    return max(weight * by, 1 / WEIGHT) if weight >= 1 / WEIGHT else weight * by


def check_change(state: State, reference: State) -> None:
    """Check that no value of `state` is further than `MAX_DELTA` from `reference`. Raises `StateError`."""
    sent = [reference[name] for name in state]
    tops = magnitudes([*state.values(), *sent])
    for (name, tensor), before, top, largest in zip(state.items(), sent, tops, tops[len(sent) :], strict=False):
        _check_near(name, tensor, top, before, full_region(tensor), largest)


def _exact(weight: float, total: float) -> float:
    """Return a weight rounded as it is counted; `total` is the sum of the weights that the tensor has already."""
    exact = round(weight * WEIGHT) / WEIGHT if 0 < weight <= MAX_TOTAL_WEIGHT else 0.0
    if exact <= 0 or total + exact > MAX_TOTAL_WEIGHT:
        raise StateError(f"weight {weight!r}: at least 2^-20, and {MAX_TOTAL_WEIGHT:.0f} for all together")
    return exact


def _check_near(name: str, values: Tensor, top: float, reference: Tensor, region: Coordinates, largest: float) -> None:
    """Check that no value is further than `MAX_DELTA` from a region of `reference`.

    The largest magnitudes are given: `top` of the values, `largest` of the reference. Raises `StateError`.
    """
    block = _block(region)
    shape = region.view(reference).shape if block is None else _shape(reference.shape, block)
    if values.shape != shape:
        raise StateError(f"tensor {name!r} has the shape {list(values.shape)}; expected {list(shape)}")
    # The largest magnitudes usually settle this; the differences are computed only if they do not.
    if top + largest <= MAX_DELTA:
        return
    farthest = number((values.double() - region.view(reference).double()).abs().max()) if values.numel() else 0.0
    # Written so that NaN is refused too.
    if not farthest <= MAX_DELTA:
        raise StateError(f"tensor {name!r} is {farthest:g} away from what was sent; at most {MAX_DELTA:g} is accepted")


def magnitudes(tensors: Iterable[Tensor]) -> list[float]:
    """Return the largest magnitude in each tensor, in one transfer from a card; NaN if it has one, zero if empty."""
    ends = [end for tensor in tensors for end in (tensor.aminmax() if tensor.numel() else [tensor.new_zeros(())] * 2)]
    found = numbers(ends)
    return [max(-low, high) for low, high in zip(found[::2], found[1::2], strict=True)]


def _block(region: Coordinates) -> Block | None:
    return region.block if isinstance(region, Region) else None


@lru_cache(maxsize=4096)
def _shape(shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    """Return the shape of what lies in a block of a tensor."""
    return tuple(len(range(size)[start:stop]) for size, (start, stop) in zip(shape, block, strict=True))


def _blocks(patch: Piece) -> Iterator[Piece]:
    """Cut a patch along its first axis into blocks of about `BLOCK` values."""
    values = patch.values
    if values.numel() <= BLOCK:
        yield patch
        return
    step = max(1, BLOCK * len(values) // values.numel())
    for start in range(0, len(values), step):
        yield Piece(patch.region.rows(start, start + step), values[start : start + step])


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=torch.int64, device=tensor.device)
