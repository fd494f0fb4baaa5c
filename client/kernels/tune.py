"""Convolutions before frozen batch normalisation, computed as one ("Tune mode" of Efficient ConvBN Blocks).

With fixed statistics BatchNorm is a scale and a shift of each channel. The scale goes into the convolution's weight,
and the shift into its bias, so the map between the two is neither written nor kept for the backward pass; the
convolution's weight, gamma and beta still get their gradients, the same as in evaluation mode. For fine-tuning: with
statistics of the batch, which training from scratch needs, there is nothing to fold.

Source: You et al., "Efficient ConvBN Blocks for Transfer Learning and Beyond" (arXiv 2305.11624), section 3.
"""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


def tune(module: nn.Module) -> list[str]:
    """Let convolutions before frozen BatchNorm be computed in one with it, in place; return their names.

    Those are neighbours `Conv2d` and `BatchNorm2d` in a `Sequential`, each used once in the module. Parameters and
    buffers keep their names. A pair computes in one whenever its BatchNorm is in evaluation mode, else as before.
    """
    found = []
    for name, convolution, norm in list(_pairs(module)):
        convolution.__class__ = TunedConv2d
        norm.__class__ = FoldedNorm
        convolution.__dict__["norm"] = norm  # Not a child: the norm stays where it is in the module.
        found.append(name)
    return found


class TunedConv2d(nn.Conv2d):
    """`nn.Conv2d`, and the frozen BatchNorm behind it."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return `[n, out, height, width]`, normalised if the norm is frozen."""
        norm: nn.BatchNorm2d = self.__dict__["norm"]
        if not is_frozen(norm):
            return super().forward(input)
        weight, bias = folded(self.weight, self.bias, norm)
        return F.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class FoldedNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that the convolution before it computes while it is frozen."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the input, which is normalised already if the norm is frozen."""
        return input if is_frozen(self) else super().forward(input)


def folded(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight `[out, in, kh, kw]` and bias `[out]` of a convolution followed by a frozen norm."""
    mean: Tensor = norm.get_buffer("running_mean")
    variance: Tensor = norm.get_buffer("running_var")
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = (-mean if bias is None else bias - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return weight * scale.view(-1, 1, 1, 1), shift


def is_frozen(norm: nn.BatchNorm2d) -> bool:
    """Return whether a norm uses statistics that it does not change."""
    return not norm.training and norm.running_mean is not None and norm.running_var is not None


def _pairs(module: nn.Module) -> Iterator[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    uses: dict[int, int] = {}
    for _, layer in module.named_modules(remove_duplicate=False):
        uses[id(layer)] = uses.get(id(layer), 0) + 1
    for path, parent in module.named_modules():
        if type(parent) is not nn.Sequential:
            continue
        named = list(parent.named_children())
        for (name, first), (_, second) in pairwise(named):
            if not (type(first) is nn.Conv2d and type(second) is nn.BatchNorm2d and first.padding_mode == "zeros"):
                continue
            if uses[id(first)] == uses[id(second)] == 1 and not _is_watched(first) and not _is_watched(second):
                yield (f"{path}.{name}" if path else name), first, second


def _is_watched(layer: nn.Module) -> bool:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks)
