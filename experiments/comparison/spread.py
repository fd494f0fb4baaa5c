"""Numbers over seeds: means, and what a method has over another, seed by seed."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from diastole.models.metrics import better

CLEAR = 2.0
"""A difference of more than so many of its standard errors counts."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation over the seeds that have a value.

    `deviation` is None for a single value, `mean` for none.
    """

    mean: float | None
    deviation: float | None
    count: int

    @staticmethod
    def of(values: Iterable[float | None]) -> "Spread":
        """Return the spread of the values that are finite numbers."""
        found = [value for value in values if value is not None and math.isfinite(value)]
        deviation = statistics.stdev(found) if len(found) > 1 else None
        return Spread(statistics.fmean(found) if found else None, deviation, len(found))


@dataclass(frozen=True, slots=True)
class Difference:
    """What a method has over another in the mean over seeds; data and devices of a seed are the same for both.

    Attributes:
        against: the other method.
        mean: of the seeds' differences; None if no seed has a value of both.
        error: standard error of that mean, the differences' sample standard deviation by the root of their number; None
            for fewer than two.
        count: seeds that have a value of both.

    """

    against: str
    mean: float | None
    error: float | None
    count: int

    @staticmethod
    def of(own: Sequence[float | None], other: Sequence[float | None], against: str) -> "Difference":
        """Return the difference of values, of which each pair is a seed's."""
        pairs = zip(own, other, strict=True)
        spread = Spread.of(None if a is None or b is None else a - b for a, b in pairs)
        error = None if spread.deviation is None else spread.deviation / math.sqrt(spread.count)
        return Difference(against, spread.mean, error, spread.count)

    def clear(self, metric: str) -> bool:
        """Return whether a method is ahead by more than `CLEAR` standard errors, by what is better of a metric."""
        if self.mean is None or self.error is None:
            return False
        return (self.mean if better(metric) == "higher" else -self.mean) > CLEAR * self.error


def differences(values: Mapping[str, Sequence[float | None]], metric: str, against: str = "") -> dict[str, Difference]:
    """Return what each method that has a value has over another: over `against`, or else the best of the others.

    The best is looked for among those that have a value of the most seeds: a mean of few may be of easy ones.

    Args:
        values: by method, one a seed in the same order, None for none.
        metric: says which values are better.
        against: a method, which then has no difference itself.

    """
    spreads = {method: spread for method, of in values.items() if (spread := Spread.of(of)).mean is not None}
    sign = 1.0 if better(metric) == "higher" else -1.0
    found = {}
    for method in spreads:
        others = [other for other in spreads if other != method and (not against or other == against)]
        if others and method != against:
            reference = max(others, key=lambda other: (spreads[other].count, sign * (spreads[other].mean or 0.0)))
            found[method] = Difference.of(values[method], values[reference], reference)
    return found
