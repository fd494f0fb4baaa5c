"""Narrowing layers: adapting a layer to the new size of its weights, or its weights to a new size of its inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from diastole.models.channels import Axis, Joined, Layout, select, spans
from diastole.models.coordinates import Region
from diastole.models.errors import ModelError
from diastole.models.networks.custom.made import constants
from diastole.models.networks.custom.sizes import resized
from diastole.models.networks.custom.traced import CHANNELWISE, CONVOLUTIONS, TABLES, Traced
from diastole.models.networks.shape import scaled

RESIZED = (
    *(*CONVOLUTIONS, *CHANNELWISE, *TABLES, nn.Linear, nn.Bilinear, nn.RMSNorm),
    *(nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention),
)
"""Layers whose attributes follow from the sizes of their tensors."""


def narrow(module: nn.Module, traced: Traced, widths: Sequence[int]) -> nn.Module:
    """Keep, in place, the first channels of every set; `widths` says how many of each."""
    kept = dict(zip(traced.sets, widths, strict=True))
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, RESIZED)]
    places, others = regions(module, traced, widths), _region_of(traced.constants, constants(module), kept)
    for name, region in places.items():
        parameter = module.get_parameter(name)
        new = nn.Parameter(region.take(parameter.detach()), parameter.requires_grad)
        for layer, own in _holders(module, parameter):
            setattr(layer, own, new)
    for name, region in others.items():
        owner, _, own = name.rpartition(".")
        holder = module.get_submodule(owner)
        setattr(holder, own, region.take(getattr(holder, own)))
    for name, layer in layers:
        resize(layer, {own: traced.layout.get(f"{name}.{own}", ()) for own in WEIGHTS})
    resized(module, traced.numbers, kept)
    return module


def regions(module: nn.Module, traced: Traced, widths: Sequence[int]) -> dict[str, Region]:
    """Return where the tensors of a narrow module lie in the whole one's."""
    kept = dict(zip(traced.sets, widths, strict=True))
    return _region_of(traced.layout, dict(module.named_parameters()), kept)


def half(traced: Traced, group: int) -> list[int]:
    """Return half the number of channels of every set."""
    return [scaled(width, 0.5, group) for width in traced.sets.values()]


WEIGHTS = (
    "weight",
    "weight_v",
    "parametrizations.weight.original",
    "parametrizations.weight.original1",
    "in_proj_weight",
)
"""Where a layer's weight is, as it is or reparametrised."""

Axes = tuple[Axis | Joined | None, ...]


def resize(layer: Any, axes: Mapping[str, Axes]) -> None:
    """Set a layer's attributes to the sizes of its tensors, which have fewer or more channels than before.

    `axes` are those of its weight, by where it is.
    """
    runs = next((found for own in WEIGHTS if (found := axes.get(own))), ())
    weight: Any = layer.weight_v if hasattr(layer, "weight_v") else getattr(layer, "weight", None)
    if isinstance(layer, CONVOLUTIONS):
        taken, given = (0, 1) if layer.transposed else (1, 0)
        before = layer.in_channels if layer.transposed else layer.out_channels
        if layer.groups > 1 and runs and runs[0] is not None and not _repeated(runs[0], before, layer.groups):
            layer.groups = layer.groups * weight.shape[0] // before
        sizes = [weight.shape[0], weight.shape[1] * layer.groups]
        layer.in_channels, layer.out_channels = sizes[taken], sizes[given]
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, nn.Bilinear):
        layer.out_features, layer.in1_features, layer.in2_features = weight.shape
    elif isinstance(layer, TABLES):
        layer.num_embeddings, layer.embedding_dim = weight.shape
    elif isinstance(layer, nn.MultiheadAttention):
        _resize_attention(layer, runs)
    elif isinstance(layer, nn.RNNBase):
        _resize_recurrent(layer)
    elif isinstance(layer, nn.RNNCellBase):
        layer.input_size, layer.hidden_size = layer.weight_ih.shape[1], layer.weight_hh.shape[1]
    elif weight is not None:
        _resize_norm(layer, weight.shape)


def _resize_norm(layer: Any, shape: torch.Size) -> None:
    if isinstance(layer, nn.GroupNorm):
        layer.num_groups = layer.num_groups * shape[0] // layer.num_channels
        layer.num_channels = shape[0]
    elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        layer.normalized_shape = tuple(shape)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = shape[0]
    else:
        layer.num_features = shape[0]


def _resize_recurrent(layer: Any) -> None:
    layer.input_size = layer.weight_ih_l0.shape[1]
    if layer.proj_size:
        layer.proj_size, layer.hidden_size = layer.weight_hr_l0.shape
    else:
        layer.hidden_size = layer.weight_hh_l0.shape[1]


def _resize_attention(layer: Any, runs: Axes) -> None:
    before, size = layer.embed_dim, len(layer.out_proj.weight)
    if runs and runs[-1] is not None and not _repeated(runs[-1], before, layer.num_heads):
        layer.num_heads = layer.num_heads * size // before
    layer.embed_dim, layer.head_dim = size, size // layer.num_heads
    if layer._qkv_same_embed_dim:
        layer.kdim = layer.vdim = size
    else:
        layer.kdim, layer.vdim = layer.k_proj_weight.shape[1], layer.v_proj_weight.shape[1]


def _repeated(axis: Axis | Joined, length: int, times: int) -> bool:
    """Return whether an axis runs several times over the same channels, so that every row of it is narrowed."""
    parts = spans(axis, length)
    each, rest = divmod(len(parts), times)
    return not rest and all(parts[k * each : (k + 1) * each] == parts[:each] for k in range(times))


def _holders(module: nn.Module, parameter: nn.Parameter) -> list[tuple[nn.Module, str]]:
    """Return the layers that have a parameter, several if it is tied, and its name in each."""
    return [
        (layer, own)
        for layer in module.modules()
        for own, each in layer.named_parameters(recurse=False, remove_duplicate=False)
        if each is parameter
    ]


def _region_of(layout: Layout, tensors: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, Region]:
    """Return the region of each tensor that has the first channels of every set."""
    kept = {name: slice(0, width) for name, width in widths.items()}
    return select(layout, {name: tensor.shape for name, tensor in tensors.items()}, kept)


def refitted(module: nn.Module, shape: Sequence[int], gives: Sequence[int]) -> None:
    """Give fresh weights, in place, to layers of a module that cannot take examples of this shape.

    Such a layer then takes the channels of its input and has as many outputs as before; a norm has as many as its
    input. Raises `ModelError` naming the layer after which the forward pass fails, or if the module then gives anything
    else than `gives` for an example.
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
        with torch.no_grad(), _ShapesOfProducts():
            outputs = module.eval()(torch.zeros(2, *shape, device=weight.device))
    except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
        raise ModelError(
            f"what runs behind the blocks cannot take {list(shape)}, at layer {passed[-1].partition('.')[2]!r}: "
            f"{next(iter(str(error).splitlines()), type(error).__name__)[:200]}"
        ) from None
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()
    if outputs.shape != (2, *gives) and (outputs.shape != (2,) or tuple(gives) != (1,)):
        raise ModelError(
            f"what runs behind the blocks gives {list(outputs.shape[1:])} for {list(shape)}; {list(gives)} is needed"
        )


class _ShapesOfProducts(TorchFunctionMode):
    """Gives the result of a linear layer that has no values: torch's own way imports its compiler, for seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.linear and args[0].is_meta and args[0].shape[-1] == args[1].shape[-1]:
            return args[0].new_empty(*args[0].shape[:-1], *args[1].shape[:-1])
        return func(*args, **(kwargs or {}))


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
    resize(layer, {})
    layer.reset_parameters()


class Refused(nn.Module):
    """Stands in for layers that cannot be fitted, and raises the reason when it is called."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why

    def forward(self, x: Tensor) -> Tensor:
        """Raise `ModelError`."""
        raise ModelError(self.why)
