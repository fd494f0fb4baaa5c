"""SN-Netv2: stitched vision transformers (Pan et al., 2023), in a federation.

Two anchors, of the smallest and the largest tier's width, are stitched in both directions: a route may go small to
large (SL), large to small (LS), and back again (SLS, LSL). Stitches change by a low rank. What SN-Net here does
otherwise than its paper (`snnet`) holds for this too.

What differs from this paper and its code, and why:

* Anchors are equally deep (the paper's large one may have a multiple of the small one's blocks), so every block has one
  partner, and routes may leave the large anchor behind any block.
* A stitch with a random start (`initialise = "none"`, or a pair of anchors that no device could hold) is low-rank
  around that random start.
* Stitches change by a low rank only where that is fewer numbers than the stitch has, `rank * (inside + outside) <
  inside * outside`; in networks of few channels it is not, and the whole stitch is trained, as with rank 0.
* The gap between groups is half the work of one block more of the large anchor, and not a number of FLOPs that
  would have to be chosen anew for each model.
* Groups are those of the routes that fit a device; of all routes, when the server trains on its proxy set.
"""

from collections.abc import Sequence
from functools import partial

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import nn

from diastole.models.method import Size
from diastole.models.methods.bases.bounds import MOST
from diastole.models.methods.registry import MethodRow
from diastole.models.methods.stitching.routes import two_way
from diastole.models.methods.stitching.snnet import StitchConfig, StitchedMethod, check, files
from diastole.models.methods.stitching.stitched import Part, module_of, spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import STRICT, SubModelSpec
from diastole.models.training import TrainConfig


@validated(frozen=True, slots=True, config=STRICT)
class SNNetV2Config(StitchConfig):
    """How stitches come in, and how routes are drawn.

    Attributes:
        rank: of what a stitch learns on top of its start, where that is fewer numbers than the stitch has; 0 to train
            whole stitches.
        gap: multiply-accumulates of the forward pass by which a group's routes may exceed its first; 0 for half of
            what one block more of the large anchor takes.

    """

    rank: int = Field(default=8, ge=0, le=MOST)
    gap: float = Field(default=0.0, ge=0)


def build(model: ModelConfig, spec: SubModelSpec) -> nn.Module:
    """Return the module of a sub-model. Raises `SpecError`."""
    part: Part = spec.options
    return module_of(two_way(model, part.widths, part.rank), part)


class SNNetV2Method(StitchedMethod):
    """Two anchors, stitched in both directions; a group of routes of about one cost is drawn, then one of it."""

    def __init__(
        self, model: ModelConfig, widths: Sequence[float], training: TrainConfig, config: SNNetV2Config | None = None
    ) -> None:
        config = config or SNNetV2Config()
        family = two_way(model, widths, config.rank)
        super().__init__(family, spec_of("snnetv2", Part(family.widths, rank=config.rank)), training, config)
        anchors = [size.cost.forward_macs for size in self._sizes if size.spec in self._anchors]
        depth = family.routes[0].segments[0].stop
        self._gap = config.gap or (max(anchors) - min(anchors)) / (2 * depth)

    def _draw(self, pool: Sequence[Size], draws: torch.Generator) -> Size:
        """Return a size of a group, each group as likely as any, and each size in it."""
        found = groups(pool, self._gap)
        group = found[int(torch.randint(len(found), (), generator=draws))]
        return super()._draw(group, draws)


def groups(sizes: Sequence[Size], gap: float) -> list[list[Size]]:
    """Return the sizes, ascending by forward work, cut wherever one exceeds its group's first by more than `gap`."""
    found: list[list[Size]] = []
    for size in sorted(sizes, key=lambda size: size.cost.forward_macs):
        if not found or size.cost.forward_macs > found[-1][0].cost.forward_macs + gap:
            found.append([])
        found[-1].append(size)
    return found


ROW = MethodRow(
    make=SNNetV2Method,
    module=build,
    size=Part,
    source="SN-Netv2 (Pan et al., 2023)",
    idea="a two-way route through two networks, stitched by low-rank layers",
    options=SNNetV2Config,
    scheduled=lambda options: bool(options.anchors_alone),
    check=partial(check, "snnetv2"),
    files=files,
)
