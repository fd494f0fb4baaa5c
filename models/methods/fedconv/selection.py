"""Fitting tensors on the training part of a proxy set; a fit is kept only if the validation part gains from it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diastole.models.batches import batches, slices
from diastole.models.crossing import numbers
from diastole.models.proxy import Proxy
from diastole.models.seeds import generator
from diastole.models.training import Examples

Loss = Callable[[Examples], Tensor]
"""The mean loss over a batch, as a function of the tensors that are fitted."""


def fit(
    groups: list[dict[str, Any]],
    loss: Loss,
    proxy: Proxy,
    epochs: int,
    batch_size: int,
    seed: int,
    least: int = 1,
) -> None:
    """Train Adam's `groups` in place, and leave them as they were in the best epoch, the start included.

    A batch of fewer than `least` examples joins the one before.
    """
    if not groups or not epochs:
        return
    parameters: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
    optimiser = torch.optim.Adam(groups)
    draws = generator(seed)
    best, kept = mean_loss(loss, proxy.validation, least), [parameter.clone() for parameter in parameters]
    for _ in range(epochs):
        for parameter in parameters:
            parameter.requires_grad_(True)
        for batch in batches(proxy.training, batch_size, draws, least):
            optimiser.zero_grad(set_to_none=True)
            loss(batch).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        for parameter in parameters:
            parameter.requires_grad_(False)
        score = mean_loss(loss, proxy.validation, least)
        if score < best:
            best, kept = score, [parameter.clone() for parameter in parameters]
    for parameter, value in zip(parameters, kept, strict=True):
        parameter.grad = None
        parameter.copy_(value)


def mean_loss(loss: Loss, examples: Examples, least: int = 1) -> float:
    """Return the mean loss over `examples`, a slice of at least `least` at a time."""
    with torch.no_grad():
        parts = list(slices(examples, least=least))
        found = numbers([loss(part) for part in parts])
        return sum(mean * len(part) for mean, part in zip(found, parts, strict=True)) / len(examples)
