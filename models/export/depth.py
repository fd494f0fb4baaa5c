"""Latency-aware depth compression (Kim et al., ICML 2023): fewer, larger layers, within a measured time.

Between two convolutions stand a normalisation and an activation. Where these two are replaced by the affine map of each
channel that is closest to them, the convolutions are one. A block that keeps the shape of its input can be taken out,
and such a map put in its place. Which of this is done is decided by what each change does to the outputs, by measured
times, and by two-stage dynamic programming (`planning.py`).

The paper trains the network further before it merges; here nothing is trained. Maps are fitted from front to back, each
to what the network in front of it has become.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node, symbolic_trace
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from diastole.models.errors import ModelError
from diastole.models.export.graphs import FUNCTIONS, POINTWISE, inputs, values
from diastole.models.export.merging import LARGEST, Affine, affine, can_merge, merge, scaled
from diastole.models.export.planning import Edge, Segment, best_path, fastest

BETWEEN = (_BatchNorm, nn.GroupNorm, *POINTWISE)
Timer = Callable[[nn.Module, Tensor], float]


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a network that is looked at by itself: a block, or all of it.

    Attributes:
        path: in the network, "" for all of it.
        graph: of its operations.
        layers: its convolutions that might be merged, in order, by their paths in the graph.
        linked: for each of these but the last, whether only a normalisation and an activation lie before the next.
        loose: whether it can be taken out.
        axis: of the channels of its input.

    """

    path: str
    graph: GraphModule
    layers: tuple[str, ...]
    linked: tuple[bool, ...]
    loose: bool = False
    axis: int = 1

    @property
    def length(self) -> int:
        """How many layers a plan counts in it; one if there is nothing to merge."""
        return max(1, len(self.layers))


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to one unit: it is taken out, or segments of its layers run as these merged parts."""

    out: bool = False
    parts: tuple[tuple[Segment, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to a network.

    Attributes:
        changes: by the number of the unit.
        seconds: that it is predicted to take.
        whole: that the network takes as it is, by the same measurements.
        words: what is done, for people.

    """

    changes: Mapping[int, Change] = field(default_factory=dict)
    seconds: float = 0.0
    whole: float = 0.0
    words: str = ""


Kind = Literal["keep", "merge", "out"]


class Depth:
    """A network, looked at for what can be merged or taken out."""

    def __init__(self, module: nn.Module, blocks: Sequence[str], x: Tensor, axis: int = 1) -> None:
        """Look at a plain network.

        Args:
            module: plain (`models/export/plain.py`).
            blocks: paths of its blocks; empty if it has none, and is looked at as a whole.
            x: inputs by which maps are fitted and changes are judged, `[n, *input_shape]`; no labels are needed.
            axis: of the channels in the blocks' inputs.

        Raises `ModelError` if nothing can be merged or taken out.

        """
        self._module, self._x = module, x
        self._inputs = inputs(module, blocks, x)
        self.units: list[Unit] = [self._unit(path, axis) for path in blocks or ("",)]
        with torch.no_grad():
            self._wanted: Tensor = module(x)
        if not any(unit.loose or any(unit.linked) for unit in self.units):
            raise ModelError(
                "no block keeps its shape, and no two convolutions follow each other: depth stays as it is"
            )

    def plan(self, share: float, timer: Timer) -> Plan:
        """Return what to do so that the network takes at most `share` of its time. Raises `ModelError` if it cannot."""
        one, edges, at, rest = self._x[:1], list[Edge](), 0, 0.0
        whole = timer(self._module, one)
        for number, unit in enumerate(self.units):
            found, spent = self._edges(number, unit, at, timer)
            edges += found
            rest += spent
            at += unit.length
        # What lies outside of all units: stem, poolings, classifier.
        fixed = max(0.0, whole - rest)
        path = best_path(at, edges, share * whole - fixed)
        if path is None:
            least = (fixed + _least(edges, at)) / whole
            raise ModelError(f"depth: {share:.0%} of the time cannot be reached; at least {least:.0%} remain")
        changes = dict[int, Change]()
        for edge in path:
            number, change = edge.action
            if change is not None:
                before = changes.get(number, Change())
                changes[number] = Change(change.out, (*before.parts, *change.parts))
        seconds = fixed + sum(edge.cost for edge in path)
        return Plan(changes, seconds, whole, self._words(changes))

    @torch.no_grad()
    def build(self, changes: Mapping[int, Change]) -> nn.Module:
        """Return the network with changes, its maps fitted from front to back."""
        made: nn.Module = deepcopy(self._module)
        for number, change in sorted(changes.items()):
            unit = self.units[number]
            here = inputs(made, [unit.path] if unit.path else [], self._x)[unit.path]
            there = self._inputs[unit.path]
            if change.out:
                new: nn.Module = Affine(*affine(here, unit.graph(there), unit.axis), unit.axis)
            else:
                new = _merged(unit, change.parts, here, there)
            if not unit.path:
                return new
            made.set_submodule(unit.path, new)
        return made.eval()

    @torch.no_grad()
    def loss(self, changes: Mapping[int, Change]) -> float:
        """Return how far the outputs are from the network's after changes: a divergence of classes, or a distance."""
        outputs = self.build(changes)(self._x)
        if self._wanted.ndim == 2 and self._wanted.shape[1] > 1:
            return float(F.kl_div(outputs.log_softmax(1), self._wanted.softmax(1), reduction="batchmean"))
        return float(F.mse_loss(outputs, self._wanted) / self._wanted.var().clamp(min=1e-12))

    def _unit(self, path: str, axis: int) -> Unit:
        block, x = self._module.get_submodule(path), self._inputs[path]
        try:
            graph = symbolic_trace(block)
        except Exception as error:  # noqa: BLE001 (the user's code may do what cannot be traced)
            raise ModelError(f"{path or 'the model'} cannot be traced: {type(error).__name__}") from None
        layers = [str(node.target) for node in graph.graph.nodes if _is_layer(graph, node)]
        linked = [_follows(graph, one, other) for one, other in pairwise(layers)]
        with torch.no_grad():
            loose = bool(path) and block(x[:1]).shape == x[:1].shape
        return Unit(path, graph.eval(), tuple(layers), tuple(linked), loose, axis)

    def _edges(self, number: int, unit: Unit, at: int, timer: Timer) -> tuple[list[Edge], float]:
        """Return the ways to run a unit, whose first layer is number `at` of all, and the seconds that it takes."""
        x = self._inputs[unit.path][:1]
        seconds = timer(unit.graph, x)
        found = list[Edge]()
        if unit.loose:
            out = Change(out=True)
            scale = torch.ones(x.shape[unit.axis])
            cost = timer(Affine(scale, torch.zeros_like(scale), unit.axis), x)
            found.append(Edge(at, at + unit.length, cost, -self.loss({number: out}), (number, out)))
        seen = values(unit.graph, x)
        alone = {k: timer(*_run_of(unit.graph, unit.layers, k, seen)) for k in range(len(unit.layers))}
        # The unit's additions, shortcut and the like come with its first layer.
        rest = max(0.0, seconds - sum(alone.values()))
        for k in range(unit.length):
            found.append(Edge(at + k, at + k + 1, alone.get(k, 0.0) + (rest if k == 0 else 0.0), 0.0, (number, None)))
        times = self._times(unit, seen, timer)
        for (start, stop), (cost, parts) in fastest(times).items():
            if stop - start > 1:
                change = Change(parts=(tuple(parts),))
                # The normalisation and the activation behind the last layer are still there.
                cost += max(0.0, alone[stop - 1] - times[stop - 1, stop]) + (rest if start == 0 else 0.0)
                found.append(Edge(at + start, at + stop, cost, -self.loss({number: change}), (number, change)))
        return found, seconds

    def _times(self, unit: Unit, values: Mapping[str, Tensor], timer: Timer) -> dict[Segment, float]:
        """Return the seconds of every segment of a unit that can be merged, as one convolution alone."""
        found = dict[Segment, float]()
        for start, first in enumerate(unit.layers):
            layer: Any = unit.graph.get_submodule(first)
            x = values[_input_of(unit.graph, first).name]
            found[start, start + 1] = timer(layer, x)
            for stop in range(start + 2, len(unit.layers) + 1):
                if not unit.linked[stop - 2]:
                    break
                following: Any = unit.graph.get_submodule(unit.layers[stop - 1])
                ones = torch.ones(layer.out_channels)
                layer = merge(layer, ones, ones * 0, following)
                if max(layer.kernel_size) > LARGEST:
                    break
                found[start, stop] = timer(layer, x)
        return found

    def _words(self, changes: Mapping[int, Change]) -> str:
        out = [self.units[number].path for number, change in changes.items() if change.out]
        merged = [
            " + ".join(
                ".".join(filter(None, (self.units[number].path, name))) for name in self.units[number].layers[i:j]
            )
            for number, change in changes.items()
            for parts in change.parts
            for i, j in [(parts[0][0], parts[-1][1])]
        ]
        told = [f"taken out: {', '.join(out)}"] if out else []
        return "; ".join([*told, *([f"made linear or merged: {', '.join(merged)}"] if merged else [])]) or "nothing"


def _least(edges: Sequence[Edge], length: int) -> float:
    best = [0.0] + [float("inf")] * length
    for edge in sorted(edges, key=lambda edge: edge.start):
        best[edge.stop] = min(best[edge.stop], best[edge.start] + edge.cost)
    return best[length]


def _is_layer(graph: GraphModule, node: Node) -> bool:
    return node.op == "call_module" and can_merge(graph.get_submodule(str(node.target)))


def _node(graph: GraphModule, layer: str) -> Node:
    found: Node = next(node for node in graph.graph.nodes if node.op == "call_module" and node.target == layer)
    return found


def _input_of(graph: GraphModule, layer: str) -> Node:
    return _node(graph, layer).all_input_nodes[0]


def _behind(graph: GraphModule, layer: str) -> list[Node]:
    """Return the normalisations and activations that alone take what a layer gives, in order."""
    node, found = _node(graph, layer), list[Node]()
    while len(node.users) == 1:
        node = next(iter(node.users))
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        pointwise = isinstance(module, BETWEEN) or (node.op == "call_function" and node.target in FUNCTIONS)
        if not pointwise or len(node.all_input_nodes) != 1:
            break
        found.append(node)
    return found


def _follows(graph: GraphModule, one: str, other: str) -> bool:
    last = [_node(graph, one), *_behind(graph, one)][-1]
    return list(last.users) == [_node(graph, other)]


def _run_of(
    graph: GraphModule, layers: Sequence[str], k: int, values: Mapping[str, Tensor]
) -> tuple[nn.Module, Tensor]:
    """Return a layer with what stands behind it, and its input."""
    steps: list[Any] = [graph.get_submodule(layers[k])]
    for node in _behind(graph, layers[k]):
        steps.append(graph.get_submodule(str(node.target)) if node.op == "call_module" else _Function(node.target))
    return nn.Sequential(*steps), values[_input_of(graph, layers[k]).name]


class _Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function(x)
        return y


def _merged(unit: Unit, parts: Sequence[Sequence[Segment]], here: Tensor, there: Tensor) -> GraphModule:
    """Return a unit whose segments run as merged parts.

    Args:
        unit: as it was.
        parts: of each segment, in order.
        here: what the unit is given now.
        there: what it was given before anything was changed.

    """
    graph, wanted = deepcopy(unit.graph), values(unit.graph, there)
    for segment in parts:
        first, last = segment[0][0], segment[-1][1] - 1
        for k in range(first, last):
            name, following = unit.layers[k], unit.layers[k + 1]
            now = values(graph, here)[_node(graph, name).name]
            fitted = affine(now, wanted[_input_of(unit.graph, following).name])
            graph.set_submodule(name, scaled(graph.get_submodule(name), *fitted))  # type: ignore[arg-type]
            for node in _behind(graph, name):
                node.replace_all_uses_with(_node(graph, name))
                graph.graph.erase_node(node)
            graph.recompile()
        for start, stop in segment:
            layers: list[Any] = [graph.get_submodule(unit.layers[k]) for k in range(start, stop)]
            made = layers[0]
            for layer in layers[1:]:
                ones = torch.ones(made.out_channels)
                made = merge(made, ones, ones * 0, layer)
            graph.set_submodule(unit.layers[stop - 1], made)
            end, begin = _node(graph, unit.layers[stop - 1]), _input_of(graph, unit.layers[start])
            end.replace_input_with(end.all_input_nodes[0], begin)
            graph.graph.eliminate_dead_code()
            graph.recompile()
    graph.delete_all_unused_submodules()
    return graph.eval()
