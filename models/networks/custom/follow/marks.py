"""Marks: which channels the entries of a tensor's axes are, while a module's forward pass is followed.

A mark is an int64 tensor with as many axes as the tensor that it describes, and one more, which is hidden. An axis on
which the mark does not vary has size 1, as in broadcasting. Each number names a channel, and 0 one that is always kept:
an entry of the tensor is there if its channels in all marks are kept. The hidden axis has the channels that a sum ran
over, such as those of an attention head: they and the entry are kept or left out together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Marks = list[Tensor]
Shaped = tuple[Marks, Sequence[int]]
"""The marks of a tensor, and its shape."""


@dataclass(slots=True)
class Bond:
    """Rows of channels, such as the heads of an attention or the groups of a convolution.

    Either whole rows are left out, the same in all of `rows`, or all rows lose the same channels.

    Attributes:
        rows: `[rows, channels of a row]` each; a mark for one that is known by its axes alone.
        inner: tensors `[channels of a row]` that all rows of the first of `rows` share.
        apart: whether rows cannot be left out, so that all of them lose the same channels.

    """

    rows: list[Tensor]
    inner: list[Tensor] = field(default_factory=list)
    apart: bool = False


class Book:
    """What is known of channels so far: which are the same, and which are bound.

    Attributes:
        root: for each channel, the least of those that are the same as it.
        bonds: of channels.
        reads: channels that a product summed over, so that the operand's axis reads them.
        inputs: marks with one axis of what each module that runs was given; the innermost is last.
        unknown: operators without a rule that channels went into.

    """

    def __init__(self) -> None:
        self.root = torch.zeros(1, dtype=torch.int64)
        self.bonds: list[Bond] = []
        self.reads: list[Tensor] = []
        self.inputs: list[Marks] = []
        self.unknown: dict[str, None] = {}

    def fresh(self, shape: Sequence[int]) -> Marks:
        """Return marks of a tensor whose axes run over channels that are not known yet."""
        found = []
        for axis, size in enumerate(shape):
            if size > 1:
                ids = torch.arange(len(self.root), len(self.root) + size)
                self.root = torch.cat([self.root, ids])
                found.append(ids.view([size if k == axis else 1 for k in range(len(shape) + 1)]))
        return found

    def same(self, one: Tensor, other: Tensor) -> bool:
        """Note that channels are the same, entry by entry; shapes are broadcast. Return whether this is news."""
        one, other = torch.broadcast_tensors(one, other)  # type: ignore[no-untyped-call]
        differ = self.root[one] != self.root[other]
        one, other = one[differ], other[differ]
        while not torch.equal(first := self.root[one], second := self.root[other]):
            least = torch.minimum(first, second)
            self.root.scatter_reduce_(0, first, least, "amin").scatter_reduce_(0, second, least, "amin")
            while not torch.equal(above := self.root[self.root], self.root):
                self.root = above
        return len(one) > 0

    def whole(self, marks: Iterable[Tensor]) -> bool:
        """Note that channels are always kept. Return whether this is news."""
        news = [self.same(mark, torch.zeros((), dtype=torch.int64)) for mark in marks]
        return any(news)

    def known(self, marks: Iterable[Tensor]) -> Marks:
        """Return marks by what is known now, without those that say nothing."""
        found = []
        for mark in marks:
            alike = varies(mark) - varies(compact(self.root[mark]))
            for axis in alike:
                mark = mark.narrow(axis, 0, 1)
            if varies(mark):
                found.append(mark)
        return found

    def bind(self, mark: Tensor) -> None:
        """Note that a mark which varies on several axes has rows."""
        if len(varies(mark)) > 1:
            self.bonds.append(Bond([mark]))

    def tie(self, mark: Tensor, sizes: Iterable[int]) -> None:
        """Note that the channels of an attention's heads are those that its module was given, if they are as many.

        Whoever writes `channels // heads` counts on it. `sizes` are those of the axes that the channels were put on:
        one may tell queries, keys and values apart.
        """
        for given in self.inputs[-1] if self.inputs else ():
            times, rest = divmod(mark.numel(), given.numel())
            if not rest and (times == 1 or (times in (2, 3) and times in sizes)):
                self.same(mark.view(times, -1), given.view(1, -1))

    def unite(self, *operands: Shaped) -> Marks:
        """Return the marks of what an operator gives that takes its operands entry by entry; shapes are broadcast."""
        axes = max(len(shape) for _, shape in operands)
        (found, size), *others = (_padded(each, axes) for each in operands)
        for theirs, length in others:
            found = self._two(found, theirs, {k for k in range(axes) if size[k] == length[k] > 1})
            size = [max(pair) for pair in zip(size, length, strict=True)]
        return found

    def sum(self, marks: Marks, axes: Iterable[int]) -> Marks:
        """Return the marks of a sum over some axes, which stay there with size 1."""
        chosen, found = set(axes), []
        for mark in marks:
            gone = varies(mark) & chosen
            if not gone:
                found.append(mark)
            elif varies(mark) - chosen:
                found.append(_hidden(mark, sorted(gone)))
        return found

    def _two(self, mine: Marks, theirs: Marks, both: set[int]) -> Marks:
        """Return the marks of what is there if both operands are; both have their full size on the axes `both`."""
        found = list(mine)
        for mark in mine:
            self._complete(mark, theirs, both)
        for mark in theirs:
            self._complete(mark, mine, both)
            for each in mine:
                self._relate(each, mark, both)
            found.append(mark)
        unlike = [mark for k, mark in enumerate(found) if not any(varies(mark) == varies(m) for m in found[:k])]
        return [mark for mark in unlike if not any(varies(mark) < varies(other) for other in unlike)]

    def _complete(self, mark: Tensor, others: Marks, both: set[int]) -> None:
        """Relate a mark to what the other operand has whole."""
        missing = (varies(mark) & both).difference(*(varies(other) for other in others))
        if missing:
            shape = [size if axis in missing else 1 for axis, size in enumerate(mark.shape)]
            self._relate(mark, torch.zeros(shape, dtype=torch.int64), both)

    def _relate(self, one: Tensor, other: Tensor, both: set[int]) -> None:
        """Note what a mark of one operand has to do with one of the other's."""
        shared = varies(one) & varies(other) & both
        mine, theirs = varies(one) - shared, varies(other) - shared
        extra = mine | theirs
        plain = one.shape[-1] == other.shape[-1] == 1
        if not shared:
            return
        if not extra and one.shape[-1] == other.shape[-1]:
            self.same(one, other)
        elif not extra & both and all(axis > max(shared) for axis in extra):
            self.bonds.append(Bond([rows(one, shared), rows(other, shared)]))
        elif not extra & both and plain and not theirs and max(mine) < min(shared):
            self.bonds.append(Bond([rows(one, mine)], [other.flatten()]))
        elif not extra & both and plain and not mine and max(theirs) < min(shared):
            self.bonds.append(Bond([rows(other, theirs)], [one.flatten()]))
        elif one.shape[-1] == other.shape[-1]:
            self.same(one, other)
        else:
            self.whole((one, other))


def varies(mark: Tensor) -> set[int]:
    """Return the axes on which a mark varies, without the hidden one."""
    return {axis for axis, size in enumerate(mark.shape[:-1]) if size > 1}


def compact(mark: Tensor) -> Tensor:
    """Return a mark with size 1 on every axis on which all entries are the same."""
    for axis in varies(mark):
        first = mark.narrow(axis, 0, 1)
        if bool((mark == first).all()):
            mark = first
    return mark


def placed(mark: Tensor, axes: Sequence[int]) -> Tensor:
    """Return a mark whose axes are those of another one, given by their numbers in order; -1 for one of size 1.

    The mark must not vary on axes that are not named.
    """
    named = [axis for axis in axes if axis >= 0]
    left = [axis for axis in range(mark.ndim - 1) if axis not in named]
    sizes = iter(mark.shape[axis] for axis in named)
    return mark.permute([*named, *left, mark.ndim - 1]).reshape(
        [next(sizes) if axis >= 0 else 1 for axis in axes] + [mark.shape[-1]]
    )


def rows(mark: Tensor, axes: set[int]) -> Tensor:
    """Return the channels of a mark `[rows, channels of a row]`, a row for each place on some axes."""
    count = 1
    for axis in axes:
        count *= mark.shape[axis]
    return mark.movedim(sorted(axes), list(range(len(axes)))).reshape(count, -1)


def _padded(operand: Shaped, axes: int) -> Shaped:
    marks, shape = operand
    lead = [1] * (axes - len(shape))
    return [mark.view([*lead, *mark.shape]) for mark in marks], [*lead, *shape]


def _hidden(mark: Tensor, axes: Sequence[int]) -> Tensor:
    """Return a mark with some axes moved into the hidden one."""
    left = [1 if axis in axes else size for axis, size in enumerate(mark.shape[:-1])]
    return mark.movedim(list(axes), list(range(-len(axes) - 1, -1))).reshape([*left, -1])
