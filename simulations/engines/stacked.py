"""One program that trains many devices of one sub-model together: every parameter is stacked over the devices.

A program takes a stack (a state whose tensors are `[devices, *shape]`), a batch of every device and the weight of
each example in its device's loss, and returns the gradients and the devices' losses. Tensors that are not trained are
the same for all devices, and have no gradient. There are two kinds:

* `vmapped` is the gradient of `torch.func.vmap` of any module's loss (as FedJAX batches clients, Ro et al. 2021).
  `torch.func.grad` inside of vmap gives the same; it takes longer, and its first call imports torch's compiler. It is
  for users' modules with operators that vmap knows only in parts, as autograd leaves them: `nn.GRU`, `nn.LSTM`;
* `grouped` keeps the devices side by side in the channels, `[batch, devices * channels, ...]`: a convolution is then
  one grouped convolution or one batched product, a GroupNorm one with more groups, a linear layer one batched product.
  It copies less than vmap's own rules, and on a CPU it takes half the time.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from diastole.client.plans.pools import accelerate
from diastole.models.augment import parse
from diastole.models.balance import raise_of
from diastole.models.batches import least_batch
from diastole.models.dropout import Dropout, is_random
from diastole.models.hollow import hollow
from diastole.models.losses import Criterion, is_own
from diastole.models.methods.registry import build
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.made import move_constants
from diastole.models.recalibrate import mixes_examples
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.training import Objective, Step, TrainConfig, learns
from diastole.simulations.engines.agreement import Beside, Program, agree, by_loss, runs
from diastole.simulations.engines.grouped import group
from diastole.simulations.engines.masks import Mask, mask
from diastole.simulations.engines.normed import BatchNorm, counting, normed


def program(
    model: ModelConfig, spec: SubModelSpec, device: torch.device, training: TrainConfig | None = None, part: str = ""
) -> Program | None:
    """Return the faster program of a CPU that is right for the sub-model, or a part of it, or None if there is none.

    Devices then train one after another if the sub-model has an objective of its own or draws, so that their results
    are the loop's. Raises `ModelError` or `SpecError`.
    """
    with hollow():
        module = build(model, spec, part)
    if isinstance(module, Objective) or is_random(module):
        return None
    found = programs(model, spec, device, training or TrainConfig(), part)
    return found.get("grouped") or found.get("vmapped")


def programs(
    model: ModelConfig, spec: SubModelSpec, device: torch.device, training: TrainConfig, part: str = ""
) -> Mapping[str, Program]:
    """Return the programs that are right for the sub-model, or a part of it, by name; only time tells which is fastest.

    There is none if devices train by a user's own loop or loss or mix their examples, if nothing of it is trained, or
    if its `forward` draws. Raises `ModelError` or `SpecError`.

    Grouping reads layers, not what `forward` does between them, so it is used only if it gives vmap's gradients on a
    small draw. Of a user's own module, of an objective and where examples see each other, vmap must give those of
    autograd: not every operator can be mapped, and what fills a batch up may count for something.
    """
    with hollow():
        general = build(model, spec, part)
    if (
        not any(parameter.requires_grad for parameter in general.parameters())
        or training.fit
        or any(parse(text)[0].mixes or not learns(general) for text in training.augment)
        or is_own(training.loss)
        or any(isinstance(layer, Dropout) and type(layer) is not Dropout for layer in general.modules())
    ):
        return {}
    criterion = training.criterion.on(device)
    found = {"vmapped": vmapped(general, criterion)}
    if model.factory or isinstance(general, Objective) or mixes_examples(general):
        move_constants(general, device)
        if not runs(found["vmapped"], general, criterion, model, device):
            found = {"vmapped": vmapped(general, criterion, inside=True)}
            if not model.factory or not runs(found["vmapped"], general, criterion, model, device):
                return {}
    if isinstance(general, Objective) or training.loss != "cross-entropy" or model.outputs:
        return found
    ways: dict[str, Callable[[nn.Module], nn.Module | None]] = {"grouped": group}
    if device.type != "cpu":
        ways["unfolded"] = lambda module: group(module, "unfolded")
    for name, way in ways.items():
        with hollow():
            special = way(build(model, spec, part))
        if special is None:
            break
        if device.type == "cpu":
            accelerate(special)
        fast = grouped(special, criterion)
        if agree(fast, found["vmapped"], general, model, device):
            found[name] = fast
    return found


@lru_cache(maxsize=1 << 12)
def least(model: ModelConfig, spec: SubModelSpec, part: str = "") -> int:
    """Return how many examples a batch of a sub-model needs."""
    with hollow():
        return least_batch(build(model, spec, part))


def vmapped(module: nn.Module, criterion: Criterion, *, inside: bool = False) -> Program:
    """Return the program of any module that has no buffers, and draws nothing but what layers of dropout do.

    The gradient is taken of what vmap gives, or `inside` of it.
    """
    copies, still = _Copies(module), _untrained(module)

    def run(stack: State, x: Tensor, y: Tensor, weight: Tensor, beside: Beside | None = None) -> tuple[State, Tensor]:
        leaves = {name: tensor.detach() for name, tensor in stack.items() if name not in still}
        # Not stacked: a layer that nobody trains is then one layer for all devices.
        shared = {name: tensor[0] for name, tensor in stack.items() if name in still}
        beside = beside or Beside.none(x.shape[1], x.device)
        with copies.own() as (mine, masks, norms):

            def loss(state: State, x: Tensor, y: Tensor, weight: Tensor, key: Tensor, labels: Tensor) -> Tensor:
                for layer in masks:
                    layer.key = key
                for norm in norms:
                    norm.there = counting(weight)
                if isinstance(mine, Objective):
                    step = Step(_NO_DRAWS, beside.progress, labels, Weighted(criterion.config, weight))
                    return by_loss(mine, {**shared, **state}, x, y, step)
                outputs: Tensor = functional_call(mine, {**shared, **state}, (x,))
                return (criterion.balanced(labels).each(outputs, y) * weight).sum()

            each = (x, y, weight, beside.keys, beside.labels)
            if inside:
                found: tuple[State, Tensor] = vmap(grad_and_value(loss), in_dims=_DIMS)(leaves, *each)
                return found
            leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
            losses: Tensor = vmap(loss, in_dims=_DIMS)(leaves, *each)
        # Of what a device's loss does not depend on, the gradient is zero.
        gradients = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, gradients, strict=True)), losses.detach()

    return run


def grouped(module: nn.Module, criterion: Criterion) -> Program:
    """Return the program of a module that `group` has made, and that gives logits."""
    copies, still = _Copies(module, side_by_side=True), _untrained(module)

    def run(stack: State, x: Tensor, y: Tensor, weight: Tensor, beside: Beside | None = None) -> tuple[State, Tensor]:
        leaves = {name: tensor.detach().requires_grad_(name not in still) for name, tensor in stack.items()}
        moving = {name: leaf for name, leaf in leaves.items() if name not in still}
        with copies.own() as (mine, masks, norms):
            for layer in masks:
                layer.key = (beside or Beside.none(x.shape[1], x.device)).keys
            for norm in norms:
                norm.there = counting(weight)
            logits = functional_call(mine, leaves, (x.flatten(1, 2),)).view(*y.shape, -1)
        if criterion.config.balance and beside is not None and beside.labels.shape[1]:
            logits = logits + raise_of(beside.labels, logits.shape[-1], criterion.config.balance).to(logits)
        each = criterion.each(logits.flatten(0, 1), y.flatten()).view_as(weight)
        losses = (each * weight).sum(0)
        gradients = torch.autograd.grad(losses.sum(), list(moving.values()))
        return dict(zip(moving, gradients, strict=True)), losses.detach()

    return run


@dataclass(frozen=True, slots=True, eq=False)
class Weighted(Criterion):
    """The loss of a batch whose examples have weights, which sum to 1 but for those that fill the batch up.

    Attributes:
        weight: `[n]`.

    """

    weight: Tensor

    def mean(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the weighted loss of a batch, a scalar."""
        return (self.each(outputs, y) * self.weight).sum()

    def over(self, terms: Tensor) -> Tensor:
        """Return the weighted sum of the examples' terms `[n, ...]`."""
        return (terms.flatten(1).sum(1) * self.weight).sum()


_NO_DRAWS, _DIMS = torch.Generator(), (0, 1, 1, 1, 0, 0)


def _untrained(module: nn.Module) -> frozenset[str]:
    return frozenset(name for name, parameter in module.named_parameters() if not parameter.requires_grad)


class _Copies:
    """Copies of a module: `functional_call` changes it for as long as it runs, so no two threads may share one."""

    def __init__(self, module: nn.Module, *, side_by_side: bool = False) -> None:
        self._module, self._side_by_side = module, side_by_side
        self._idle = list[tuple[nn.Module, list[Mask], list[BatchNorm]]]()

    @contextmanager
    def own(self) -> Iterator[tuple[nn.Module, list[Mask], list[BatchNorm]]]:
        """Yield a copy, and its layers of dropout and BatchNorm, that nobody else uses in the meantime."""
        try:
            mine = self._idle.pop()
        except IndexError:
            copy = deepcopy(self._module).train()
            beside = self._side_by_side
            mine = copy, mask(copy, side_by_side=beside), normed(copy, side_by_side=beside)
        try:
            yield mine
        finally:
            self._idle.append(mine)
