"""Architectures: the sub-networks of a supernet, and a finite pool of them for devices of every strength.

A sub-network is an `Architecture`: the first blocks of each stage (`blocks`), and block by block the size of its
depth-wise kernel (`kernels`) and its expansion ratio (`expands`). In networks without such blocks `expands` is the
share of each stage's channels; in a custom model it is one share of all channels. What a spec leaves out has its full
size, so a spec with nothing set is the supernet itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import nn

from diastole.models.cost import Cost
from diastole.models.errors import SpecError
from diastole.models.method import Size
from diastole.models.methods.bases.bounds import MOST, Blocks, Count, Share
from diastole.models.methods.bases.budgets import within
from diastole.models.methods.registry import cost_of
from diastole.models.methods.widths.width import check_widths, width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import narrowed, network, whole
from diastole.models.networks.registry import NETWORKS
from diastole.models.networks.shape import Shape, first_blocks, scaled
from diastole.models.seeds import generator, reference_plan
from diastole.models.spec import STRICT, SubModelSpec, labelled
from diastole.models.training import TrainConfig

Genes = tuple[int, ...]
"""An architecture as numbers: for each choice of the space, the position of what was chosen."""

EXPORTED = 12
GROUPS = 8
CLIMBS = 3
CHAINS = 2


@validated(frozen=True, slots=True, config=STRICT)
class Architecture:
    """A sub-network of a supernet.

    Attributes:
        width: share of the channels of every layer, for the whole network at a width.
        blocks: the first blocks of each stage; empty for all.
        kernels: sizes of the elastic kernels, block by block; empty for the largest.
        expands: expansion ratios, block by block, or shares of channels (see the module); empty for the largest.

    """

    width: Share = 1.0
    blocks: Blocks = ()
    kernels: Annotated[tuple[Count, ...], Field(max_length=MOST)] = ()
    expands: Annotated[tuple[Annotated[float, Field(gt=0, le=MOST)], ...], Field(max_length=MOST)] = ()


def spec_of(method: str, size: Architecture) -> SubModelSpec:
    """Return the spec of a sub-network of a method's supernet."""
    return labelled(method, size, size.width, blocks=size.blocks, kernels=size.kernels, expands=size.expands)


def build(model: ModelConfig, spec: SubModelSpec) -> nn.Module:
    """Return the sub-network that a spec names. Raises `SpecError` if the model has no such sub-network."""
    return network(model, shape_of(model, spec.options))


def shape_of(model: ModelConfig, size: Architecture) -> Shape:
    """Return the shape of a sub-network. Raises `SpecError` if the model has no such sub-network."""
    full = narrowed(model, size.width)
    blocks = size.blocks or full.blocks
    firsts = len(blocks) == len(full.blocks) and all(
        kept and kept == every[: len(kept)] for kept, every in zip(blocks, full.blocks, strict=True)
    )
    if not firsts:
        raise SpecError(
            f"blocks {[list(kept) for kept in blocks]}: must be the first blocks of each stage, at least one, "
            f"of {[len(every) for every in full.blocks]}"
        )
    if NETWORKS[model.name].elastic:
        return Shape(full.widths, blocks, size.kernels, size.expands)
    if size.kernels:
        raise SpecError(f"kernels {list(size.kernels)}: model {model.name} has no elastic kernels")
    # The channels of a custom model's stages may be the same ones, so they have one share.
    count = 1 if full.sets else len(model.widths)
    shares = size.expands or (size.width,) * count
    if len(shares) != count or not all(0 < share <= 1 for share in shares):
        what = "all channels" if full.sets else f"each of {count} stages"
        raise SpecError(f"expands {list(shares)}: a share in (0, 1] is needed for {what}")
    every = whole(model).widths
    each = shares * len(every) if full.sets else shares
    widths = (scaled(width, share, model.group, model.block) for width, share in zip(every, each, strict=True))
    return replace(full, widths=tuple(widths), blocks=blocks)


@dataclass(frozen=True, slots=True)
class Space:
    """Every architecture that can be chosen, ordered so that a larger position is a larger sub-network.

    Attributes:
        method: of the specs.
        model: the supernet.
        depths: choices of blocks, stage by stage.
        kernels: choices of kernel sizes, for each block of the supernet; empty for a network without such kernels.
        expands: choices of ratios, for each block or each stage of the supernet, or for all of it.

    """

    method: str
    model: ModelConfig
    depths: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    expands: tuple[tuple[float, ...], ...]

    @staticmethod
    def of(method: str, model: ModelConfig, shares: Sequence[float], elastic: bool) -> "Space":
        """Return the space of a model: every depth, every kernel if `elastic`, and `shares` of the largest ratio.

        Shares that come to the same number of channels count once.
        """
        full = whole(model)
        inside = [min(full.widths)] if full.sets else list(full.widths)
        depths = tuple(tuple(range(1, len(every) + 1)) for every in full.blocks)
        kernels, largest, block = tuple[tuple[int, ...], ...](), 1.0, model.block
        if blocks := NETWORKS[model.name].elastic:
            inside, before, largest, block = [], model.widths[0], blocks.expand(model), 0
            for width, depth in zip(model.widths, model.blocks, strict=True):
                inside += [before] + [width] * (depth - 1)
                before = width
            sizes = blocks.kernels(model)
            kernels = (sizes if elastic else sizes[-1:],) * len(inside)
        expands = tuple(
            tuple(
                {scaled(width, s * largest, model.group, block): s * largest for s in sorted({*shares, 1.0})}.values()
            )
            for width in inside
        )
        return Space(method, model, depths, kernels, expands)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of choices of each gene: depths, then kernels, then ratios."""
        return tuple(len(choices) for choices in (*self.depths, *self.kernels, *self.expands))

    def spec(self, genes: Genes) -> SubModelSpec:
        """Return the spec of an architecture; choices of full size are left out."""
        split = len(self.depths), len(self.depths) + len(self.kernels)
        depths = [choices[k] for choices, k in zip(self.depths, genes[: split[0]], strict=True)]
        kernels = [choices[k] for choices, k in zip(self.kernels, genes[split[0] : split[1]], strict=True)]
        expands = [choices[k] for choices, k in zip(self.expands, genes[split[1] :], strict=True)]
        # A block that is not there has neither kernel nor ratio.
        there = [block < depth for depth, every in zip(depths, self.depths, strict=True) for block in range(len(every))]
        if self.kernels:
            kernels = [size for size, used in zip(kernels, there, strict=True) if used]
            expands = [ratio for ratio, used in zip(expands, there, strict=True) if used]
        blocks = first_blocks(depths)
        size = Architecture(
            blocks=() if blocks == whole(self.model).blocks else blocks,
            kernels=() if all(size == max(self.kernels[0]) for size in kernels) else tuple(kernels),
            expands=() if all(ratio == max(self.expands[0]) for ratio in expands) else tuple(expands),
        )
        return spec_of(self.method, size)

    def draw(self, level: float, draws: torch.Generator) -> Genes:
        """Return a random architecture; `level`, in [0, 1], is how large its choices tend to be."""
        return tuple(int((torch.rand(size - 1, generator=draws) < level).sum()) for size in self.sizes)

    def chain(self, genes: Genes, draws: torch.Generator) -> list[Genes]:
        """Return a way from an architecture to the supernet; each step makes one choice a step larger."""
        steps = [k for k, (gene, size) in enumerate(zip(genes, self.sizes, strict=True)) for _ in range(gene, size - 1)]
        way, here = [genes], list(genes)
        for k in torch.randperm(len(steps), generator=draws).tolist():
            here[steps[k]] += 1
            way.append(tuple(here))
        return way


@cache
def pool(
    method: str,
    model: ModelConfig,
    widths: tuple[float, ...],
    training: TrainConfig,
    shares: tuple[float, ...],
    count: int,
    elastic: bool,
) -> tuple[Size, ...]:
    """Return the architectures on offer; the first `EXPORTED` of them that are not random are exported.

    In order, they are the largest; the smallest; for each width, the largest that was found within the cost of plain
    training at this width (multiply-accumulates, memory and bytes); and up to `count` random ones, spread from small to
    large. If no sub-network with the full stream of channels fits a width, the whole network at that width stands in,
    which fits by definition: elastic width, which OFA has too. The draws depend on the model alone.

    The search is bounded, because measuring is slow. It starts from the largest random architectures that fit, and
    makes choices larger, in random order, as long as they fit. Costs are measured on modules.
    """
    with reference_plan():
        return _pool(Space.of(method, model, shares, elastic), widths, training, count)


def _pool(space: Space, widths: Sequence[float], training: TrainConfig, count: int) -> tuple[Size, ...]:
    draws = generator("architectures", space.method, space.model.to_json())

    def cost(spec: SubModelSpec) -> Cost:
        return cost_of(space.model, spec, training)

    smallest: Genes = (0,) * len(space.sizes)
    largest: Genes = tuple(size - 1 for size in space.sizes)
    drawn = [space.draw((turn + 0.5) / count, draws) for turn in range(count)]
    chosen = [space.spec(largest), space.spec(smallest)]
    for width in check_widths(widths):
        limits = width_cost(space.model, width, training)
        found = _largest_within(space, cost, limits, [largest, smallest, *drawn], draws)
        chosen.append(spec_of(space.method, Architecture(width)) if found is None else space.spec(found))
    exported = list(dict.fromkeys(chosen))[:EXPORTED]
    offered = dict.fromkeys([*chosen, *(space.spec(genes) for genes in drawn)])
    return tuple(Size(spec, cost(spec), spec in exported) for spec in offered)


def grouped(costs: Sequence[tuple[SubModelSpec, Cost]]) -> list[list[SubModelSpec]]:
    """Return sub-models in groups of about equal training work, smallest first.

    A group ends before a member that needs more than the group's first one by an eighth of the range. By this rule of
    SN-Netv2 (section 3.3) every amount of work is drawn equally often, however many sub-models need it.
    """
    groups: list[list[SubModelSpec]] = []
    ascending = sorted(costs, key=lambda item: (item[1].training_macs, item[0].label))
    gap = (ascending[-1][1].training_macs - ascending[0][1].training_macs) / GROUPS if ascending else 0
    first = 0
    for spec, cost in ascending:
        if not groups or cost.training_macs > first + gap:
            groups.append([])
            first = cost.training_macs
        groups[-1].append(spec)
    return groups


def _largest_within(
    space: Space,
    cost: Callable[[SubModelSpec], Cost],
    limits: Cost,
    starts: Sequence[Genes],
    draws: torch.Generator,
) -> Genes | None:
    """Return a large architecture within the limits, or None if not even one of the `starts` is."""

    def largest_first(some: Sequence[Genes]) -> list[Genes]:
        inside = [genes for genes in some if within(cost(space.spec(genes)), limits)]
        return sorted(inside, key=lambda genes: cost(space.spec(genes)).training_macs, reverse=True)

    fitting = largest_first(starts)
    found = fitting[:1]
    for start in fitting[:CLIMBS]:
        here = start
        for _ in range(CHAINS):
            way = space.chain(here, draws)
            low, high = 0, len(way)
            # Costs mostly ascend along a chain; where they do not, what is found fits all the same.
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if within(cost(space.spec(way[middle])), limits) else (low, middle)
            here = way[low]
        found.append(here)
    return next(iter(largest_first(found)), None)
