"""Trying out whether examples of a batch see each other in a user's own module."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diastole.models.errors import ModelError
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.blame import blamed
from diastole.models.recalibrate import ready

OTHERS = [0, 2, 3]
"""The examples of a batch of four that stay; layers may look back only, or ahead only."""


def check_mixing(model: ModelConfig, make: Callable[[], nn.Module]) -> bool:
    """Return whether what training makes of an example depends on the other examples of its batch.

    One example of a batch is changed, and what is given for the others, before it and after it, must stay. All weights
    are random, so that none that starts at zero hides anything. Raises `ModelError` if examples see each other in
    evaluation too: no figure would be that of the model alone.
    """
    draws, module = torch.Generator().manual_seed(0), make()
    with torch.no_grad():
        for parameter in module.parameters():
            inputs = max(1, parameter.shape[1:].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=draws) / inputs**0.5)
        first, second = (model.drawn(4, draws) for _ in range(2))
        second[OTHERS] = first[OTHERS]
        with blamed(model, "on a batch of 4 examples"):
            if _mixes(ready(module, first).eval(), first, second):
                raise ModelError(
                    f"model custom: {model.factory} gives another result for an example if other examples of the batch "
                    "change, in evaluation too; normalise by nn.BatchNorm, give attention and recurrent layers "
                    "batch_first=True, or look at other examples in training only"
                )
            return _mixes(module.train(), first, second)


def _mixes(module: nn.Module, first: Tensor, second: Tensor) -> bool:
    """Return whether outputs differ for the examples that two batches share."""
    one, other = (module(x)[OTHERS].nan_to_num() for x in (first, second))
    return not torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))
