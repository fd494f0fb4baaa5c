"""Steps of SGD and Adam on plain tensors.

`torch.optim` would do, but its first optimiser imports torch's compiler, which costs each device a second and 60 MB.
"""

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diastole.models.clipping import clipped

if TYPE_CHECKING:
    from diastole.models.training import TrainConfig

Tensors = Sequence[Tensor]


def buffers(training: "TrainConfig", weights: Tensors, half: bool = False) -> list[list[Tensor]]:
    """Return the optimiser's state before its first step: zeros in the shape of each weight.

    With `half`, the mean of the gradients is kept in bfloat16. Adam's squares are not: of a bfloat16 number, a
    thousandth is lost in rounding, so they would never decay.
    """
    copies = 2 if training.optimiser == "adam" else int(training.momentum > 0)
    kinds = [torch.bfloat16 if half and not copy else None for copy in range(copies)]
    return [[torch.zeros_like(weight, dtype=kind) for weight in weights] for kind in kinds]


def step(
    training: "TrainConfig",
    weights: Tensors,
    gradients: Tensors,
    state: Sequence[Tensors],
    number: int | Tensor,
    active: Tensor | None = None,
    *,
    stacked: bool = False,
    rate: Tensor | None = None,
) -> None:
    """Take the optimiser's step `number`, counted from 1; changes `weights`, and `state`, which `buffers` made.

    A number that is a scalar on a card, float64, is not waited for. If `active`, of zeros and ones `[devices]`, is
    given, stacked weights of devices whose number is zero stay as they are, once their gradients are zero; their part
    of the state is lost. A `rate`, a scalar on a card, is in the place of the training's learning rate, and not waited
    for; the last bits are then others.

    Everything but the norm of what is clipped is elementwise, and all is in the order of `torch.optim`, so weights get
    the same bits as there. If the weights of many devices are `stacked`, each device gets the bits that it would get
    alone, or nearly these if gradients are clipped.
    """
    if training.clip:
        gradients = clipped(gradients, training.clip, stacked=stacked)
    _step(training, list(weights), list(gradients), state, number, active, rate)


def _step(
    training: "TrainConfig",
    weights: list[Tensor],
    gradients: list[Tensor],
    state: Sequence[Tensors],
    number: int | Tensor,
    active: Tensor | None = None,
    rate: Tensor | None = None,
) -> None:
    if state and weights and state[0][0].dtype != weights[0].dtype:
        # One by one, so that only one is there in full.
        for k, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            mean, others = state[0][k].to(weight.dtype), [[tensors[k]] for tensors in state[1:]]
            _step(training, [weight], [gradient], [[mean], *others], number)
            state[0][k].copy_(mean)
        return
    if training.weight_decay:
        gradients = list(torch._foreach_add(gradients, weights, alpha=training.weight_decay))
    if training.optimiser == "adam":
        _adam(training.learning_rate, weights, gradients, list(state[0]), list(state[1]), number, active, rate)
        return
    if training.momentum:
        momenta = list(state[0])
        torch._foreach_mul_(momenta, training.momentum)
        torch._foreach_add_(momenta, gradients)
        gradients = momenta
    if training.momentum or training.weight_decay:
        _still(gradients, active)
    if rate is not None:
        torch._foreach_sub_(weights, torch._foreach_mul(gradients, rate))
        return
    torch._foreach_add_(weights, gradients, alpha=-training.learning_rate)


def _adam(
    rate: float,
    weights: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    number: int | Tensor,
    active: Tensor | None,
    other: Tensor | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> None:
    """Adam (Kingma & Ba 2015, algorithm 1) in the order of operations, and with the defaults, of `torch.optim`.

    `other` is a rate on a card, where the number is one too.
    """
    torch._foreach_lerp_(means, gradients, 1 - betas[0])
    _still(means, active)
    torch._foreach_mul_(squares, betas[1])
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - betas[1])
    scales = list(torch._foreach_sqrt(squares))
    if isinstance(number, Tensor):
        torch._foreach_div_(scales, (1 - betas[1] ** number).sqrt())
        torch._foreach_add_(scales, epsilon)
        torch._foreach_mul_(scales, 1 - betas[0] ** number)
        if other is not None:
            torch._foreach_div_(scales, other)
        torch._foreach_addcdiv_(weights, means, scales, -rate if other is None else -1.0)
        return
    torch._foreach_div_(scales, sqrt(1 - betas[1] ** number))
    torch._foreach_add_(scales, epsilon)
    torch._foreach_addcdiv_(weights, means, scales, -rate / (1 - betas[0] ** number))


def _still(steps: list[Tensor], active: Tensor | None) -> None:
    """Multiply the steps of each device `[devices, *shape]` by its number, in place."""
    if active is not None:
        torch._foreach_mul_(steps, [active.view(-1, *[1] * (step.ndim - 1)).to(step.dtype) for step in steps])
