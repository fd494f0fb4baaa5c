"""Operators that only move entries: each is run on the numbers of places, which tells where every channel went."""

from typing import Any

import torch
from torch import Tensor

from diastole.models.networks.custom.follow.follower import Call, Followed, marks_of, rule, unknown
from diastole.models.networks.custom.follow.marks import Marks, compact, rows, varies

VIEWS = ("view", "_unsafe_view", "_reshape_alias")
PADS = tuple(f"{kind}_pad{axes}d" for kind in ("reflection", "replication") for axes in (1, 2, 3))


@rule(
    *("permute", "transpose", "t", "expand", "squeeze", "unsqueeze", "slice", "select", "split", "split_with_sizes"),
    *("unsafe_split", "unsafe_split_with_sizes", "unbind", "roll", "flip", "unfold", "pixel_unshuffle", "repeat"),
    *("as_strided", "diagonal", "constant_pad_nd", "channel_shuffle", "im2col", "rot90", *VIEWS, *PADS),
)
def moved(call: Call) -> list[Marks]:
    """Follow every mark of the first argument; a mark that then varies on several axes has rows."""
    source = call.tensors[0]
    found: list[Marks] = [[] for _ in call.results]
    for mark in marks_of(source):
        for marks, result in zip(found, _followed(call, mark, source), strict=True):
            marks.append(result)
            if len(varies(result)) > len(varies(mark)) == mark.shape[-1] == 1 and call.name in VIEWS:
                call.book.tie(mark.flatten(), [result.shape[axis] for axis in varies(result)])
            call.book.bind(result)
    for marks in found:
        _separate(call, marks)
    if call.name == "expand":
        # What is the same everywhere may be repeated as often as another tensor needs it.
        lead = call.result.ndim - source.ndim
        found[0] += call.book.fresh(
            [
                size if axis < lead or source.shape[axis - lead] == 1 else 1
                for axis, size in enumerate(call.result.shape)
            ]
        )
    return found


def _followed(call: Call, mark: Tensor, source: Tensor) -> list[Tensor]:
    """Return a mark of each of the results."""
    table = torch.cat([torch.zeros(1, mark.shape[-1], dtype=torch.int64), mark.reshape(-1, mark.shape[-1])])
    places = torch.arange(1, len(table)).view(mark.shape[:-1]).expand(source.shape)
    if call.name in VIEWS:
        results = [places.reshape(call.result.shape)]
    elif call.name == "constant_pad_nd":
        results = [torch.constant_pad_nd(places, call.given["pad"])]
    elif call.name == "as_strided":
        there = torch.empty_strided(source.shape, source.stride(), dtype=torch.int64).copy_(places)
        results = [call.again(lambda leaf: there if leaf is source else leaf)]
    else:
        # Some kernels take no whole numbers.
        numbers = places.double() if call.name == "im2col" or call.name in PADS else places
        result = call.again(lambda leaf: numbers if leaf is source else _values(leaf))
        results = list(result) if isinstance(result, (tuple, list)) else [result]
    return [table[compact(result.long().unsqueeze(-1)).squeeze(-1)] for result in results]


def _values(leaf: Any) -> Any:
    return leaf.plain if isinstance(leaf, Followed) else leaf


def _separate(call: Call, marks: Marks) -> None:
    """Keep whole what two marks of one tensor have on one axis, as behind an outer product that is flattened."""
    for k, one in enumerate(marks):
        for other in marks[:k]:
            if varies(one) & varies(other) and (varies(one) <= varies(other) or varies(other) <= varies(one)):
                call.book.whole((one, other))


@rule("cat", "stack")
def joined(call: Call) -> list[Marks]:
    """Join the marks that vary on the axis, and unite the others."""
    tensors = [tensor for tensor in call.given["tensors"] if tensor.shape != (0,)]
    axis = call.given["dim"] % call.result.ndim
    if call.name == "stack":
        operands = [([mark.unsqueeze(axis) for mark in marks_of(each)], [*each.shape]) for each in tensors]
        for _, shape in operands:
            shape.insert(axis, 1)
    else:
        operands = [(marks_of(each), [*each.shape]) for each in tensors]
    along = [[mark for mark in marks if axis in varies(mark)] for marks, _ in operands]
    covered = set[int]().union(*(varies(mark) for marks in along for mark in marks)) - {axis}
    others = [[mark for mark in marks if axis not in varies(mark)] for marks, _ in operands]
    if any(len(marks) > 1 or any(mark.shape[-1] > 1 for mark in marks) for marks in along) or any(
        varies(mark) & covered for marks in others for mark in marks
    ):
        return unknown(call)
    rest = call.book.unite(
        *(
            (marks, [1 if k == axis else size for k, size in enumerate(shape)])
            for marks, (_, shape) in zip(others, operands, strict=True)
        )
    )
    if not any(along):
        return [rest]
    parts = []
    for marks, (_, shape) in zip(along, operands, strict=True):
        sizes = [size if k == axis or k in covered else 1 for k, size in enumerate(shape)]
        parts.append(marks[0].expand([*sizes, 1]) if marks else torch.zeros([*sizes, 1], dtype=torch.int64))
    mark = torch.cat(parts, axis)
    call.book.bind(mark)
    return [[*rest, mark]]


@rule("index", "index_select", "gather")
def indexed(call: Call) -> list[Marks]:
    """Follow places that are constant; what is chosen by the examples or by parameters is kept whole on that axis."""
    source = call.given["self"]
    if call.name == "index":
        places = {axis: each for axis, each in enumerate(call.given["indices"]) if each is not None}
    else:
        places = {call.given["dim"] % max(1, source.ndim): call.given["index"]}
    constant = not any(isinstance(each, Followed) for each in places.values())
    if any(each.dtype == torch.bool for each in places.values()) or (call.name == "gather" and constant):
        return unknown(call)
    for each in places.values():
        call.book.whole(marks_of(each))
    found = []
    for mark in marks_of(source):
        if varies(mark) & set(places) and not constant:
            call.book.whole([mark])
        else:
            found.append(_followed(call, mark, source)[0])
    return [found]


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> list[Marks]:
    """Let the channels that become one channel's pixels be one."""
    marks, shape = call.shaped("self")
    axis, pixels, found = len(shape) - 3, call.given["upscale_factor"] ** 2, []
    for mark in marks:
        if axis not in varies(mark):
            found.append(mark)
            continue
        units = rows(mark, {axis}).view(shape[axis] // pixels, pixels, -1)
        call.book.same(units, units[:, :1])
        found.append(mark.unfold(axis, pixels, pixels)[..., 0])
    return [found]
