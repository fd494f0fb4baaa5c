"""Operators that multiply and sum: matrix products, convolutions, embeddings."""

from collections.abc import Sequence

import torch

from diastole.models.networks.custom.follow.follower import Call, rule, unknown
from diastole.models.networks.custom.follow.marks import Bond, Marks, Shaped, placed, varies

OPERANDS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "_addmm_activation": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "mv": ("self", "vec"),
    "addmv": ("mat", "vec"),
}


@rule(*OPERANDS)
def product(call: Call) -> list[Marks]:
    """Follow a product of matrices, or of a matrix and a vector, that may be added to something."""
    one, other = (call.shaped(name) for name in OPERANDS[call.name])
    _read(call, OPERANDS[call.name][0], len(one[1]) - 1)
    _read(call, OPERANDS[call.name][1], max(0, len(other[1]) - 2))
    batch = [0] if len(one[1]) == 3 else []
    row, column = len(batch), len(batch) + 1
    if len(other[1]) == 1:
        marks = _summed(call, one, _lined(other, [-1, 0]), column)
        marks = [placed(mark, [0]) for mark in marks]
    else:
        first = _lined(one, [*batch, row, -1, column])
        marks = _summed(call, first, _lined(other, [*batch, -1, column, row]), column + 1)
        marks = [placed(mark, [*batch, row, column]) for mark in marks]
    if OPERANDS[call.name][0] == "self":
        return [marks]
    return [call.book.unite((marks, call.result.shape), call.shaped("self"))]


@rule("dot")
def dot(call: Call) -> list[Marks]:
    """Follow a product of vectors."""
    _summed(call, call.shaped("self"), call.shaped("tensor"), 0)
    return []


@rule("convolution")
def convolution(call: Call) -> list[Marks]:
    """Follow a convolution of any number of axes, grouped and transposed ones too."""
    book, groups, turned = call.book, call.given["groups"], call.given["transposed"]
    (x, size), (weight, shape) = call.shaped("input"), call.shaped("weight")
    tail = [-1] * (len(size) - 2)
    for marks in (x, weight):
        book.whole(mark for mark in marks if varies(mark) - {0, 1})
    x, weight = ([mark for mark in marks if not varies(mark) - {0, 1}] for marks in (x, weight))
    if groups > 1:
        if any(0 in varies(mark) for mark in x):
            return unknown(call)
        found = [_grouped(call, x, weight, shape[1] * groups if turned else shape[0])]
    else:
        taken, given = (0, 1) if turned else (1, 0)
        _read(call, "weight", taken)
        one = _lined((x, size[:2]), [0, -1, 1])
        other = _lined((weight, shape[:2]), [-1, given, taken])
        found = _summed(call, one, other, 2)
    found = [placed(mark, [0, 1, *tail]) for mark in found]
    if not call.there("bias"):
        return [found]
    return [book.unite((found, call.result.shape), _lined(call.shaped("bias"), [-1, 0, *tail]))]


def _grouped(call: Call, x: Marks, weight: Marks, outputs: int) -> torch.Tensor:
    """Return the mark `[1, channels, 1]` of what a grouped convolution gives."""
    book, groups = call.book, call.given["groups"]
    inputs = call.given["input"].shape[1]

    def channels(marks: Marks, axis: int, size: int) -> torch.Tensor:
        found = [mark.flatten() for mark in marks if varies(mark) == {axis}]
        return found[0] if found else torch.zeros(size, dtype=torch.int64)

    taken, first = channels(x, 1, inputs), channels(weight, 0, call.given["weight"].shape[0])
    inner = channels(weight, 1, call.given["weight"].shape[1])
    given = first
    if call.given["transposed"]:
        book.same(taken, first)
        given = book.fresh([outputs])[0].flatten()
    ones, others = taken.view(groups, -1), given.view(groups, -1)
    if ones.shape[1] == 1:
        # The outputs of a group are one channel with its input.
        book.same(ones, others)
        book.whole([inner])
    elif call.given["transposed"]:
        book.bonds.append(Bond([others, ones], [inner]))
    else:
        book.bonds.append(Bond([ones, others], [inner]))
        book.reads.append(inner)
    return given.view(1, -1, 1)


@rule("embedding")
def embedding(call: Call) -> list[Marks]:
    """Follow a table whose rows the examples choose; all rows are kept."""
    call.book.whole(mark for mark in call.marks("weight") if 0 in varies(mark))
    call.book.whole(call.marks("indices"))
    lead = [-1] * (call.result.ndim - 1)
    return [[placed(mark, [*lead, 1]) for mark in call.marks("weight") if varies(mark) == {1}]]


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> list[Marks]:
    """Follow sums of the rows of a table."""
    for name in ("indices", "offsets", "per_sample_weights"):
        call.book.whole(call.marks(name))
    call.book.whole(mark for mark in call.marks("weight") if 0 in varies(mark))
    return [[mark for mark in call.marks("weight") if varies(mark) == {1}]]


def _read(call: Call, name: str, axis: int) -> None:
    """Note which channels a weight sums over."""
    if not getattr(call.given[name], "examples", False):
        call.book.reads += [mark.flatten() for mark in call.marks(name) if varies(mark) == {axis}]


def _lined(operand: Shaped, axes: Sequence[int]) -> Shaped:
    """Return an operand with these of its axes in order, and -1 for one of size 1."""
    marks, shape = operand
    return [placed(mark, axes) for mark in marks], [shape[axis] if axis >= 0 else 1 for axis in axes]


def _summed(call: Call, one: Shaped, other: Shaped, axis: int) -> Marks:
    """Return the marks of the product of two operands, summed over an axis, which has size 1 then."""
    return call.book.sum(call.book.unite(one, other), [axis])
