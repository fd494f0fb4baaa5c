"""Whether programs that train many devices together give what training them one by one gives, on a small draw."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diastole.models.losses import Criterion
from diastole.models.networks.config import ModelConfig
from diastole.models.state import State

Program = Callable[[State, Tensor, Tensor, Tensor], tuple[State, Tensor]]
"""`(stack, x [batch, devices, *input], y [batch, devices, ...], weight [batch, devices])` to gradients and losses
`[devices]`; a device's loss is the weighted sum of its examples' losses."""


def agree(fast: Program, safe: Program, module: nn.Module, model: ModelConfig, device: torch.device) -> bool:
    """Return whether two programs give the same gradients for two devices, up to float tolerance."""
    stack, x, weight = _drawn(module, model, device)
    y = torch.tensor([[0, 1], [1, 0]], device=device)
    return _same(fast, safe, (stack, x, y, weight))


def runs(program: Program, module: nn.Module, criterion: Criterion, model: ModelConfig, device: torch.device) -> bool:
    """Return whether a program gives the gradients of a user's own module that autograd gives, device by device."""
    stack, x, weight = _drawn(module, model, device)

    def one_by_one(stack: State, x: Tensor, y: Tensor, weight: Tensor) -> tuple[State, Tensor]:
        losses, gradients = [], []
        names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        for k in range(2):
            leaves = {name: tensor[k].detach().requires_grad_(name in names) for name, tensor in stack.items()}
            losses.append((criterion.each(functional_call(module, leaves, (x[:, k],)), y[:, k]) * weight[:, k]).sum())
            gradients.append(torch.autograd.grad(losses[k], [leaves[name] for name in names]))
        return {name: torch.stack(both) for name, both in zip(names, zip(*gradients, strict=True), strict=True)}, (
            torch.stack(losses).detach()
        )

    try:
        with torch.no_grad():
            outputs = functional_call(module, {name: tensor[0] for name, tensor in stack.items()}, (x[:, 0],))
        y = torch.stack([criterion.blank(outputs)] * 2, 1)
    except Exception:  # noqa: BLE001 (the user's code may raise anything)
        return False
    return _same(program, one_by_one, (stack, x, y, weight))


def _drawn(module: nn.Module, model: ModelConfig, device: torch.device) -> tuple[State, Tensor, Tensor]:
    """Return a stack of two devices, batches of two examples of each, and their weights."""
    draws = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws).to(device)

    stack = {
        name: drawn(2, *parameter.shape)
        if parameter.requires_grad
        else drawn(*parameter.shape).expand(2, *parameter.shape)
        for name, parameter in module.named_parameters()
    }
    x = torch.stack([model.drawn(2, draws) for _ in range(2)]).to(device)
    return stack, x, drawn(2, 2).abs()


def _same(one: Program, other: Program, given: tuple[State, Tensor, Tensor, Tensor]) -> bool:
    try:
        (ours, losses), (theirs, expected) = one(*given), other(*given)
    except Exception:  # noqa: BLE001 (the user's code may raise anything)
        return False
    # Wide enough for TF32 on a GPU; a layout that is wrong is wrong by as much as the values themselves.
    scales = {name: float(theirs[name].abs().max()) + 1e-6 for name in theirs}
    return torch.allclose(losses, expected, 1e-2, 1e-2) and all(
        torch.allclose(ours[name], theirs[name], 1e-2, 1e-2 * scales[name]) for name in theirs
    )
