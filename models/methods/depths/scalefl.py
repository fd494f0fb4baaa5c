"""ScaleFL: sub-models scaled in width and in depth, with early exits (Ilhan et al., CVPR 2023).

What differs from the paper and the authors' code, and why:

* Levels are found, not given. Of all numbers of exits and all widths, each tier gets the level with the most training
  MACs within its limits. The largest tier's level has every exit and is the global model; it gives up a little width to
  pay for its exits.
* The teacher, the last exit, is detached and the divergence is a mean over examples; the code lets the gradient
  flow into the teacher and averages over classes too.
* Distillation is on, as in the paper; the code's defaults switch it off.
* The scaler that divides activations by the width is left out: the normalisation after it cancels it.
* Updates are weighted by examples; the code weighs devices equally.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from diastole.models.cost import Cost
from diastole.models.losses import divergence
from diastole.models.methods.bases.budgets import best, ratios, tier_costs
from diastole.models.methods.depths.exits import Exited, Last, SlicedExits, Stages, shape_of
from diastole.models.methods.registry import MethodRow, cost_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import depth
from diastole.models.networks.shape import Shape
from diastole.models.spec import STRICT, SubModelSpec, labelled
from diastole.models.training import Objective, Step, TrainConfig


@validated(frozen=True, slots=True, config=STRICT)
class ScaleFLConfig:
    """How the last exit of a sub-model teaches the others.

    Attributes:
        distillation: weight of the distillation (gamma); 0 for none.
        temperature: what the logits of teacher and students are divided by.
        after: share of the run before the distillation begins.

    """

    distillation: float = Field(default=0.05, ge=0)
    temperature: float = Field(default=3.0, gt=0)
    after: float = Field(default=0.25, ge=0, le=1)


@validated(frozen=True, slots=True, config=STRICT)
class ScaleFLSize(Stages):
    """The first channels of the first stages, and how their last exit teaches the others."""

    config: ScaleFLConfig = Field(default_factory=ScaleFLConfig)


class ScaleFL(Exited, Objective):
    """The first stages at a width, with their exits; later exits count more, and the last one teaches the others.

    Takes a batch of examples, gives the last exit's outputs `[n, *gives]`.
    """

    def __init__(self, model: ModelConfig, shape: Shape, config: ScaleFLConfig) -> None:
        super().__init__(model, shape)
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        """Return the last exit's outputs `[n, *gives]`."""
        return self.last(x)

    def plain_form(self) -> nn.Module:
        """Return the stages and the last exit."""
        return Last(self)

    def loss(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Return `sum_j j (L(z_j, y) + gamma T^2 KL(z_e / T || z_j / T)) / (e (e + 1) / 2)` over exits j = 1 ... e.

        The divergence of the last exit from itself is zero. Until the share `after` of the run is over, there is no
        divergence.
        """
        found, config = self.logits(x), self.config
        gamma = config.distillation * config.temperature**2 * (step.progress > config.after)
        loss = torch.zeros((), device=x.device)
        for j, z in enumerate(found, 1):
            loss = loss + j * step.criterion.mean(z, y)
            if z is not found[-1]:
                loss = loss + j * gamma * divergence(z, found[-1], step.criterion, config.temperature)
        return loss / (len(found) * (len(found) + 1) / 2)


def build(model: ModelConfig, spec: SubModelSpec) -> ScaleFL:
    """Return the first stages at the width, with their exits. Raises `SpecError`."""
    size: ScaleFLSize = spec.options
    return ScaleFL(model, shape_of(model, size), size.config)


def spec_of(width: float, stages: int, config: ScaleFLConfig | None = None) -> SubModelSpec:
    """Return the spec of the first stages at a width."""
    return labelled("scalefl", ScaleFLSize(width, stages, config or ScaleFLConfig()), width, stages=stages)


class ScaleFLMethod(SlicedExits):
    """Sub-models are the first channels of the first stages with their exits, one level for each tier."""

    def __init__(
        self,
        model: ModelConfig,
        widths: Sequence[float],
        training: TrainConfig,
        config: ScaleFLConfig | None = None,
    ) -> None:
        def level(exits: int, most: float = 1.0) -> list[SubModelSpec]:
            return [spec_of(ratio, exits, config) for ratio in ratios(model) if ratio <= most]

        def cost(spec: SubModelSpec) -> Cost:
            return cost_of(model, spec, training)

        *others, largest = tier_costs(model, widths, training)
        whole = best([level(depth(model))], cost, largest)
        levels = [level(exits, whole.options.width) for exits in range(1, depth(model) + 1)]
        specs = [best(levels, cost, limit) for limit in others]
        super().__init__(model, [*specs, whole], whole, training)


ROW = MethodRow(
    make=ScaleFLMethod,
    module=build,
    size=ScaleFLSize,
    source="ScaleFL (Ilhan et al., CVPR 2023)",
    idea="the first channels of the first stages, each with an exit",
    options=ScaleFLConfig,
    recipe={"training.schedule": "step:0.333,0.667"},
    scheduled=lambda options: bool(options.distillation and options.after),
)
