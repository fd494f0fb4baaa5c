"""Choosing sizes within what the devices of a tier can afford."""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

from diastole.models.cost import Cost
from diastole.models.methods.widths.width import check_widths, width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import narrowed, whole
from diastole.models.networks.shape import Shape
from diastole.models.spec import SubModelSpec
from diastole.models.training import TrainConfig

STEPS = 16
"""Ratios that are tried between 0 and 1, at the least."""

WISHES = (("training_macs", "bytes_down", "memory"), ("training_macs", "bytes_down"), ("memory",))
"""Which limits are kept: the first of these that any size can keep. Memory alone comes before nothing, because a
device can be slow and late, but not larger than it is."""


def tier_costs(model: ModelConfig, widths: Iterable[float], training: TrainConfig) -> list[Cost]:
    """Return what the tiers of the given widths can afford, ascending by width. Raises `SpecError`."""
    return [width_cost(model, width, training) for width in check_widths(widths)]


def ratios(model: ModelConfig) -> list[float]:
    """Return shares of the channels at which the model can be built, ascending, up to 1.

    One for each normalisation group of the narrowest stage, or `STEPS` of them if those are fewer; of those that
    give one shape, the simplest fraction.
    """
    narrowest = min(whole(model).widths)
    steps = max(STEPS, narrowest // model.group)
    simplest: dict[Shape, Fraction] = {}
    for ratio in (Fraction(step, steps) for step in range(1, steps + 1)):
        if narrowest * ratio >= model.group / 2:
            shape = narrowed(model, float(ratio))
            simplest[shape] = min(simplest.get(shape, ratio), ratio, key=lambda fraction: fraction.denominator)
    return sorted(map(float, simplest.values()))


def best(
    families: Sequence[Sequence[SubModelSpec]],
    cost: Callable[[SubModelSpec], Cost],
    limit: Cost,
    value: Callable[[SubModelSpec], float] | None = None,
) -> SubModelSpec:
    """Return the best size within a limit on training MACs, bytes and memory.

    Where no size keeps all three, the first of `WISHES` that one keeps decides; where none keeps anything, it is
    the size of the least training MACs.

    Args:
        families: sizes to choose from; within a family no size costs less than the one before it, so that the last
            one that fits is found by bisection.
        cost: of a size.
        limit: of the tier.
        value: what the best size has most of among the last ones that fit, one a family; by default training MACs.

    """
    score = value or (lambda spec: float(cost(spec).training_macs))
    for names in WISHES:
        found = [family[count - 1] for family in families if (count := _fitting(family, cost, limit, names))]
        if found:
            return max(found, key=score)
    return min((family[0] for family in families), key=lambda spec: cost(spec).training_macs)


def within(cost: Cost, limit: Cost, names: Sequence[str] = WISHES[0]) -> bool:
    """Return whether a cost is at most the limit in everything that is named."""
    return all(getattr(cost, name) <= getattr(limit, name) for name in names)


def _fitting(
    family: Sequence[SubModelSpec], cost: Callable[[SubModelSpec], Cost], limit: Cost, names: Sequence[str]
) -> int:
    """Return how many sizes of a family fit: all of them before the first one that does not."""
    low, high = 0, len(family)
    while low < high:
        middle = (low + high) // 2
        if within(cost(family[middle]), limit, names):
            low = middle + 1
        else:
            high = middle
    return low
