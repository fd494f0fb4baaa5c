"""What the compression of traced networks shares."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional as F

POINTWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Identity, nn.Dropout, nn.Dropout2d)
FUNCTIONS = (F.relu, torch.relu, F.gelu, F.silu, F.hardswish, F.relu6, F.leaky_relu)
"""Activations, which look at each value by itself, as layers and as functions."""


class _Recorder(Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        """Run one operation."""
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


def values(graph: GraphModule, x: Tensor) -> dict[str, Tensor]:
    """Return every value of a graph that is given `x`, by the names of its nodes."""
    recorder = _Recorder(graph)
    with torch.no_grad():
        recorder.run(x)
    return recorder.values


def inputs(module: nn.Module, paths: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """Return what parts of a network are given."""
    found = {"": x}
    hooks = [
        module.get_submodule(path).register_forward_pre_hook(
            lambda layer, given, path=path: found.update({path: given[0]})
        )
        for path in paths
    ]
    with torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    return found
