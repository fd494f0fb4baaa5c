"""The gradients of one step, by the levers that a task is trained with."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diastole.models.late import Late, collected
from diastole.models.levers import Levers
from diastole.models.recompute import recomputed

if TYPE_CHECKING:
    from diastole.models.training import Examples


def kept(module: nn.Module, levers: Levers, draws: torch.Generator) -> AbstractContextManager[None]:
    """Return a context in which steps keep as few activations as `levers` say; `draws` are those of dropout."""
    return recomputed(module, draws) if levers.recompute else nullcontext()


def gradients(
    loss_of: Callable[["Examples"], Tensor],
    batch: "Examples",
    weights: Sequence[Tensor],
    levers: Levers,
    late: list[Late] | None = None,
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Return a step's loss, and its gradient by each weight; None where the loss does not depend on it.

    In micro-batches, the loss is the sum of those of the parts, each by its share of the examples: the batch's own, if
    it is a mean over examples.

    Args:
        loss_of: returns the loss of some examples.
        batch: the step's examples.
        weights: leaves of the loss.
        levers: what the task is trained with.
        late: gets what layers hand in where plain SGD will take the step; those weights' gradients are None.

    """
    size = levers.micro_batch
    if not size or size >= len(batch):
        loss = loss_of(batch)
        with collected(late):
            found = torch.autograd.grad(loss, weights, allow_unused=True) if weights else ()
        return loss.detach(), found
    total = torch.zeros((), dtype=torch.float64, device=batch.y.device)
    for start in range(0, len(batch), size):
        part = batch.part(start, min(start + size, len(batch)))
        loss = loss_of(part) * (len(part) / len(batch))
        if weights:
            # Added up where they are made, so that two sets of gradients never meet.
            torch.autograd.backward(loss, inputs=list(weights))
        total += loss.detach()
    parts = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    return total, parts
