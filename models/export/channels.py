"""Fewer channels inside a trained network, layer by layer from front to back (`lasso.py`)."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node, symbolic_trace
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from diastole.models.errors import ModelError
from diastole.models.export.graphs import FUNCTIONS, POINTWISE, inputs, values
from diastole.models.export.lasso import chosen, solved

POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
ROWS = 4000
"""Rows of a layer's inputs, at most, that decide and are fitted to."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A layer that writes channels, and the only one that reads them.

    Attributes:
        writer: its path.
        norms: paths of the normalisations between.
        reader: its path.
        group: channels that stay together.

    """

    writer: str
    norms: tuple[str, ...]
    reader: str
    group: int


def traced(module: nn.Module) -> GraphModule:
    """Return the graph of a plain module. Raises `ModelError` if it has none."""
    try:
        return symbolic_trace(module).eval()
    except Exception as error:  # noqa: BLE001 (the user's code may do what cannot be traced)
        raise ModelError(f"the model cannot be traced: {type(error).__name__}") from None


def pairs(graph: GraphModule) -> list[Pair]:
    """Return the pairs between whose layers each channel goes its own way, in order."""
    found = []
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    for node in graph.graph.nodes:
        layer = _module(graph, node)
        if isinstance(layer, LAYERS) and _whole(layer) and calls.count(str(node.target)) == 1:
            pair = _pair(graph, node, layer)
            if pair is not None and calls.count(pair.reader) == 1:
                found.append(pair)
    return found


@torch.no_grad()
def pruned(module: nn.Module, x: Tensor, keep: float, blocks: Sequence[str] = ()) -> tuple[nn.Module, int]:
    """Return a plain module with `keep` of the channels of every pair, and how many were left out.

    Args:
        module: plain (`models/export/plain.py`).
        x: inputs `[n, *input_shape]` that decide, and that layers are fitted to.
        keep: share of each pair's channels, in (0, 1].
        blocks: paths of blocks, which are looked at one by one if the network as a whole cannot be traced.

    Raises `ModelError` if there is no pair.

    """
    try:
        graph = traced(module)
    except ModelError:
        if not blocks:
            raise
    else:
        gone = _thin(graph, keep, x, values(graph, x))
        return _some(graph.eval(), gone)
    made, gone, before = deepcopy(module), 0, inputs(module, blocks, x)
    for path in blocks:
        graph, whole = (traced(each.get_submodule(path)) for each in (made, module))
        gone += _thin(graph, keep, inputs(made, [path], x)[path], values(whole, before[path]))
        made.set_submodule(path, graph)
    return _some(made, gone)


def _some(made: nn.Module, gone: int) -> tuple[nn.Module, int]:
    if not gone:
        raise ModelError("no two layers have channels of their own between them that can be left out")
    return made, gone


def _thin(graph: GraphModule, keep: float, x: Tensor, wanted: dict[str, Tensor]) -> int:
    """Leave channels of every pair out, in place; return how many."""
    gone = 0
    for pair in pairs(graph):
        writer: Any = graph.get_submodule(pair.writer)
        count = len(writer.weight) // pair.group
        few = max(1, round(keep * count))
        if few < count:
            _prune(graph, pair, few, x, wanted)
            gone += (count - few) * pair.group
    graph.recompile()
    return gone


def _pair(graph: GraphModule, node: Node, layer: nn.Module) -> Pair | None:
    norms, group, writer = list[str](), 1, str(node.target)
    spatial = not isinstance(layer, nn.Linear)
    while len(node.users) == 1:
        node = next(iter(node.users))
        if len(node.all_input_nodes) != 1:
            return None
        inner = _module(graph, node)
        if isinstance(inner, LAYERS):
            # A dense layer behind a map reads it flattened; behind another dense layer it is a product of tokens.
            fits = _whole(inner) and (isinstance(inner, nn.Linear) or spatial)
            return Pair(writer, tuple(norms), str(node.target), group) if fits else None
        if isinstance(inner, nn.GroupNorm | _BatchNorm) and spatial:
            norms.append(str(node.target))
            if isinstance(inner, nn.GroupNorm):
                group = max(group, inner.num_channels // inner.num_groups)
        elif not (_plain(inner, node) or (spatial and (isinstance(inner, POOLS) or _flattens(inner, node)))):
            return None
    return None


def _prune(graph: GraphModule, pair: Pair, few: int, x: Tensor, wanted: dict[str, Tensor]) -> None:
    """Leave out channels of one pair, in place."""
    writer: Any = graph.get_submodule(pair.writer)
    reader: Any = graph.get_submodule(pair.reader)
    node = next(each for each in graph.graph.nodes if each.op == "call_module" and each.target == pair.reader)
    channels = len(writer.weight)
    rows, goal = _rows(reader, values(graph, x)[node.all_input_nodes[0].name]), _outputs(reader, wanted[node.name])
    pick = torch.linspace(0, len(rows) - 1, min(ROWS, len(rows))).long()
    rows, goal = rows[pick], goal[pick]
    units = rows.view(len(rows), channels // pair.group, -1)
    weight = reader.weight
    bias = 0 if reader.bias is None else reader.bias
    kept = chosen(units, weight.reshape(len(weight), channels // pair.group, -1), goal - bias, few)
    index = (kept[:, None] * pair.group + torch.arange(pair.group)).flatten()
    fitted, offset = solved(units[:, kept].flatten(1), goal)
    graph.set_submodule(pair.writer, _written(writer, index))
    for path in pair.norms:
        graph.set_submodule(path, _norm(graph.get_submodule(path), index))
    graph.set_submodule(pair.reader, _read(reader, fitted, offset, len(index), channels))


def _rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what a layer multiplies its weights by, `[rows, values]`; a channel's values are side by side."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    kernel, stride, padding = (tuple(getattr(layer, name)) for name in ("kernel_size", "stride", "padding"))
    if isinstance(layer, nn.Conv1d):
        x, kernel, stride, padding = x.unsqueeze(2), (1, *kernel), (1, *stride), (0, *padding)
    return F.unfold(x, kernel, padding=padding, stride=stride).transpose(1, 2).flatten(0, 1)


def _outputs(layer: nn.Module, y: Tensor) -> Tensor:
    return y.reshape(-1, y.shape[-1]) if isinstance(layer, nn.Linear) else y.flatten(2).transpose(1, 2).flatten(0, 1)


def _written(layer: Any, index: Tensor) -> nn.Module:
    made: nn.Module = _like(layer, layer.weight.shape[1], len(index), layer.bias is not None)
    made.weight = nn.Parameter(layer.weight[index].clone(), False)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias[index].clone(), False)
    return made


def _read(layer: Any, weight: Tensor, bias: Tensor, kept: int, before: int) -> nn.Module:
    inside = layer.weight.shape[1] * kept // before
    made: nn.Module = _like(layer, inside, len(weight), True)
    made.weight = nn.Parameter(weight.view(len(weight), inside, *layer.weight.shape[2:]).clone(), False)
    made.bias = nn.Parameter(bias, False)
    return made


def _like(layer: Any, inside: int, outside: int, bias: bool) -> Any:
    if isinstance(layer, nn.Linear):
        return nn.Linear(inside, outside, bias)
    kind: Callable[..., nn.Module] = type(layer)
    return kind(inside, outside, layer.kernel_size, layer.stride, layer.padding, bias=bias)


def _norm(layer: Any, index: Tensor) -> nn.Module:
    made: Any
    if isinstance(layer, nn.GroupNorm):
        size = layer.num_channels // layer.num_groups
        made = nn.GroupNorm(len(index) // size, len(index), layer.eps, layer.affine)
    else:
        made = type(layer)(len(index), layer.eps, affine=layer.affine, track_running_stats=layer.track_running_stats)
    for name, tensor in layer.state_dict().items():
        value = tensor[index].clone() if tensor.ndim else tensor.clone()
        setattr(made, name, nn.Parameter(value, False) if name in ("weight", "bias") else value)
    return made  # type: ignore[no-any-return]


def _module(graph: GraphModule, node: Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _whole(layer: nn.Module) -> bool:
    """Return whether every output of a layer reads every input, in a way that `_rows` knows."""
    if isinstance(layer, nn.Linear):
        return True
    conv: Any = layer
    return conv.groups == 1 and set(conv.dilation) == {1} and conv.padding_mode == "zeros" and conv.padding != "same"


def _plain(module: nn.Module | None, node: Node) -> bool:
    return isinstance(module, POINTWISE) or (node.op == "call_function" and node.target in FUNCTIONS)


def _flattens(module: nn.Module | None, node: Node) -> bool:
    """Return whether all axes behind the examples are made one, channels first."""
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    method = node.op == "call_method" and node.target == "flatten"
    return (method or node.target is torch.flatten) and node.args[1:] == (1,) and not node.kwargs
