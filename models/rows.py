"""States of devices that were trained together on a card: rows of one stack, about which everything is asked at once.

A question about one device costs a card as much as one about all of its chunk, and the processor waits for each answer.
So the first row that is asked has the answers for all rows brought, and rows are folded together.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diastole.models.coordinates import Patch, Slots
from diastole.models.crossing import fetch, send
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

    def __init__(self, tensors: State) -> None:
        self.tensors = tensors
        self._schema = {name: (tensor.shape[1:], tensor.dtype) for name, tensor in tensors.items()}
        self._known: list[tuple[object, object, Moves]] = []

    def rows(self) -> "list[Row]":
        """Return the state of each device; nothing is copied."""
        each = {name: tensor.unbind() for name, tensor in self.tensors.items()}
        count = len(next(iter(each.values())))
        return [Row(self, k, {name: parts[k] for name, parts in each.items()}) for k in range(count)]

    def alike(self, expected: State) -> bool:
        """Return whether rows have the names, shapes and dtypes of a state."""
        schema = {name: (tensor.shape, tensor.dtype) for name, tensor in expected.items()}
        return schema == self._schema

    def moves(self, sent: State, slots: Slots | None = None) -> Moves:
        """Return how far rows are from `sent`: of its own names or, with `slots`, the global state; in one transfer."""
        for state, places, known in self._known:
            if state is sent and places is slots:
                return known
        squares, tops, count = list[Tensor](), list[Tensor](), 0
        for name, tensor in self.tensors.items():
            before = sent[name] if slots is None else slots[name].region.view(sent[slots[name].source])
            moved = (tensor - before).reshape(len(tensor), tensor[0].numel())
            if moved.shape[1]:
                tops.append(moved.abs().amax(1))
                squares.append(torch.linalg.vector_norm(moved, dim=1, dtype=torch.float64).square())
                count += moved.shape[1]
        if not count:
            rows = len(next(iter(self.tensors.values())))
            return Moves([0.0] * rows, [0.0] * rows)
        far, mean = fetch([torch.stack(tops).amax(0), (torch.stack(squares).sum(0) / count).sqrt()])
        known = Moves(far.tolist(), mean.tolist())
        self._known.append((sent, slots, known))
        return known


class Row(dict[str, Tensor]):
    """The state of one device of a stack."""

    def __init__(self, stack: Stack, number: int, state: State) -> None:
        super().__init__(state)
        self.stack, self.number = stack, number


class RowPatches(dict[str, Patch]):
    """What a row contributes where a method only has to name coordinates."""

    def __init__(self, row: Row, slots: Slots) -> None:
        super().__init__({slots[name].source: Patch(slots[name].region, tensor) for name, tensor in row.items()})
        self.row, self.slots = row, slots

    def moved(self, state: State) -> tuple[float, float]:
        """Return the largest distance from the global state, and the root mean square of all."""
        moves = self.row.stack.moves(state, self.slots)
        return moves.farthest[self.row.number], moves.lengths[self.row.number]


def patches(state: State, slots: Slots) -> dict[str, Patch]:
    """Return the values of a sub-model's state, or of some of its tensors, where they lie in the global state."""
    there = {name: slot for name, slot in slots.items() if name in state}
    if isinstance(state, Row) and len(there) == len({slot.source for slot in there.values()}) == len(state):
        return RowPatches(state, slots)
    return {slot.source: Patch(slot.region, state[name]) for name, slot in there.items()}


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
