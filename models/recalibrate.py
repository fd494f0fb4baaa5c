"""Normalisation by running statistics in a user's own network: devices keep none, and none are averaged.

Devices normalise by the batch at hand (BatchNorm) or by the example (InstanceNorm). What is evaluated or exported has
statistics of the proxy set, taken for each sub-model.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from diastole.models.crossing import send
from diastole.models.errors import ModelError

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""The buffers of a layer that keeps running statistics."""

_KEPT, _MIXES = "_diastole_kept_statistics", "_diastole_mixes_examples"


def keep_no_statistics(module: nn.Module) -> None:
    """Let every BatchNorm and InstanceNorm of a module, in place, keep no running statistics from now on.

    The module has the same parameters, and no buffers of such layers. `ready` gives the statistics back.
    """
    for layer in module.modules():
        if isinstance(layer, _NormBase) and layer.track_running_stats:
            _forget(layer)
            setattr(layer, _KEPT, True)


def keeping(module: nn.Module) -> list[str]:
    """Return the names of the layers that keep running statistics now."""
    return [n for n, layer in module.named_modules() if isinstance(layer, _NormBase) and layer.track_running_stats]


def mark_mixing(module: nn.Module) -> None:
    """Note, in place, that examples of a batch see each other in training, whatever layers of the module are used."""
    for layer in module.modules():
        setattr(layer, _MIXES, True)


def mixes_examples(module: nn.Module) -> bool:
    """Return whether examples of a batch see each other in training, so that a result depends on all of them."""
    return any(isinstance(layer, _BatchNorm) or hasattr(layer, _MIXES) for layer in module.modules())


def has_statistics(layer: nn.Module) -> bool:
    """Return whether a layer is evaluated with statistics, whether it has them now or not."""
    norm = isinstance(layer, _NormBase) and (layer.track_running_stats or hasattr(layer, _KEPT))
    return norm or isinstance(layer, _BatchNorm)


def needs_statistics(module: nn.Module) -> bool:
    """Return whether `module` is evaluated with statistics of inputs, for which `ready` needs at least two."""
    return any(has_statistics(layer) for layer in module.modules())


def check_inputs(module: nn.Module, count: int) -> None:
    """Raise `ModelError` if `ready` could not take the module's statistics from a proxy set of `count` inputs."""
    if count < 2 and (layer := next(filter(has_statistics, module.modules()), None)):
        raise ModelError(
            f"a model with {type(layer).__name__} is evaluated with statistics of the proxy set, which has {count} "
            "training examples; set data.proxy to keep at least 2, or use GroupNorm or LayerNorm"
        )


def ready(module: nn.Module, x: Tensor) -> nn.Module:
    """Return the module to evaluate: the trained module itself, or a recalibrated copy if it needs statistics.

    Its result for an example then depends neither on other examples nor on their order.

    Args:
        module: trained.
        x: training inputs of the proxy set `[n, ...]`; only needed if the module needs statistics.

    Raises `ModelError` if the inputs are needed and there are fewer than two.

    """
    check_inputs(module, len(x))
    return recalibrate(module, x) if needs_statistics(module) else module


def recalibrate(module: nn.Module, x: Tensor, batch_size: int = 200) -> nn.Module:
    """Return a copy of `module`, in eval mode, whose batch normalisations have statistics of the inputs `x`.

    Sub-networks share weights, and running statistics would suit none of them. Training therefore keeps none; they are
    computed when a sub-network is evaluated or exported (Once-for-All, Cai et al., ICLR 2020). Batches, drawn from all
    inputs, go through the network, each normalised by itself, and the means and variances of each layer's inputs are
    averaged over the batches, weighted by their examples, without a momentum. The variance is the biased one, as in
    normalising. Statistics that a layer has already are replaced. An InstanceNorm that had running statistics gets the
    means over all examples of what normalises each. The networks of this package need none: they normalise by groups.
    If a single input is left over, it joins the batch before it: it may be one value a channel, which has no variance.

    Args:
        module: with or without batch normalisation.
        x: inputs `[n, ...]`, such as those of a proxy set; OFA takes 2000 in batches of 200.
        batch_size: inputs a batch.

    Raises `ModelError` if there are no inputs, or if a batch gives a layer one value a channel.

    """
    if not len(x):
        raise ModelError("recalibrate: no inputs; at least one batch is needed")
    copy = deepcopy(module).eval()
    totals: dict[_NormBase, tuple[Tensor, Tensor, int]] = {}

    def note(layer: _NormBase, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        given = inputs[0] if inputs else named["input"]
        batches = isinstance(layer, _BatchNorm)
        # [channels, values] of the batch, or [n, channels, values] of each example.
        values = given.transpose(0, 1).flatten(1) if batches else given.flatten(2)
        if values.shape[-1] == 1:
            raise ModelError("recalibrate: a batch of 1 input has one value a channel; at least 2 inputs are needed")
        means, variances = values.mean(-1), values.var(-1, correction=0)
        if not batches:
            means, variances = means.mean(0), variances.mean(0)
        mean, variance, count = totals.get(layer, (torch.zeros(()), torch.zeros(()), 0))
        share = len(given)
        totals[layer] = mean + share * means, variance + share * variances, count + share

    layers = [layer for layer in copy.modules() if isinstance(layer, _NormBase) and has_statistics(layer)]
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    for layer in layers:
        # Without statistics a layer normalises each batch, or example, by itself, in eval mode too.
        _forget(layer)
    if len(x) > batch_size:
        # Data sets may be sorted by class, and a batch of one class has other statistics than what it stands for.
        x = x[send(torch.randperm(len(x), generator=torch.Generator().manual_seed(0)), x.device)]
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
        # They are part of a state dict, whatever the buffers of a module are otherwise.
        layer._non_persistent_buffers_set.difference_update(STATISTICS)
    return copy


def _forget(layer: _NormBase) -> None:
    layer.track_running_stats = False
    layer.running_mean = layer.running_var = layer.num_batches_tracked = None
