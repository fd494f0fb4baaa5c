"""Narrowing layers: adapting a layer to the new size of its weights, or its weights to a new size of its inputs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diastole.models.channels import select
from diastole.models.coordinates import Region
from diastole.models.errors import ModelError
from diastole.models.networks.custom.traced import CHANNELWISE, CONVOLUTIONS, Traced
from diastole.models.networks.shape import scaled


def narrow(module: nn.Module, traced: Traced, widths: Sequence[int]) -> nn.Module:
    """Keep, in place, the first channels of every set; `widths` says how many of each."""
    for name, region in regions(module, traced, widths).items():
        owner, _, own = name.rpartition(".")
        parameter = module.get_parameter(name)
        kept = nn.Parameter(region.take(parameter.detach()), parameter.requires_grad)
        layer = module.get_submodule(owner)
        setattr(layer, own, kept)
        if own == "weight":
            resize(layer, kept.shape)
    return module


def regions(module: nn.Module, traced: Traced, widths: Sequence[int]) -> dict[str, Region]:
    """Return where the tensors of a narrow module lie in the whole one's."""
    kept = {name: slice(0, width) for name, width in zip(traced.sets, widths, strict=True)}
    return select(traced.layout, {name: parameter.shape for name, parameter in module.named_parameters()}, kept)


def half(traced: Traced, group: int) -> list[int]:
    """Return half the number of channels of every set."""
    return [scaled(width, 0.5, group) for width in traced.sets.values()]


def resize(layer: nn.Module, shape: torch.Size) -> None:
    """Set a layer's attributes to the size of its weight, which has fewer or more channels than before."""
    if isinstance(layer, CONVOLUTIONS):
        layer.groups = layer.groups * shape[0] // layer.out_channels if layer.groups > 1 else 1
        given, taken = (shape[1], shape[0]) if layer.transposed else (shape[0], shape[1] * layer.groups)
        layer.out_channels, layer.in_channels = given, taken
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = shape
    elif isinstance(layer, nn.GroupNorm):
        layer.num_groups = layer.num_groups * shape[0] // layer.num_channels
        layer.num_channels = shape[0]
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(shape)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = shape[0]
    else:
        setattr(layer, "num_features", shape[0])  # noqa: B010 (BatchNorm and InstanceNorm)


def refitted(module: nn.Module, shape: Sequence[int]) -> None:
    """Give fresh weights, in place, to layers of a module that cannot take examples of this shape.

    Such a layer then takes the channels of its input and has as many outputs as before; a norm has as many as its
    input. Raises `ModelError` naming the layer after which the forward pass fails.
    """
    passed = ["none"]

    def note(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        _take(layer, inputs[0])
        passed.append(name)

    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: note(name, layer, inputs))
        for name, layer in module.named_modules()
        if isinstance(layer, (*CONVOLUTIONS, nn.Linear, *CHANNELWISE))
    ]
    weight, training = next(module.parameters(), torch.zeros(())), module.training
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(2, *shape, device=weight.device))
    except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
        raise ModelError(
            f"what runs behind the blocks cannot take {list(shape)}, at layer {passed[-1].partition('.')[2]!r}: "
            f"{next(iter(str(error).splitlines()), type(error).__name__)[:200]}"
        ) from None
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()


def _take(layer: Any, x: Tensor) -> None:
    """Give a layer fresh weights that suit its input, if the old ones do not."""
    if layer.weight is None:
        return
    last = isinstance(layer, (nn.Linear, nn.LayerNorm))
    size, axis = x.shape[-1 if last else 1], 0
    if isinstance(layer, nn.Linear) or (isinstance(layer, CONVOLUTIONS) and not layer.transposed):
        axis = 1
    grouped = isinstance(layer, CONVOLUTIONS) and layer.groups > 1
    if layer.weight.shape[axis] == size or grouped or (isinstance(layer, nn.PReLU) and layer.weight.numel() == 1):
        return
    shape = list(layer.weight.shape)
    shape[axis] = size
    layer.weight = nn.Parameter(layer.weight.new_empty(shape), layer.weight.requires_grad)
    bias = getattr(layer, "bias", None)
    if isinstance(layer, CHANNELWISE) and bias is not None:
        layer.bias = nn.Parameter(bias.new_empty(shape), bias.requires_grad)
    resize(layer, layer.weight.shape)
    layer.reset_parameters()


class Refused(nn.Module):
    """Stands in for layers that cannot be fitted, and raises the reason when it is called."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why

    def forward(self, x: Tensor) -> Tensor:
        """Raise `ModelError`."""
        raise ModelError(self.why)
