"""AdaptiveFL: a pool of sub-models that are narrow only after their first layers (Jia et al., DAC 2024).

What differs from the paper and the authors' code, and why:

* The layers at which the narrow part starts are boundaries of stages, up to three spread over the network; a network
  of two or three stages has a smaller pool.
* The paper draws a size and then a device for it. Here the round's cohort has been drawn already, and each of its
  devices is given a size by the same probabilities.
* In the paper a device that gets more than it can train prunes it, and the server learns from that what the device
  can do. Here the planner knows which sizes fit before anything is sent, so nobody prunes, and the table of successes
  counts the rounds in which a size fitted the device.
* The paper's weakest device can train the smallest of the pool. For a tier that cannot, the pool gets one size more:
  the first channels of every stage, at the tier's own width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from diastole.models.cost import Cost
from diastole.models.method import Size
from diastole.models.methods.bases.budgets import best, tier_costs, within
from diastole.models.methods.bases.sliced import Sliced
from diastole.models.methods.registry import MethodRow, cost_of
from diastole.models.methods.widths.width import check_widths
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import narrowed, network, whole
from diastole.models.proxy import Proxy
from diastole.models.seeds import generator
from diastole.models.spec import STRICT, SubModelSpec, labelled
from diastole.models.state import State
from diastole.models.training import TrainConfig

STARTS = 3
"""The most layers at which the narrow part may start."""

ENOUGH = 0.5
"""Share of successes above which more successes do not make a size likelier."""


@validated(frozen=True, slots=True, config=STRICT)
class AdaptiveFLConfig:
    """The pool.

    Attributes:
        widths: of the narrow part.

    """

    widths: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(default=(0.4, 0.66), min_length=1)


@validated(frozen=True, slots=True, config=STRICT)
class Narrowed:
    """A size of AdaptiveFL.

    Attributes:
        width: share of the channels of the stages after the first ones.
        start: how many stages are whole before the narrow ones.

    """

    width: float = Field(default=1.0, gt=0, le=1)
    start: int = Field(default=0, ge=0)


def spec_of(width: float = 1.0, start: int = 0) -> SubModelSpec:
    """Return the spec of a width after the first `start` stages."""
    return labelled("adaptivefl", Narrowed(width, start), width, start=start)


def build(model: ModelConfig, spec: SubModelSpec) -> nn.Module:
    """Return the global model; its stages after the first `start` have only their first channels.

    Raises `SpecError`.
    """
    size: Narrowed = spec.options
    shape = narrowed(model, size.width)
    widths = (*whole(model).widths[: size.start], *shape.widths[size.start :])
    return network(model, replace(shape, widths=widths))


def starts(model: ModelConfig) -> list[int]:
    """Return the numbers of stages that sizes may keep at full width: all but the last one at the most.

    A custom model's sets of channels, in the order of the layers that give them, stand for stages.
    """
    inner = len(whole(model).widths) - 1
    count = min(STARTS, inner)
    return [round(k * (inner + 1) / (count + 1)) for k in range(1, count + 1)] or [0]


class AdaptiveFLMethod(Sliced):
    """Sub-models keep the first stages whole and the first channels of the others.

    A device gets one of the sizes that fit it, drawn with a probability proportional to
    `min(successes, ENOUGH) / sqrt(times given)`, so that it tries all of them in turn. Each coordinate is averaged over
    the devices that hold it, weighted by their examples.
    """

    def __init__(
        self,
        model: ModelConfig,
        widths: Sequence[float],
        training: TrainConfig,
        config: AdaptiveFLConfig | None = None,
    ) -> None:
        def cost(spec: SubModelSpec) -> Cost:
            return cost_of(model, spec, training)

        full, narrow = spec_of(), (config or AdaptiveFLConfig()).widths
        pool = [spec_of(width, start) for width in narrow for start in starts(model)]
        pool.append(full)
        limits = dict(zip(check_widths(widths), tier_costs(model, widths, training), strict=True))
        weak = [width for width, limit in limits.items() if not any(within(cost(spec), limit) for spec in pool)]
        pool += [spec_of(width) for width in weak]
        exported = {best([[spec] for spec in pool], cost, limit) for limit in limits.values()}
        super().__init__(model, pool, full, training, lambda spec: spec in exported)
        self._place = {size.spec: k for k, size in enumerate(self.offers())}
        self._given: dict[str, Tensor] = {}
        self._fitted: dict[str, Tensor] = {}

    def assign(self, fits: Mapping[str, Sequence[Size]], moment: Moment) -> Mapping[str, Size]:
        """Draw a size for each device, and remember it."""
        chosen = {}
        for device, sizes in fits.items():
            given = self._given.setdefault(device, torch.zeros(len(self._place), dtype=torch.int64))
            # The last entry counts the device's rounds.
            fitted = self._fitted.setdefault(device, torch.zeros(len(self._place) + 1, dtype=torch.int64))
            places = torch.tensor([self._place[size.spec] for size in sizes])
            fitted[places] += 1
            fitted[-1] += 1
            likely = likelihood(given[places], fitted[places] / fitted[-1])
            drawn = int(torch.multinomial(likely, 1, generator=generator(moment.seed, device, "size")))
            given[places[drawn]] += 1
            chosen[device] = sizes[drawn]
        return chosen

    def memory(self) -> State:
        """Return, for each device, how often it was given each size and how often each fitted it."""
        tables = {"given": self._given, "fitted": self._fitted}
        return {f"{table}/{device}": row for table, rows in tables.items() for device, row in rows.items()}

    def resume(self, state: State, proxy: Proxy | None, moment: Moment, memory: State) -> None:
        """Hold the global state and go on with the tables of `memory`."""
        super().resume(state, proxy, moment, memory)
        for name, row in memory.items():
            table, _, device = name.partition("/")
            {"given": self._given, "fitted": self._fitted}[table][device] = row.clone()


def likelihood(given: Tensor, successes: Tensor) -> Tensor:
    """Return the probabilities of the sizes, `[sizes]`, which add up to 1.

    Args:
        given: how often the device was given each size before, `[sizes]`.
        successes: share of the device's rounds in which each size fitted it, `[sizes]`.

    """
    weight = successes.clamp(max=ENOUGH) / (given + 1).sqrt()
    return weight / weight.sum()


ROW = MethodRow(
    make=AdaptiveFLMethod,
    module=build,
    size=Narrowed,
    source="AdaptiveFL (Jia et al., DAC 2024)",
    idea="all channels of the first stages, the first channels of the others",
    options=AdaptiveFLConfig,
    recipe={"training.schedule": "exponential:0.135"},
)
