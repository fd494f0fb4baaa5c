"""Vision transformers for small images (Dosovitskiy et al., ICLR 2021), at any shape.

Without a class token: the classifier sees the mean of all tokens, which small models do at least as well with.
"""

from dataclasses import replace

from torch import Tensor, nn

from diastole.models.channels import Layout
from diastole.models.errors import ModelError
from diastole.models.networks import transformer
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.shape import Shape
from diastole.models.networks.transformer import STREAM, Transformer


def check(model: ModelConfig) -> None:
    """Raise `ModelError` if the configuration is not that of a vision transformer that can be built."""
    shape, patch = model.input_shape, model.patch
    if len(shape) != 3 or min(shape) < 1:
        raise ModelError(f"model vit: input_shape {list(shape)}; expected [channels, height, width]")
    if shape[1] % patch or shape[2] % patch:
        raise ModelError(f"model vit: patch {patch} must divide the height and width of {list(shape[1:])}")
    transformer.check_stages(model)


def make(model: ModelConfig, shape: Shape) -> nn.Module:
    """Return a vision transformer of the given shape."""
    channels, height, width = model.input_shape
    tokens = (height // model.patch) * (width // model.patch)
    embed = _Patches(channels, shape.widths[0], model.patch)
    return Transformer(embed, tokens, model, shape)


def layout(model: ModelConfig) -> Layout:
    """Return what the axes of the parameters run over."""
    patches = {"embed.conv.weight": (STREAM, None, None, None), "embed.conv.bias": (STREAM,)}
    return {**patches, **transformer.block_layout(model)}


class _Patches(nn.Module):
    """A linear embedding of each square patch."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, patches, width]`, row by row, from `[n, channels, height, width]`."""
        y: Tensor = self.conv(x).flatten(2).transpose(1, 2)
        return y


ROW = replace(transformer.ROW, check=check, make=make, layout=layout)
