"""Transformer encoders at any shape: for sequences here, and what `vit` shares.

Blocks normalise before they act (pre-LayerNorm, Xiong et al. 2020) and add to one residual stream. A head has
`group` channels at every width, so a prefix of whole heads is a prefix of the rows of q, k and v. LayerNorm runs over
all channels of the stream: unlike GroupNorm's groups, the first channels are not normalised as inside the full
network, so a slice of a trained transformer has to learn to stand alone.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.channels import Axis, Layout
from diastole.models.errors import ModelError
from diastole.models.networks.checks import check_blocks, check_widths
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.registry import Map, NetworkRow
from diastole.models.networks.shape import Shape
from diastole.models.networks.staged import Network

MLP_RATIO = 4
"""Hidden channels of a block's perceptron for each channel of the stream."""

STREAM = Axis("stream")
TABLE = Axis("stream", swapped=True)


def check(model: ModelConfig) -> None:
    """Raise `ModelError` if the configuration is not that of a sequence encoder that can be built."""
    shape = model.input_shape
    if len(shape) != (1 if model.vocabulary else 2) or min(shape) < 1:
        wanted = "[length], as the model has a vocabulary" if model.vocabulary else "[channels, length]"
        raise ModelError(f"model transformer: input_shape {list(shape)}; expected {wanted}")
    check_stages(model)


def check_stages(model: ModelConfig) -> None:
    """Raise `ModelError` if the stages are not ones of a transformer."""
    check_widths(model)
    if len(set(model.widths)) > 1:
        raise ModelError(f"model {model.name}: widths {list(model.widths)} must all be equal; blocks add to one stream")
    check_blocks(model)


def make(model: ModelConfig, shape: Shape) -> nn.Module:
    """Return a sequence encoder of the given shape."""
    width, length = shape.widths[0], model.input_shape[-1]
    embed = _Tokens(model.vocabulary, width) if model.vocabulary else _Steps(model.input_shape[0], width)
    return Transformer(embed, length, model, shape)


def layout(model: ModelConfig) -> Layout:
    """Return what the axes of the parameters run over."""
    if model.vocabulary:
        return {"embed.table.weight": (None, TABLE), **block_layout(model)}
    return {"embed.linear.weight": (STREAM, None), "embed.linear.bias": (STREAM,), **block_layout(model)}


def block_layout(model: ModelConfig) -> Layout:
    """Return what the axes of all parameters but the embedding's run over.

    The stream is one set of channels. The channels inside the heads of each block, `group` a head, and the hidden
    channels of its perceptron are sets of their own.
    """
    axes: dict[str, tuple[Axis | None, ...]] = {"place.position": (None, TABLE)}
    for stage, depth in enumerate(model.blocks):
        for block in range(depth):
            path, name = f"stages.{stage}.{block}", f"stage {stage} block {block}"
            heads, hidden = Axis(f"{name} heads"), Axis(f"{name} hidden")
            rows = {f"attention.{part}": heads for part in "qkv"} | {"grow": hidden}
            for part, axis in rows.items():
                axes[f"{path}.{part}.weight"], axes[f"{path}.{part}.bias"] = (axis, STREAM), (axis,)
            for part, axis in {"attention.out": heads, "shrink": hidden}.items():
                axes[f"{path}.{part}.weight"], axes[f"{path}.{part}.bias"] = (STREAM, axis), (STREAM,)
            for norm in ("norm1", "norm2"):
                axes[f"{path}.{norm}.weight"] = axes[f"{path}.{norm}.bias"] = (STREAM,)
    axes["norm.weight"] = axes["norm.bias"] = (STREAM,)
    axes["classifier.weight"], axes["classifier.bias"] = (None, STREAM), (None,)
    return axes


class Mix(nn.Module):
    """Scaled dot-product attention of heads: `softmax(q k' / sqrt(d)) v`, all `[n, heads, tokens, d]`."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return `[n, heads, tokens, d]`.

        The products are written out, so that they are counted and their bits do not depend on torch's choice of a
        kernel.
        """
        scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)
        return scores.softmax(-1) @ v


class FusedMix(Mix):
    """The same by torch's own kernel, which does not keep the scores: less memory, and faster from some 100 tokens."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return `[n, heads, tokens, d]`."""
        return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2) with heads of `head` channels."""

    def __init__(self, width: int, head: int, fused: bool = False) -> None:
        super().__init__()
        self.head = head
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mix = FusedMix() if fused else Mix()

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, tokens, width]`."""
        q, k, v = (part(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed: Tensor = self.out(self.mix(q, k, v).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Attention, then a perceptron with GELU, each on the normalised stream and added to it."""

    def __init__(self, width: int, head: int, fused: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, head, fused)
        self.norm2 = nn.LayerNorm(width)
        self.grow = nn.Linear(width, MLP_RATIO * width)
        self.shrink = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, tokens, width]`."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = self.shrink(F.gelu(self.grow(self.norm2(x))))
        return x + y


class Stage(nn.Sequential):
    """Blocks of one width, by their positions in the global model's stage; any of them may be missing.

    If a sub-model's stages differ in width, the stream is cut to its first channels, or zeros are appended.
    """

    def __init__(self, width: int, kept: Sequence[int], head: int, fused: bool) -> None:
        super().__init__(OrderedDict((str(block), Block(width, head, fused)) for block in kept))
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, tokens, width]`."""
        missing = self.width - x.shape[-1]
        x = F.pad(x, (0, missing)) if missing else x
        for block in self:
            x = block(x)
        return x


class Place(nn.Module):
    """Adds a learned position to each token."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        # In this form torch does not load its compiler for a module without values; the values are the same.
        self.position = nn.Parameter(torch.empty(tokens, width).normal_().mul_(0.02))

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, tokens, width]`."""
        return x + self.position


class _Steps(nn.Module):
    """A linear embedding of each time step."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, length, width]` from `[n, channels, length]`."""
        y: Tensor = self.linear(x.transpose(1, 2))
        return y


class _Tokens(nn.Module):
    """A table of embeddings; token numbers come as floats, like every input, and float32 holds them exactly."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, length, width]` from `[n, length]`."""
        y: Tensor = self.table(x.long())
        return y


class Transformer(Network):
    """An embedding with learned positions, stages of blocks, a LayerNorm, the mean over tokens, a linear classifier.

    Takes the inputs of `embed`, gives logits `[n, classes]`.
    """

    def __init__(self, embed: nn.Module, tokens: int, model: ModelConfig, shape: Shape) -> None:
        super().__init__()
        self.embed = embed
        self.place = Place(tokens, shape.widths[0])
        fused = model.attention == "fused"
        self.stages = nn.ModuleList(
            Stage(width, kept, model.group, fused) for width, kept in zip(shape.widths, shape.blocks, strict=True)
        )
        self.norm = nn.LayerNorm(shape.widths[-1])
        self.classifier = nn.Linear(shape.widths[-1], model.classes)

    def enter(self, x: Tensor) -> Tensor:
        """Return tokens `[n, tokens, widths[0]]`."""
        tokens: Tensor = self.place(self.embed(x))
        return tokens

    def leave(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]`."""
        logits: Tensor = self.classifier(self.norm(x).mean(1))
        return logits


def tokens(model: ModelConfig, shape: Shape) -> list[Map]:
    """Return each stage's output: tokens, whose channels are last."""
    return [Map(width, 1, -1) for width in shape.widths]


ROW = NetworkRow(check, make, layout, channels=lambda model: -1, maps=tokens, skippable=r"^stages\.\d+\.\d+\.")
