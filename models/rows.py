"""States of devices that were trained together on a card: rows of one stack, about which everything is asked at once.

A question about one device costs a card as much as one about all of its chunk, and the processor waits for each answer.
So what is asked of every update is told of all rows at once, and rows are folded together.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from diastole.models.coordinates import Contribution, Patch, Region, Slots, Tiles
from diastole.models.crossing import device_of, fetch, send
from diastole.models.state import State


@dataclass(frozen=True, slots=True)
class Moves:
    """How far the rows of a stack are from what their devices were sent.

    Attributes:
        farthest: of each row, the largest distance of a value; not finite if a value is not.
        lengths: of each row, the root mean square of the distances.

    """

    farthest: list[float]
    lengths: list[float]


class Stack:
    """The states `[devices, *shape]` of a chunk."""

    def __init__(self, tensors: State, sent: State, moves: Moves) -> None:
        """Keep what is known of the rows: how far they are from `sent`."""
        self.tensors, self.sent, self.moves = tensors, sent, moves
        self._schema = {name: (tensor.shape[1:], tensor.dtype) for name, tensor in tensors.items()}

    @classmethod
    def of(cls, tensors: State, sent: State, *beside: Tensor) -> "tuple[Stack, list[Tensor]]":
        """Return the stack of what devices have made of `sent`, and small tensors fetched with it in one transfer."""
        far, mean, *told = fetch([*_moves(tensors, sent), *beside])
        return cls(tensors, sent, Moves(far.tolist(), mean.tolist())), told

    def rows(self) -> "list[Row]":
        """Return the state of each device; nothing is copied."""
        each = {name: tensor.unbind() for name, tensor in self.tensors.items()}
        return [Row(self, k, {name: parts[k] for name, parts in each.items()}) for k in range(len(self.moves.farthest))]

    def alike(self, expected: State) -> bool:
        """Return whether rows have the names, shapes and dtypes of a state."""
        schema = {name: (tensor.shape, tensor.dtype) for name, tensor in expected.items()}
        return schema == self._schema


def _moves(tensors: State, sent: State) -> tuple[Tensor, Tensor]:
    """Return the largest distance of a value of each row from `sent`, and the root mean square of all; `[rows]`."""
    tops, squares, count = list[Tensor](), list[Tensor](), 0
    rows = len(next(iter(tensors.values())))
    for name, tensor in tensors.items():
        moved = (tensor - sent[name]).reshape(rows, tensor[0].numel())
        if moved.shape[1]:
            tops.append(moved.abs().amax(1))
            squares.append(torch.linalg.vector_norm(moved, dim=1, dtype=torch.float64).square())
            count += moved.shape[1]
    if not count:
        none = torch.zeros(rows, device=device_of(tensors))
        return none, none
    return torch.stack(tops).amax(0), (torch.stack(squares).sum(0) / count).sqrt()


class Row(dict[str, Tensor]):
    """The state of one device of a stack."""

    def __init__(self, stack: Stack, number: int, state: State) -> None:
        super().__init__(state)
        self.stack, self.number = stack, number


class RowPatches(Mapping[str, Patch]):
    """What a row contributes where a method only has to name coordinates; made when it is asked for."""

    def __init__(self, row: Row, slots: Slots) -> None:
        self.row, self.slots = row, slots
        self._names = by_source(row, slots)

    def __getitem__(self, source: str) -> Patch:
        return _patch(self.row, self.slots, self._names[source])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def moved(self) -> tuple[float, float]:
        """The largest distance from the global state, and the root mean square of all.

        What comes back untrained is the global state, for every method, so that is the distance from what was sent.
        """
        moves = self.row.stack.moves
        return moves.farthest[self.row.number], moves.lengths[self.row.number]


def patches(state: State, slots: Slots) -> Contribution:
    """Return the values of a sub-model's state, or of some of its tensors, where they lie in the global state."""
    if isinstance(state, Row) and state.keys() <= slots.keys():
        return RowPatches(state, slots)
    return {source: _patch(state, slots, names) for source, names in by_source(state, slots).items()}


def by_source(names: Iterable[str], slots: Slots) -> dict[str, list[str]]:
    """Return, for each global tensor, which of a sub-model's tensors of these names are parts of it."""
    found, there = dict[str, list[str]](), set(names)
    for name, slot in slots.items():
        if name in there:
            found.setdefault(slot.source, []).append(name)
    return found


def _patch(state: State, slots: Slots, names: Sequence[str]) -> Patch:
    """Return the patch of one global tensor."""
    regions = [slots[name].region for name in names]
    if len(names) == 1:
        return Patch(regions[0], state[names[0]])
    return Patch(Tiles(tuple(cast("list[Region]", regions))), torch.cat([state[name].flatten() for name in names]))


@dataclass(slots=True)
class Waiting:
    """Rows of one stack that are yet to be folded.

    Attributes:
        patches: of one of them.
        numbers: of the rows.
        weights: of the rows, exact multiples of 2^-20.

    """

    patches: RowPatches
    numbers: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def takes(self, patches: RowPatches) -> bool:
        """Return whether these are of the same stack and the same places."""
        return patches.row.stack is self.patches.row.stack and patches.slots is self.patches.slots

    def parts(self, most: int) -> Iterable[tuple[str, Tensor, Tensor]]:
        """Yield, for each tensor, its name, values `[rows, *shape]` and the rows' weights, at most so many values."""
        stack = self.patches.row.stack.tensors
        place = next(iter(stack.values())).device
        whole = self.numbers == list(range(len(next(iter(stack.values())))))
        weights = torch.tensor([self.numbers, self.weights], dtype=torch.float64)
        sent = send(weights, place)
        for name, tensor in stack.items():
            step = max(1, most // max(1, tensor[0].numel()))
            for start in range(0, len(self.numbers), step):
                end = start + step
                chosen = tensor[start:end] if whole else tensor.index_select(0, sent[0, start:end].long())
                yield name, chosen, sent[1, start:end]
