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
"""The least number of ratios that are tried between 0 and 1."""

WISHES = (("training_macs", "bytes_down", "memory"), ("training_macs", "bytes_down"), ("memory",))
"""Groups of limits, the strictest first. `best` keeps the first group that any size can keep. Memory alone stands last,
because a device may take longer than planned, but it cannot get more memory.
"""


def tier_costs(model: ModelConfig, widths: Iterable[float], training: TrainConfig) -> list[Cost]:
    """Return what the tiers of the given widths can afford, ascending by width. Raises `SpecError`."""
    return [width_cost(model, width, training) for width in check_widths(widths)]


def ratios(model: ModelConfig) -> list[float]:
    """Return shares of the channels at which the model can be built, ascending, up to 1.

    Tried are the multiples of 1/n, where n is the number of normalisation groups of the narrowest stage, but at least
    `STEPS`. Of the shares that give one shape, only the simplest fraction is returned.
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
    chains: Sequence[Sequence[SubModelSpec]],
    cost: Callable[[SubModelSpec], Cost],
    limit: Cost,
    value: Callable[[SubModelSpec], float] | None = None,
) -> SubModelSpec:
    """Return the best size within a limit on training MACs, bytes and memory.

    If no size keeps all three, the first group of `WISHES` that some size keeps decides. If no size keeps any group,
    the result is the size with the fewest training MACs.

    Args:
        chains: sizes to choose from. In a chain no size costs less than the one before it, so that the last one that
            fits is found by bisection.
        cost: of a size.
        limit: of the tier.
        value: of the last size that fits in each chain, the one with the highest value is the best; by default training
            MACs.

    """
    score = value or (lambda spec: float(cost(spec).training_macs))
    for names in WISHES:
        found = [chain[count - 1] for chain in chains if (count := _fitting(chain, cost, limit, names))]
        if found:
            return max(found, key=score)
    return min((chain[0] for chain in chains), key=lambda spec: cost(spec).training_macs)


def within(cost: Cost, limit: Cost, names: Sequence[str] = WISHES[0]) -> bool:
    """Return whether a cost is at most the limit in everything that is named."""
    return all(getattr(cost, name) <= getattr(limit, name) for name in names)


def _fitting(
    chain: Sequence[SubModelSpec], cost: Callable[[SubModelSpec], Cost], limit: Cost, names: Sequence[str]
) -> int:
    """Return how many sizes of a chain fit: all of them before the first one that does not."""
    low, high = 0, len(chain)
    while low < high:
        middle = (low + high) // 2
        if within(cost(chain[middle]), limit, names):
            low = middle + 1
        else:
            high = middle
    return low
