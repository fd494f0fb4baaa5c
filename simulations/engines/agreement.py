"""Whether programs that train many devices together give what training them one by one gives, on a small draw."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diastole.models.crossing import fetch, send
from diastole.models.losses import Criterion
from diastole.models.networks.config import ModelConfig
from diastole.models.recalibrate import mixes_examples
from diastole.models.state import State
from diastole.models.training import Objective, Step
from diastole.simulations.engines.masks import mask

NOBODY = -1
"""What fills up a device's labels; no class."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What a step of many devices may depend on beside their batches.

    Attributes:
        keys: of the masks of dropout, int64 `[devices]`.
        labels: of all of each device's examples, int64 `[devices, n]`, filled up with `NOBODY`; `[devices, 0]` if
            nobody asks, or an example has not just one.
        progress: the share of the run's rounds that is over, a scalar.

    """

    keys: Tensor
    labels: Tensor
    progress: Tensor

    @staticmethod
    def none(devices: int, device: torch.device) -> "Beside":
        """Return what a program that asks for nothing is given."""
        whole = torch.zeros(devices, dtype=torch.int64, device=device)
        return Beside(whole, whole[:, None][:, :0], torch.zeros((), device=device))

    def first(self, devices: int) -> "Beside":
        """Return what the first devices are given."""
        return Beside(self.keys[:devices], self.labels[:devices], self.progress)


class Program(Protocol):
    """Gradients, by name `[devices, *shape]`, and losses `[devices]` of many devices."""

    def __call__(
        self, stack: State, x: Tensor, y: Tensor, weight: Tensor, beside: Beside | None = None
    ) -> tuple[State, Tensor]:
        """Return them.

        Args:
            stack: tensors `[devices, *shape]`.
            x: `[batch, devices, *input]`.
            y: `[batch, devices, ...]`.
            weight: of each example in its device's loss, which is the weighted sum of theirs, `[batch, devices]`.
            beside: what else the step depends on.

        """
        ...


def agree(fast: Program, safe: Program, module: nn.Module, model: ModelConfig, device: torch.device) -> bool:
    """Return whether two programs give the same gradients for two devices, up to float tolerance."""
    stack, x, weight = _drawn(module, model, device, 2)
    y = send(torch.tensor([[0, 1], [1, 0]]), device)
    return _same(fast, safe, stack, (x, y, weight, _beside(device)))


def runs(program: Program, module: nn.Module, criterion: Criterion, model: ModelConfig, device: torch.device) -> bool:
    """Return whether a program gives the gradients of a module that autograd gives, device by device.

    That is for a user's own module, for an objective, and where examples see each other; in the last two the second
    device has one example less than the first.
    """
    own = isinstance(module, Objective)
    # Of two examples, normalised by each other, nearly nothing is left to compare.
    counts = (5, 4) if mixes_examples(module) else (3, 2) if own else (2, 2)
    stack, x, weight = _drawn(module, model, device, counts[0])
    single = deepcopy(module).train()
    masks = mask(single)
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]

    def one_by_one(
        stack: State, x: Tensor, y: Tensor, weight: Tensor, beside: Beside | None = None
    ) -> tuple[State, Tensor]:
        losses, gradients = [], []
        for k, count in enumerate(counts):
            leaves = {name: tensor[k].detach().requires_grad_(name in names) for name, tensor in stack.items()}
            for layer in masks:
                layer.key = (beside or Beside.none(2, device)).keys[k]
            mine = x[:count, k], y[:count, k]
            if isinstance(single, Objective):
                step = Step(torch.Generator(), 0.5, criterion.labels(mine[1]), criterion)
                losses.append(by_loss(single, leaves, *mine, step))
            else:
                each = criterion.each(functional_call(single, leaves, (mine[0],)), mine[1])
                losses.append((each * weight[:count, k]).sum())
            gradients.append(torch.autograd.grad(losses[k], [leaves[name] for name in names]))
        return {name: torch.stack(both) for name, both in zip(names, zip(*gradients, strict=True), strict=True)}, (
            torch.stack(losses).detach()
        )

    try:
        for layer in masks:
            layer.key = torch.zeros((), dtype=torch.int64, device=device)
        with torch.no_grad():
            outputs = functional_call(single, {name: tensor[0] for name, tensor in stack.items()}, (x[:, 0],))
        y = torch.stack([criterion.blank(outputs)] * 2, 1)
        beside = _beside(device)
        if counts[0] > counts[1]:
            weight = send(torch.tensor([[(n < count) / count for count in counts] for n in range(counts[0])]), device)
        if own:
            y[0, 0] = 1
            labels = torch.stack([criterion.labels(y[:, k]) for k in range(2)])
            if labels.numel():
                labels[1, counts[1] :] = NOBODY
            beside = Beside(beside.keys, labels, beside.progress)
    except Exception:  # noqa: BLE001 (the user's code may raise anything)
        return False
    return _same(program, one_by_one, stack, (x, y, weight, beside))


def by_loss(objective: Objective, state: State, x: Tensor, y: Tensor, step: Step) -> Tensor:
    """Return an objective's loss with the parameters of a state."""
    return cast(
        Tensor, functional_call(_Loss(objective), {f"own.{name}": t for name, t in state.items()}, (x, y, step))
    )


class _Loss(nn.Module):
    """Lets `functional_call`, which calls a module, reach an objective's loss."""

    def __init__(self, own: Objective) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        return self.own.loss(x, y, step)


def _beside(device: torch.device) -> Beside:
    keys = send(torch.tensor([3, 4]), device)
    return Beside(keys, keys[:, None][:, :0], torch.full((), 0.5, device=device))


def _drawn(module: nn.Module, model: ModelConfig, device: torch.device, batch: int) -> tuple[State, Tensor, Tensor]:
    """Return a stack of two devices, batches of a few examples of each, and their weights."""
    draws = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return send(torch.randn(*shape, generator=draws), device)

    stack = {
        name: drawn(2, *parameter.shape)
        if parameter.requires_grad
        else drawn(*parameter.shape).expand(2, *parameter.shape)
        for name, parameter in module.named_parameters()
    }
    x = send(torch.stack([model.drawn(batch, draws) for _ in range(2)], 1 if batch > 2 else 0), device)
    return stack, x, drawn(batch, 2).abs()


def _same(one: Program, other: Program, stack: State, given: tuple[Tensor, Tensor, Tensor, Beside]) -> bool:
    try:
        (ours, losses), (theirs, expected) = one(stack, *given), other(stack, *given)
    except Exception:  # noqa: BLE001 (the user's code may raise anything)
        return False
    # Wide enough for TF32 on a GPU; a layout that is wrong is wrong by as much as the values themselves.
    pairs = {"": (losses, expected), **{name: (ours[name], theirs[name]) for name in theirs}}
    found = [torch.stack([(a - b).abs().max(), b.abs().max()]) for a, b in pairs.values()]
    values = fetch([torch.stack(found)])[0].tolist()
    # Of a bias that is normalised away, all of the gradient is rounding.
    least = 1e-6 + 1e-5 * max(most for _, most in values)
    return all(far <= 2e-2 * (least + most) for far, most in values)
