"""What the axes of any module's parameters run over, found in the module's own dependency graph.

The graph is torch-pruning's (Fang et al., DepGraph, CVPR 2023): it follows autograd's record of one forward pass and
tells which channels of two layers are the same, through additions, concatenations, splits and flattened maps. Here
every channel of every layer is followed through the graph, and the same channels are united into one. Channels that
follow each other on every axis that has them make a set.
"""

import warnings
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from diastole.models.channels import Axis, Joined, Layout, spans
from diastole.models.errors import ModelError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
CHANNELWISE = (*NORMS, nn.PReLU)
"""Layers with parameters whose output has the same channels as their input."""

Side = tuple[str, str]
"""A layer by its name, and "out" for the channels of its output or "in" for those of its input."""

Layers = Mapping[str, nn.Module]
Numbers = Mapping[Side, list[int]]
"""For each entry of each side, the number of its channel; entries with one number are one channel."""


class _Place(NamedTuple):
    """An entry of a side, and the one that it was followed from, under the names that torch-pruning's maps read."""

    idx: int
    root_idx: int


@dataclass(frozen=True, slots=True)
class Traced:
    """What was found.

    Attributes:
        layout: which channels each axis of each parameter runs over.
        sets: number of channels of each set, by name, in the order of the layers that give them.

    """

    layout: Layout
    sets: Mapping[str, int]


def trace(module: nn.Module, input_shape: Sequence[int], group: int) -> Traced:
    """Return what the axes of a module's parameters run over.

    The input's channels and the outputs are kept whole. So is a set whose size is not a multiple of `group` of at least
    two groups, and a set that shares a layer's only normalisation group.

    Args:
        module: on the meta device.
        input_shape: of one example.
        group: channels that are kept or left out together.

    Raises `ModelError` naming the layer that cannot be sliced, and what to do.

    """
    layers = layers_of(module)
    numbers, whole = _numbers(module, layers, input_shape)
    for name, layer in layers.items():
        if isinstance(layer, nn.GroupNorm) and layer.num_groups == 1:
            whole |= set(numbers[name, "out"])
    givers = {name for name, layer in layers.items() if not isinstance(layer, CHANNELWISE)}
    sets = _sets(numbers, whole, givers)
    kept = {name: len(members) for name, members in sets.items() if len(members) > group and not len(members) % group}
    if not kept:
        raise ModelError(
            f"{type(module).__name__} has no layer that can be narrowed by {group} channels at a time; "
            f"its layers have {', '.join(f'{name} {len(members)}' for name, members in sets.items()) or 'none'}"
        )
    axes = {side: _axis(_parts(entries, sets), kept) for side, entries in numbers.items()}
    for name, layer in layers.items():
        if isinstance(layer, nn.GroupNorm):
            _check_groups(name, layer, layer.num_groups, axes[name, "out"], group)
        elif isinstance(layer, CONVOLUTIONS) and layer.groups > 1:
            _check_groups(name, layer, layer.groups, axes[name, "out"], group)
    return Traced({name: _axes(layers, name, axes) for name, _ in module.named_parameters()}, kept)


def layers_of(module: nn.Module) -> Layers:
    """Return the layers with parameters, by name. Raises `ModelError` for one that cannot be sliced."""
    layers: dict[str, nn.Module] = {}
    for name, layer in module.named_modules():
        what = f"layer {name or 'itself'!r} ({type(layer).__name__})"
        own = [key for key, _ in layer.named_parameters(recurse=False)]
        if buffers := [key for key, _ in layer.named_buffers(recurse=False)]:
            raise ModelError(
                f"{what} has the buffer {buffers[0]!r}, which would be averaged or overwritten silently; use GroupNorm "
                "or LayerNorm, or BatchNorm with track_running_stats=False, and plain attributes for constants"
            )
        if isinstance(layer, nn.GroupNorm) and not own:
            raise ModelError(f"{what} has no weights; give it affine=True")
        if not own:
            continue
        if not isinstance(layer, (*CONVOLUTIONS, nn.Linear, *CHANNELWISE)) or not set(own) <= {"weight", "bias"}:
            raise ModelError(
                f"{what} has the parameter {own[0]!r}, of which nobody knows what it runs over; put it into a "
                "convolution, Linear, GroupNorm, LayerNorm, BatchNorm, InstanceNorm or PReLU"
            )
        grouped = isinstance(layer, CONVOLUTIONS) and layer.groups > 1
        if grouped and (layer.transposed or layer.in_channels != layer.out_channels):
            raise ModelError(
                f"{what} has {layer.groups} groups for {layer.in_channels} channels in and {layer.out_channels} out; "
                "a grouped convolution must give as many as it takes, and not be transposed"
            )
        if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) > 1:
            raise ModelError(f"{what} normalises axes of {list(layer.normalized_shape)}; only the last one is accepted")
        layers[name] = layer
    if len(list(module.named_parameters(remove_duplicate=False))) != len(list(module.parameters())):
        raise ModelError(f"{type(module).__name__} has one parameter in two layers; give each a parameter of its own")
    return layers


class _Entered(nn.Module):
    """A module after a layer that has the examples' channels, and before an operator that has the outputs'."""

    def __init__(self, module: nn.Module, channels: int) -> None:
        super().__init__()
        self.entry, self.module = nn.PReLU(channels, device="meta"), module

    def forward(self, x: torch.Tensor) -> Any:
        return self.module(self.entry(x)) * 1


def _numbers(module: nn.Module, layers: Layers, input_shape: Sequence[int]) -> tuple[Numbers, set[int]]:
    """Return the number of every entry's channel, and those of the examples' channels and of the outputs."""
    try:
        import torch_pruning
    except ImportError:
        raise ModelError("model custom needs torch-pruning: pip install 'diastole[any]'") from None
    entered, x = _Entered(module, input_shape[0]), torch.zeros(2, *input_shape, device="meta")
    graph: Any = torch_pruning.DependencyGraph()
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph.build_dependency(entered, example_inputs=(x,), verbose=False)
    if lost := [name for name, layer in layers.items() if layer not in graph.module2node]:
        raise ModelError(
            f"layer {lost[0]!r} ({type(layers[lost[0]]).__name__}) is not called in forward, or what it gives is not "
            "used; call layers instead of reading their weights, and remove those that do nothing"
        )
    classes, ends, start = _Classes(), list[Any](), list[tuple[Any, Any, int]]()
    sides: dict[Side, tuple[Any, Any, int]] = {}
    for name, layer in layers.items():
        node, pruner = graph.module2node[layer], graph.get_pruner_of_module(layer)
        out, taken = _channels(layer)
        sides[name, "out"] = node, pruner.prune_out_channels, out
        if taken:
            sides[name, "in"] = node, pruner.prune_in_channels, taken
        if isinstance(layer, CONVOLUTIONS) and layer.groups > 1:
            for k in range(out):
                classes.unite((node, pruner.prune_out_channels, k), (node, pruner.prune_in_channels, k))
    entry = graph.module2node[entered.entry]
    start = [*sides.values(), (entry, graph.get_pruner_of_module(entered.entry).prune_out_channels, input_shape[0])]
    seen = {(node, side, k) for node, side, size in start for k in range(size)}
    todo = deque((node, side, list(range(size))) for node, side, size in start)
    while todo:
        node, side, places = todo.popleft()
        if node is entry or node.type == graph.ops.OPTYPE.OUTPUT:
            ends += [(node, side, k) for k in places]
        for dependency in node.dependencies:
            if not dependency.is_triggered_by(side):
                continue
            found: Sequence[Any] = [_Place(k, k) for k in places]
            for mapping in dependency.index_mapping:
                found = found if mapping is None else mapping(found)
            fresh = []
            for place in found:
                target = dependency.target, dependency.handler, place.idx
                classes.unite(target, (node, side, place.root_idx))
                if target not in seen:
                    seen.add(target)
                    fresh.append(place.idx)
            if fresh:
                todo.append((dependency.target, dependency.handler, fresh))
    numbers = {key: [classes.number((node, side, k)) for k in range(size)] for key, (node, side, size) in sides.items()}
    return numbers, {classes.number(end) for end in ends}


def _channels(layer: Any) -> tuple[int, int]:
    """Return how many channels a layer's output and input have; 0 for the input if they are the same channels."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    if isinstance(layer, CONVOLUTIONS):
        return layer.out_channels, layer.in_channels if layer.groups == 1 else 0
    return layer.weight.numel(), 0


class _Classes:
    """Classes of things that are the same (union-find)."""

    def __init__(self) -> None:
        self._above: dict[Any, Any] = {}
        self._numbers: dict[Any, int] = {}

    def find(self, thing: Any) -> Any:
        passed = []
        while thing in self._above:
            passed.append(thing)
            thing = self._above[thing]
        for each in passed:
            self._above[each] = thing
        return thing

    def unite(self, one: Any, other: Any) -> None:
        one, other = self.find(one), self.find(other)
        if one != other:
            self._above[one] = other

    def number(self, thing: Any) -> int:
        return self._numbers.setdefault(self.find(thing), len(self._numbers))


def _sets(numbers: Numbers, whole: set[int], givers: set[str]) -> dict[str, list[int]]:
    """Return each set's channels in order, by the first of `givers` that gives it; channels in `whole` have no set."""
    runs: dict[int, list[tuple[Side, int, int]]] = defaultdict(list)
    for side, entries in numbers.items():
        for number, start, length in _runs(entries):
            runs[number].append((side, start, length))
    sets: dict[str, list[int]] = {}
    last: list[tuple[Side, int, int]] = []
    name = ""
    for number, mine in runs.items():
        if number in whole:
            continue
        if not last or mine != [(side, start + length, length) for side, start, length in last]:
            given = [(layer, start) for (layer, side), start, _ in mine if side == "out" and layer in givers]
            layer, start = given[0] if given else (f"{mine[0][0][0]} ({mine[0][0][1]})", mine[0][1])
            name = f"{layer}[{start}]" if start else layer
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


def _axis(runs: Sequence[tuple[Axis | None, int]], kept: Mapping[str, int]) -> Axis | Joined | None:
    """Return what a side runs over; what is not in `kept` cannot be narrowed."""
    parts = tuple((part if part and part.channels in kept else None, size) for part, size in runs)
    if all(part is None for part, _ in parts):
        return None
    return parts[0][0] if len(parts) == 1 else Joined(parts)


def _check_groups(name: str, layer: nn.Module, groups: int, axis: Axis | Joined | None, group: int) -> None:
    """Raise `ModelError` if narrowing by `group` channels would cut one of the layer's groups."""
    size, what = _channels(layer)[0], f"layer {name!r} ({type(layer).__name__})"
    start, each = 0, size // groups
    for part, length in spans(axis, size):
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


def _axes(layers: Layers, name: str, axes: Mapping[Side, Axis | Joined | None]) -> tuple[Axis | Joined | None, ...]:
    """Return what each axis of a parameter runs over."""
    owner, _, own = name.rpartition(".")
    layer, out = layers[owner], axes[owner, "out"]
    if own == "bias" or isinstance(layer, CHANNELWISE):
        return (out,)
    pair = (out, axes.get((owner, "in")))
    if not isinstance(layer, CONVOLUTIONS):
        return pair
    return (*((_swapped(pair[1]), _swapped(out)) if layer.transposed else pair), *[None] * len(layer.kernel_size))


def _swapped(axis: Axis | Joined | None) -> Axis | Joined | None:
    if isinstance(axis, Joined):
        return Joined(tuple((part and replace(part, swapped=True), size) for part, size in axis.parts))
    return axis and replace(axis, swapped=True)
