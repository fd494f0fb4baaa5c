"""NeFL: nested sub-models in width and in depth, with parameters of each size's own (Kang et al., TMC 2025).

What differs from the paper and the authors' code, and why:

* Sizes are found, not given. Each tier gets the size that NeFL-WD would choose: as wide as the tier's limits allow, it
  loses about the same share of the parameters to fewer blocks as to fewer channels. The largest tier's size has every
  block and is the global model; it gives up a little width to pay for its step sizes.
* Blocks are skipped from the end of the stage that has most of them (the deepest of equals). Every stage keeps its
  first block, which changes the shape. The paper lists the blocks of each of its networks by hand.
* "Inconsistent" parameters are the scales and shifts of norms and the step sizes; most networks here normalise by
  groups.
* In a network without residual blocks only the width differs, and there are no step sizes. A transformer's block has
  two branches, and one step size on its whole change: `x + step (block(x) - x)`. So has a block of a custom model that
  can be skipped. A `mobilenet`'s block has a step size if it has a shortcut.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.channels import Layout
from diastole.models.cost import Cost
from diastole.models.hollow import hollow
from diastole.models.method import Size
from diastole.models.methods.bases.bounds import Blocks, Share
from diastole.models.methods.bases.budgets import best, ratios, tier_costs
from diastole.models.methods.bases.persize import PerSize
from diastole.models.methods.registry import MethodRow, cost_of
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.convnext import ConvNeXt
from diastole.models.networks.custom.split import Split
from diastole.models.networks.custom.traced import NORMS
from diastole.models.networks.family import narrowed, network, parts, whole
from diastole.models.networks.mobilenet import InvertedBlock
from diastole.models.networks.registry import NETWORKS
from diastole.models.networks.resnet import ResidualBlock
from diastole.models.networks.shape import first_blocks
from diastole.models.networks.transformer import Block
from diastole.models.seeds import generator
from diastole.models.spec import STRICT, SubModelSpec, labelled
from diastole.models.training import TrainConfig


@validated(frozen=True, slots=True, config=STRICT)
class NeFLConfig:
    """Which sizes devices train.

    Attributes:
        spread: each round a device gets a size drawn from the largest that fits it and this many sizes below. (The
            paper draws from two below to two above; here nothing above fits.)

    """

    spread: int = Field(default=2, ge=0)


@validated(frozen=True, slots=True, config=STRICT)
class NeFLSize:
    """The first channels of some residual blocks.

    Attributes:
        width: share of the channels of every layer.
        blocks: the kept blocks of each stage; empty for all.

    """

    width: Share = 1.0
    blocks: Blocks = ()


class Stepped(nn.Module):
    """A residual block with a learnable step size on its branch: `relu(shortcut(x) + step * branch(x))`.

    The branch ends with a normalisation, and the step size multiplies its scale and shift: `step * (a z + b)` is
    `(step a) z + step b`. A product with the map would make training keep another map in memory.
    """

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.block = block
        self.step = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, `[n, outside, height / stride, width / stride]`."""
        block, norm = self.block, self.block.norm2
        y: Tensor = block.conv2(F.relu(block.norm1(block.conv1(x))))
        y = F.group_norm(y, norm.num_groups, self.step * norm.weight, self.step * norm.bias, norm.eps)
        return F.relu(y + block.shortcut(x))

    def plain_form(self) -> nn.Module:
        """Return the block with the step size in its last norm."""
        self.block.norm2 = _scaled(self.block.norm2, self.step)
        return self.block


class SteppedChange(nn.Module):
    """Any block that can be skipped, with a learnable step size on what it changes: `x + step (block(x) - x)`."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.step = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output with a scaled change, in the shape of `x`; a step of 1 changes no bit."""
        return torch.lerp(x, self.block(x), self.step)


class SteppedNorm(nn.GroupNorm):
    """The normalisation that ends a block's branch, with the branch's step size, as in `Stepped`."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.step = nn.Parameter(torch.ones(()))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch names it so)
        """Return the branch times its step, of the shape of `input`."""
        return F.group_norm(input, self.num_groups, self.step * self.weight, self.step * self.bias, self.eps)

    def plain_form(self) -> nn.Module:
        """Return the normalisation with the step size in it."""
        return _scaled(self, self.step)


def _scaled(norm: nn.GroupNorm, step: Tensor) -> nn.GroupNorm:
    """Return a plain normalisation whose outputs are those of `norm` times a step size."""
    made = nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps)
    made.weight, made.bias = (nn.Parameter((step * tensor).detach()) for tensor in (norm.weight, norm.bias))
    return made


def build(model: ModelConfig, spec: SubModelSpec) -> nn.Module:
    """Return the blocks that are kept, at the width, each with a step size. Raises `SpecError`."""
    size: NeFLSize = spec.options
    shape = narrowed(model, size.width)
    module = network(model, replace(shape, blocks=size.blocks or shape.blocks))
    for stage in parts(module).stages:
        for name, block in list(stage.named_children()):
            if isinstance(block, ResidualBlock):
                setattr(stage, name, Stepped(block))
            elif isinstance(block, InvertedBlock):
                block.norm3 = SteppedNorm(block.norm3) if block.shortcut else block.norm3
            elif isinstance(block, Block) or (isinstance(module, Split | ConvNeXt) and name != "0"):
                setattr(stage, name, SteppedChange(block))
    return module


def spec_of(width: float = 1.0, blocks: Blocks = ()) -> SubModelSpec:
    """Return the spec of some blocks at a width."""
    return labelled("nefl", NeFLSize(width, blocks), width, blocks=blocks)


def depths(model: ModelConfig) -> list[Blocks]:
    """Return the blocks that sizes keep, from all of them (an empty tuple) down to one a stage."""
    kept, found = [len(every) for every in whole(model).blocks], list[Blocks]([()])
    while kept and max(kept) > 1:
        most = max(range(len(kept)), key=lambda stage: (kept[stage], stage))
        kept[most] -= 1
        found.append(first_blocks(kept))
    return found


class NeFLMethod(PerSize):
    """Sub-models are the first channels of some residual blocks.

    Weights of convolutions and the classifier are averaged over all devices that hold them; norms and step sizes
    only over those of the same size.
    """

    def __init__(
        self,
        model: ModelConfig,
        widths: Sequence[float],
        training: TrainConfig,
        config: NeFLConfig | None = None,
    ) -> None:
        def sizes(blocks: Blocks, most: float = 1.0) -> list[SubModelSpec]:
            return [spec_of(ratio, blocks) for ratio in ratios(model) if ratio <= most]

        def cost(spec: SubModelSpec) -> Cost:
            return cost_of(model, spec, training)

        def balance(spec: SubModelSpec) -> float:
            """Return 0 if width and depth lose the same share of the parameters, and less if they do not."""
            full, deep = cost(spec_of()), cost(spec_of(blocks=spec.options.blocks))
            return -abs(log(cost(spec).parameters / deep.parameters) - log(deep.parameters / full.parameters))

        *others, largest = tier_costs(model, widths, training)
        whole = best([sizes(())], cost, largest)
        chains = [sizes(blocks, whole.options.width) for blocks in depths(model)]
        specs = [best(chains, cost, limit, balance) for limit in others]
        with hollow():
            norms = [name for name, part in build(model, whole).named_modules() if isinstance(part, NORMS)]
        inconsistent = tuple(f"{name}." for name in norms)

        def own(spec: SubModelSpec, name: str) -> bool:
            return name.startswith(inconsistent) or name.endswith(".step")

        super().__init__(model, specs, whole, training, own)
        self._spread = (config or NeFLConfig()).spread

    def axes(self, model: ModelConfig) -> Layout:
        """Return which channels each axis of each tensor runs over, under the names of blocks with step sizes."""
        found, inside = super().axes(model), NETWORKS[model.name].skippable
        return {re.sub(inside, r"\g<0>block.", name): along for name, along in found.items()} if inside else found

    def plain(self, name: str) -> str:
        """Return the plain network's name of a tensor; step sizes are the method's own."""
        inside = NETWORKS[self._model.name].skippable
        if name.endswith(".step"):
            return ""
        return re.sub(rf"({inside})block\.", r"\1", name) if inside else name

    def assign(self, fits: Mapping[str, Sequence[Size]], moment: Moment) -> Mapping[str, Size]:
        """Draw, for each device, one of the largest sizes that fit it."""
        given = {}
        for device, sizes in fits.items():
            largest = self.sizes.index(sizes[-1].spec)
            near = [size for size in sizes if self.sizes.index(size.spec) >= largest - self._spread]
            drawn = torch.randint(len(near), (), generator=generator(moment.seed, device, "size"))
            given[device] = near[int(drawn)]
        return given


ROW = MethodRow(
    make=NeFLMethod,
    module=build,
    size=NeFLSize,
    source="NeFL (Kang et al., TMC 2025)",
    idea="the first channels of some residual blocks; each size's norms are its own",
    options=NeFLConfig,
    recipe={"training.clip": 1.0, "training.schedule": "step:0.5,0.75"},
)
