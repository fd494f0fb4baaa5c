"""One program that trains many devices of one sub-model together: every parameter is stacked over the devices.

A program takes a stack (a state whose tensors are `[devices, *shape]`), a batch of every device and the weight of
each example in its device's loss, and returns the gradients and the devices' losses. Tensors that are not trained are
the same for all devices, and have no gradient. There are two:

* `vmapped` is `torch.func.vmap` of the gradient of any module (as FedJAX batches clients, Ro et al. 2021);
* `grouped` keeps the devices side by side in the channels, `[batch, devices * channels, ...]`: a convolution is then
  one grouped convolution, a GroupNorm one with more groups, a linear layer one batched product. It copies less than
  vmap's own rules, and on a CPU it takes half the time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from diastole.client.plans.pools import accelerate
from diastole.models.dropout import is_random
from diastole.models.hollow import hollow
from diastole.models.losses import Criterion, is_own
from diastole.models.methods.registry import build
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.made import move_constants
from diastole.models.recalibrate import mixes_examples
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.training import Objective, TrainConfig
from diastole.simulations.engines.agreement import Program, agree, runs


def program(
    model: ModelConfig, spec: SubModelSpec, device: torch.device, training: TrainConfig | None = None, part: str = ""
) -> Program | None:
    """Return the faster program that is right for the sub-model, or a part of it, or None if there is none.

    There is none if the sub-model has an objective of its own, if devices train by a user's own loop or loss or change
    their examples, if nothing of it is trained, if it draws, or if it normalises an example by others: batches of many
    devices are filled up, and examples of no weight count.
    Raises `ModelError` or `SpecError`.

    Grouping reads layers, not what `forward` does between them, so it is used only if it gives vmap's gradients on a
    small draw. Of a user's own module, vmap must give those of autograd: not every operator can be mapped.
    """
    with hollow():
        general, special = build(model, spec, part), group(build(model, spec, part))
    training = training or TrainConfig()
    if (
        not any(parameter.requires_grad for parameter in general.parameters())
        or training.fit
        or training.augment
        or is_own(training.loss)
        or isinstance(general, Objective)
        or is_random(general)
        or mixes_examples(general)
    ):
        return None
    criterion = training.criterion
    safe = vmapped(general, criterion)
    if model.factory:
        move_constants(general, device)
        if not runs(safe, general, criterion, model, device):
            return None
    if special is None or training.loss != "cross-entropy" or model.outputs:
        return safe
    if device.type == "cpu":
        accelerate(special)
    fast = grouped(special, criterion)
    return fast if agree(fast, safe, general, model, device) else safe


def vmapped(module: nn.Module, criterion: Criterion) -> Program:
    """Return the program of any module that has no buffers and draws nothing at random."""
    copies, still = _Copies(module), _untrained(module)

    def run(stack: State, x: Tensor, y: Tensor, weight: Tensor) -> tuple[State, Tensor]:
        moving = {name: tensor for name, tensor in stack.items() if name not in still}
        # Not stacked: a layer that nobody trains is then one layer for all devices.
        shared = {name: tensor[0] for name, tensor in stack.items() if name in still}
        with copies.own() as mine:

            def loss(state: State, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
                outputs: Tensor = functional_call(mine, {**shared, **state}, (x,))
                return (criterion.each(outputs, y) * weight).sum()

            found: tuple[State, Tensor] = vmap(grad_and_value(loss), in_dims=(0, 1, 1, 1))(moving, x, y, weight)
            return found

    return run


def grouped(module: nn.Module, criterion: Criterion) -> Program:
    """Return the program of a module that `group` has made, and that gives logits."""
    copies, still = _Copies(module), _untrained(module)

    def run(stack: State, x: Tensor, y: Tensor, weight: Tensor) -> tuple[State, Tensor]:
        leaves = {name: tensor.detach().requires_grad_(name not in still) for name, tensor in stack.items()}
        moving = {name: leaf for name, leaf in leaves.items() if name not in still}
        with copies.own() as mine:
            logits = functional_call(mine, leaves, (x.flatten(1, 2),))
        each = criterion.each(logits.view(y.numel(), -1), y.flatten()).view_as(weight)
        losses = (each * weight).sum(0)
        gradients = torch.autograd.grad(losses.sum(), list(moving.values()))
        return dict(zip(moving, gradients, strict=True)), losses.detach()

    return run


def _untrained(module: nn.Module) -> frozenset[str]:
    return frozenset(name for name, parameter in module.named_parameters() if not parameter.requires_grad)


class _Copies:
    """Copies of a module: `functional_call` changes it for as long as it runs, so no two threads may share one."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._idle = module, list[nn.Module]()

    @contextmanager
    def own(self) -> Iterator[nn.Module]:
        """Yield a copy that nobody else uses in the meantime."""
        try:
            mine = self._idle.pop()
        except IndexError:
            mine = deepcopy(self._module)
        try:
            yield mine
        finally:
            self._idle.append(mine)


def group(module: nn.Module) -> nn.Module | None:
    """Replace, in place, every layer with parameters by its grouped form; None if one has no such form."""
    for name, child in module.named_children():
        if is_parametrized(child):
            return None
        if isinstance(child, nn.Conv1d | nn.Conv2d) and child.padding_mode == "zeros":
            setattr(module, name, _Conv(child))
        elif isinstance(child, nn.GroupNorm):
            setattr(module, name, _Norm(child))
        elif isinstance(child, nn.Linear):
            setattr(module, name, _Linear(child))
        elif next(child.parameters(recurse=False), None) is not None or group(child) is None:
            return None
    return module


class _Layer(nn.Module):
    """A layer whose parameters are `[devices, *shape]`, for `[batch, devices * channels, ...]`."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(layer, name))


class _Conv(_Layer):
    def __init__(self, layer: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(layer)
        self.run: Callable[..., Tensor] = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
        self.settings = (layer.stride, layer.padding, layer.dilation)
        self.groups = layer.groups

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.flatten()
        return self.run(x, self.weight.flatten(0, 1), bias, *self.settings, len(self.weight) * self.groups)


class _Norm(_Layer):
    def __init__(self, layer: nn.GroupNorm) -> None:
        super().__init__(layer)
        self.groups, self.eps = layer.num_groups, layer.eps
        self.channels = layer.num_channels

    def forward(self, x: Tensor) -> Tensor:
        devices = x.shape[1] // self.channels
        weight, bias = (None if p is None else p.flatten() for p in (self.weight, self.bias))
        return F.group_norm(x, devices * self.groups, weight, bias, self.eps)


class _Linear(_Layer):
    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(len(x), len(self.weight), -1).transpose(0, 1)
        product = torch.bmm(rows, self.weight.transpose(1, 2))
        if self.bias is not None:
            product = product + self.bias.unsqueeze(1)
        return product.transpose(0, 1).flatten(1)
