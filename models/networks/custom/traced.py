"""What the axes of any module's parameters run over, found by following its forward pass operator by operator.

Every axis of every parameter starts with channels of its own. Each operator says which channels of its operands are the
same, and which its result has (`follow`); an operator that nobody knows keeps all that enter it. Channels that
follow each other on every axis that has them make a set.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from diastole.models.channels import Axis, Joined, Layout, spans
from diastole.models.errors import ModelError
from diastole.models.networks.custom.follow import layers as _layers  # noqa: F401 (rules)
from diastole.models.networks.custom.follow import moves as _moves  # noqa: F401 (rules)
from diastole.models.networks.custom.follow import products as _products  # noqa: F401 (rules)
from diastole.models.networks.custom.follow.follower import Followed, following, marks_of
from diastole.models.networks.custom.follow.marks import Book, varies
from diastole.models.networks.custom.made import constants
from diastole.models.networks.custom.settle import blocks, settle, torn
from diastole.models.networks.custom.sizes import Key, Size

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
CHANNELWISE = (*NORMS, nn.PReLU)
"""Layers with parameters whose output has the same channels as their input."""

TABLES = (nn.Embedding, nn.EmbeddingBag)

Side = tuple[str, int]
"""A tensor by its name, and one of its axes."""

Numbers = Mapping[Side, list[int]]
"""For each entry of each side, the number of its channel; entries with one number are one channel."""


@dataclass(frozen=True, slots=True)
class Traced:
    """What was found.

    Attributes:
        layout: which channels each axis of each parameter runs over.
        sets: number of channels of each set, by name, in the order of the tensors that give them.
        constants: which channels the axes of tensors run over that are no parameters: buffers and plain attributes.
        rows: for each set whose channels are left out in rows, as the heads of an attention are, the channels of a row.
        numbers: numbers in the user's modules that are sizes.
        apart: whether no heads are left out, because a narrow module cannot do without.

    """

    layout: Layout
    sets: Mapping[str, int]
    constants: Layout = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[Key, Size] = field(default_factory=dict)
    apart: bool = False


def trace(module: nn.Module, x: Tensor, group: int, apart: bool = False) -> Traced:
    """Return what the axes of a module's tensors run over.

    The input's channels and the outputs are kept whole. So is a set whose size is not a multiple of `group` of at least
    two groups, and a set that shares a layer's only normalisation group.

    Args:
        module: in eval mode; its values do not matter.
        x: examples.
        group: channels that are kept or left out together.
        apart: whether the heads of an attention, and the groups of a convolution, all stay.

    Raises `ModelError` naming the layer that cannot be sliced, and what to do.

    """
    _check_norms(module)
    book, sides = _followed(module, x)
    for bond in book.bonds:
        bond.apart = apart
    settle(book, group)
    while True:
        numbers = {side: book.root[ids].tolist() for side, ids in sides.items()}
        sets = _sets(numbers, _givers(module, numbers))
        kept = {name: members for name, members in sets.items() if len(members) > group and not len(members) % group}
        whole = [bond for bond, rows in blocks(book) if torn(rows, kept)]
        if not whole:
            break
        for bond in whole:
            bond.apart = True
        settle(book, group)
    if not kept:
        raise ModelError(_nothing(module, sets, group, book))
    axes = {side: _axis(_parts(entries, sets), kept) for side, entries in numbers.items()}
    reads = {int(number) for ids in book.reads for number in ids.tolist()}
    layout = {
        name: _turned(
            tuple(axes.get((name, axis)) for axis in range(tensor.ndim)),
            [(name, axis) in sides and int(sides[name, axis][0]) in reads for axis in range(tensor.ndim)],
        )
        for name, tensor in _tensors(module).items()
    }
    for name, layer in module.named_modules():
        if isinstance(layer, nn.GroupNorm):
            _check_groups(name, layer, layout[f"{name}.weight"][0], group)
    rows: dict[str, int] = {}
    place = {channel: name for name, members in kept.items() for channel in members}
    for _, each in blocks(book):
        rows |= {place[channel]: each.shape[1] for channel in each[:, 0].tolist()}
    own = {name for name, _ in module.named_parameters()}
    return Traced(
        {name: found for name, found in layout.items() if name in own},
        {name: len(members) for name, members in kept.items()},
        {name: found for name, found in layout.items() if name not in own},
        rows,
        apart=apart,
    )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **constants(module)}


def _followed(module: nn.Module, x: Tensor) -> tuple[Book, dict[Side, Tensor]]:
    """Return what is known of all channels after a forward pass, and those of every axis of every tensor."""
    book = Book()
    made = {}
    for name, tensor in _tensors(module).items():
        plain = torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.detach()
        made[name] = Followed(plain, book.fresh(tensor.shape))
    marks = {name: list(tensor.marks) for name, tensor in made.items()}
    with torch.no_grad(), _exchanged(module, made), following(module, book):
        book.whole(marks_of(module(Followed(x, [], True))))
    sides = {(name, min(varies(mark))): mark.flatten() for name, found in marks.items() for mark in found}
    return book, sides


@contextmanager
def _exchanged(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Put tensors in the places of a module's own for a while, all that share one included."""
    new = {id(tensor): tensors[name] for name, tensor in _tensors(module).items()}
    before = []
    for layer in module.modules():
        places: tuple[dict[str, Any], ...] = (layer._parameters, layer._buffers, vars(layer))
        for place in places:
            for name, tensor in list(place.items()):
                if isinstance(tensor, Tensor) and id(tensor) in new:
                    before.append((place, name, tensor))
                    place[name] = new[id(tensor)]
        if isinstance(layer, nn.RNNBase):
            layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]
    try:
        yield
    finally:
        for place, name, tensor in before:
            place[name] = tensor
        for layer in module.modules():
            if isinstance(layer, nn.RNNBase):
                layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]


def _nothing(module: nn.Module, sets: Mapping[str, Sequence[int]], group: int, book: Book) -> str:
    what = f"{type(module).__name__} has no layer that can be narrowed by {group} channels at a time; "
    if sets:
        return what + f"its layers have {', '.join(f'{name} {len(members)}' for name, members in sets.items())}"
    if book.unknown:
        return what + f"all channels go through {', '.join(book.unknown)}, of which nobody knows what it does to them"
    return what + "its layers have none"


def _check_norms(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.GroupNorm) and layer.weight is None:
            raise ModelError(f"layer {name or 'itself'!r} ({type(layer).__name__}) has no weights; give it affine=True")


def _givers(module: nn.Module, numbers: Numbers) -> dict[Side, tuple[str, str]]:
    """Return the sides that give a set its name, with that name and another: outputs of layers, and free parameters."""
    layers, found = dict(module.named_modules()), dict[Side, tuple[str, str]]()
    for name, axis in numbers:
        owner, _, own = name.rpartition(".")
        layer = layers.get(owner)
        if isinstance(layer, CHANNELWISE) or own == "bias":
            continue
        known = isinstance(layer, (*CONVOLUTIONS, *TABLES, nn.Linear, nn.RNNBase, nn.MultiheadAttention))
        if not known:
            found[name, axis] = name, name
        elif axis == (1 if isinstance(layer, TABLES) or getattr(layer, "transposed", False) else 0):
            found[name, axis] = owner, name
    return found


def _sets(numbers: Numbers, givers: Mapping[Side, tuple[str, str]]) -> dict[str, list[int]]:
    """Return each set's channels in order, by the first giver; the channel 0 has no set."""
    runs: dict[int, list[tuple[Side, int, int]]] = defaultdict(list)
    for side, entries in numbers.items():
        for number, start, length in _runs(entries):
            runs[number].append((side, start, length))
    runs.pop(0, None)
    sets: dict[str, list[int]] = {}
    last: list[tuple[Side, int, int]] = []
    name = ""
    for number, mine in runs.items():
        if not last or mine != [(side, start + length, length) for side, start, length in last]:
            given = [(givers[side], start) for side, start, _ in mine if side in givers]
            names, start = given[0] if given else ((mine[0][0][0],) * 2, mine[0][1])
            found = [f"{each}[{start}]" if start else each for each in names]
            name = next((each for each in found if each not in sets), f"{found[0]} {len(sets)}")
            sets[name] = []
        sets[name].append(number)
        last = mine
    return sets


def _runs(entries: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield each run of equal numbers: the number, where it starts, and its length."""
    start = 0
    for k in range(1, len(entries) + 1):
        if k == len(entries) or entries[k] != entries[start]:
            yield entries[start], start, k - start
            start = k


def _parts(entries: Sequence[int], sets: Mapping[str, list[int]]) -> list[tuple[Axis | None, int]]:
    """Return the sets that a side runs over, in order, each with its number of entries; None stands for no set."""
    first = {members[0]: name for name, members in sets.items()}
    parts: list[tuple[Axis | None, int]] = []
    start = 0
    for number, begin, length in _runs(entries):
        if begin < start:
            continue
        name = first.get(number)
        size = length if name is None else length * len(sets[name])
        part = None if name is None else Axis(name, length)
        if part is None and parts and parts[-1][0] is None:
            parts[-1] = None, parts[-1][1] + size
        else:
            parts.append((part, size))
        start = begin + size
    return parts


def _axis(runs: Sequence[tuple[Axis | None, int]], kept: Mapping[str, object]) -> Axis | Joined | None:
    """Return what a side runs over; what is not in `kept` cannot be narrowed."""
    parts = tuple((part if part and part.channels in kept else None, size) for part, size in runs)
    if all(part is None for part, _ in parts):
        return None
    return parts[0][0] if len(parts) == 1 else Joined(parts)


def _check_groups(name: str, layer: nn.GroupNorm, axis: Axis | Joined | None, group: int) -> None:
    """Raise `ModelError` if narrowing by `group` channels would cut one of the layer's groups."""
    what = f"layer {name!r} ({type(layer).__name__})"
    start, each = 0, layer.num_channels // layer.num_groups
    for part, length in spans(axis, layer.num_channels):
        if part is not None and (start % each or length % each):
            raise ModelError(
                f"{what} has {each} channels in a group, but the {length} channels of {part.channels!r} begin or end "
                "inside one; choose its groups so that none has channels of two layers"
            )
        if part is not None and group % each:
            raise ModelError(
                f"{what} has {each} channels in a group, and {group} are kept or left out together; set the model's "
                f"group to a multiple of {each}, or choose other groups"
            )
        start += length


def _turned(axes: tuple[Axis | Joined | None, ...], reads: Sequence[bool]) -> tuple[Axis | Joined | None, ...]:
    """Return axes, marked as swapped if the second one has no inputs: it has outputs, or places of a table."""
    if len(axes) < 2 or (reads[1] and not reads[0]) or not (reads[0] or axes[0] is None):
        return axes
    return tuple(_swapped(axis) for axis in axes)


def _swapped(axis: Axis | Joined | None) -> Axis | Joined | None:
    if isinstance(axis, Joined):
        return Joined(tuple((part and replace(part, swapped=True), size) for part, size in axis.parts))
    return axis and replace(axis, swapped=True)
