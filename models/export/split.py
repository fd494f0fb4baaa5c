"""One model for several devices, each of which knows some of the classes (ED-ViT, Liu et al., 2024).

Each device gets the network with the outputs of its classes alone, and with fewer channels (`channels.py`): those that
these outputs need. A linear layer makes one answer of all devices' outputs. The paper trains the parts and a perceptron
further; here nothing is trained, and the layer is that of least squares to the whole network's outputs.
"""

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn

from diastole.models.errors import ModelError
from diastole.models.export.lasso import solved


def groups(classes: int, parts: int) -> list[range]:
    """Return which classes each part knows, in parts of about the same size. Raises `ModelError`."""
    if not 2 <= parts <= classes // 2:
        raise ModelError(
            f"{parts} parts of {classes} classes: 2 to {classes // 2} parts of 2 classes or more are accepted"
        )
    ends = [classes * k // parts for k in range(parts + 1)]
    return [range(start, stop) for start, stop in pairwise(ends)]


class Chosen(nn.Module):
    """Some outputs of a network whose last layer cannot be cut."""

    def __init__(self, network: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self.network, self.start, self.stop = network, classes[0], classes[-1] + 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of the chosen classes, `[n, some]`."""
        y: Tensor = self.network(x)
        return y[:, self.start : self.stop]


@torch.no_grad()
def only(module: nn.Module, classes: range, count: int, x: Tensor) -> nn.Module:
    """Return a copy of a network with the outputs of some of its `count` classes; `x` are inputs to try it on."""
    heads = [
        name for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and layer.out_features == count
    ]
    wanted = module(x)[:, classes.start : classes.stop]
    for name in heads[-1:]:
        made, head = deepcopy(module), module.get_submodule(name)
        if name and isinstance(head, nn.Linear):
            cut = nn.Linear(head.in_features, len(classes), head.bias is not None)
            cut.weight = nn.Parameter(head.weight[classes.start : classes.stop].clone(), False)
            if head.bias is not None:
                cut.bias = nn.Parameter(head.bias[classes.start : classes.stop].clone(), False)
            made.set_submodule(name, cut)
            try:
                given = made(x)
            except RuntimeError:
                break
            if given.shape == wanted.shape and torch.allclose(given, wanted, atol=1e-4):
                return made.eval()
    return Chosen(deepcopy(module), classes).eval()


@torch.no_grad()
def fusion(parts: Sequence[nn.Module], x: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight `[classes, classes]` and bias `[classes]` that make one answer of the parts' outputs.

    Args:
        parts: networks of some classes each, in the order of the classes.
        x: inputs `[n, *input_shape]` to fit to.
        wanted: the whole network's outputs for them, `[n, classes]`.

    Each output is mixed with the others only as far as that many inputs can tell: with few, it is scaled and shifted.

    """
    outputs = torch.cat([part(x) for part in parts], 1)
    if len(x) >= 4 * outputs.shape[1]:
        return solved(outputs, wanted)
    pairs = [solved(outputs[:, k : k + 1], wanted[:, k : k + 1]) for k in range(outputs.shape[1])]
    return torch.diag(torch.cat([weight.flatten() for weight, _ in pairs])), torch.cat([bias for _, bias in pairs])
