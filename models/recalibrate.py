"""Batch normalisation in a user's own network: results depend on the batch until statistics are taken."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from diastole.models.errors import ModelError


def mixes_examples(module: nn.Module) -> bool:
    """Return whether training normalises examples by their batch, so that a result depends on other examples."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def ready(module: nn.Module, x: Tensor) -> nn.Module:
    """Return the module to evaluate: the trained module itself, or a recalibrated copy if it mixes examples.

    Its result for an example then depends neither on other examples nor on their order.

    Args:
        module: trained.
        x: training inputs of the proxy set `[n, ...]`; only needed if the module mixes examples.

    Raises `ModelError` if the inputs are needed and there are fewer than two.

    """
    if not mixes_examples(module):
        return module
    if len(x) < 2:
        raise ModelError(
            f"a model with batch normalisation is evaluated with statistics of the proxy set, which has {len(x)} "
            "training examples; keep at least 2 (data.proxy), or use GroupNorm or LayerNorm"
        )
    return recalibrate(module, x)


def recalibrate(module: nn.Module, x: Tensor, batch_size: int = 200) -> nn.Module:
    """Return a copy of `module`, in eval mode, whose batch normalisations have statistics of the inputs `x`.

    Sub-networks share weights, and running statistics would suit none of them. Training therefore keeps none
    (`track_running_stats=False`); they are computed when a sub-network is evaluated or exported (Once-for-All, Cai et
    al., ICLR 2020). Batches go through the network, each normalised by itself, and the means and variances of each
    layer's inputs are averaged over the batches, weighted by their examples. The variance is the biased one, as in
    normalising. Statistics that a layer has already are replaced. The networks of this package need none: they
    normalise by groups. If a single input is left over, it joins the batch before it: it may be one value a channel,
    which has no variance.

    Args:
        module: with or without batch normalisation.
        x: inputs `[n, ...]`, such as those of a proxy set; OFA takes 2000 in batches of 200.
        batch_size: inputs a batch.

    Raises `ModelError` if there are no inputs, or if a batch gives a layer one value a channel.

    """
    if not len(x):
        raise ModelError("recalibrate: no inputs; at least one batch is needed")
    copy = deepcopy(module).eval()
    totals: dict[_BatchNorm, tuple[Tensor, Tensor, int]] = {}

    def note(layer: _BatchNorm, inputs: tuple[Any, ...]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)
        if values.shape[1] == 1:
            raise ModelError("recalibrate: a batch of 1 input has one value a channel; at least 2 inputs are needed")
        mean, variance, count = totals.get(layer, (torch.zeros(()), torch.zeros(()), 0))
        share = len(inputs[0])
        totals[layer] = (
            mean + share * values.mean(1),
            variance + share * values.var(1, correction=0),
            count + share,
        )

    layers = [layer for layer in copy.modules() if isinstance(layer, _BatchNorm)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    for layer in layers:
        # Without statistics a layer normalises each batch by itself, in eval mode too.
        layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    batches = list(torch.split(x, batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    with torch.no_grad():
        for batch in batches:
            copy(batch)
    for hook in hooks:
        hook.remove()
    for layer, (mean, variance, count) in totals.items():
        layer.track_running_stats, layer.running_mean, layer.running_var = True, mean / count, variance / count
        layer.num_batches_tracked = torch.tensor(len(batches))
    return copy
