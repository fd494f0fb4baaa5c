"""DepthFL: depthwise scaling with mutual self-distillation (Kim et al., ICLR 2023).

What differs from the paper and from the first author's code, and why:

* FedDyn, which the code puts on top of everything, is left out: it is a way of training that any method could use.
* Updates are weighted by examples; the code weighs devices equally.
* Exits are small (`exits.Exit`), and the last stage uses the network's own classifier.
* The ramp is given in shares of the run, because runs differ in length: 300 of the 1,000 rounds are 0.3.
* Every depth is offered to every device. Exits cost something beside the network, so all depths share the widest
  trunk whose full depth the largest tier can train; otherwise nobody would train the last stage.
"""

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from diastole.models.losses import divergence
from diastole.models.methods.bases.budgets import best, ratios, tier_costs
from diastole.models.methods.depths.exits import Exited, SlicedExits, Stages, shape_of
from diastole.models.methods.registry import MethodRow, cost_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import depth
from diastole.models.networks.shape import Shape
from diastole.models.spec import STRICT, SubModelSpec, labelled
from diastole.models.training import Objective, Step, TrainConfig


@validated(frozen=True, slots=True, config=STRICT)
class DepthFLConfig:
    """How the exits of a sub-model teach each other.

    Attributes:
        distillation: weight of the mutual distillation after the ramp; 0 for none.
        ramp: share of the run over which this weight grows to its full value.

    """

    distillation: float = Field(default=1.0, ge=0)
    ramp: float = Field(default=0.3, ge=0, le=1)

    def weight(self, progress: float | Tensor) -> float | Tensor:
        """Return the weight of the distillation when `progress`, a share of the run, is over."""
        if isinstance(progress, Tensor):
            short = (1 - progress / max(self.ramp, 1e-12)).clamp(min=0.0)
            return self.distillation * torch.exp(-5 * short**2)
        missing = 0.0 if progress >= self.ramp else 1 - progress / self.ramp
        return self.distillation * math.exp(-5 * missing**2)


@validated(frozen=True, slots=True, config=STRICT)
class DepthFLSize(Stages):
    """The first stages, and how their exits teach each other."""

    config: DepthFLConfig = Field(default_factory=DepthFLConfig)


class DepthFL(Exited, Objective):
    """The first stages with their exits, each of which learns from the labels and from all the others.

    Takes a batch of examples, gives the mean of all exits' outputs `[n, *gives]` (the paper's ensemble).
    """

    def __init__(self, model: ModelConfig, shape: Shape, config: DepthFLConfig) -> None:
        super().__init__(model, shape)
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean outputs `[n, *gives]`."""
        found = self.logits(x)
        return sum(found[1:], found[0]) / len(found)

    def loss(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Return `sum_i L(z_i, y) + w sum_i sum_{j != i} KL(z_j || z_i) / (exits - 1)`; z_j gets no gradient."""
        found = self.logits(x)
        loss = sum((step.criterion.mean(z, y) for z in found), torch.zeros((), device=x.device))
        # The weight itself may be on a card, which would have to be waited for.
        if self.config.distillation and len(found) > 1:
            weight = self.config.weight(step.progress)
            pairs = [divergence(z, other, step.criterion) for z in found for other in found if other is not z]
            loss = loss + weight / (len(found) - 1) * sum(pairs[1:], pairs[0])
        return loss


def build(model: ModelConfig, spec: SubModelSpec) -> DepthFL:
    """Return the first stages of the trunk with their exits. Raises `SpecError`."""
    size: DepthFLSize = spec.options
    return DepthFL(model, shape_of(model, size), size.config)


def spec_of(width: float, stages: int, config: DepthFLConfig | None = None) -> SubModelSpec:
    """Return the spec of the first stages at a width."""
    return labelled("depthfl", DepthFLSize(width, stages, config or DepthFLConfig()), width, stages=stages)


class DepthFLMethod(SlicedExits):
    """Sub-models are the first 1, 2, ... stages with the exits after them; each stage is averaged over its holders."""

    def __init__(
        self,
        model: ModelConfig,
        widths: Sequence[float],
        training: TrainConfig,
        config: DepthFLConfig | None = None,
    ) -> None:
        most = depth(model)
        limit = tier_costs(model, widths, training)[-1]
        trunks = [spec_of(ratio, most, config) for ratio in ratios(model)]
        whole = best([trunks], lambda spec: cost_of(model, spec, training), limit)
        specs = [spec_of(whole.options.width, count, config) for count in range(1, most + 1)]
        super().__init__(model, specs, whole, training)


ROW = MethodRow(
    make=DepthFLMethod,
    module=build,
    size=DepthFLSize,
    source="DepthFL (Kim et al., ICLR 2023)",
    idea="the first stages, each with an exit",
    options=DepthFLConfig,
    recipe={"training.schedule": "exponential:0.135"},
    scheduled=lambda options: bool(options.distillation and options.ramp),
)
