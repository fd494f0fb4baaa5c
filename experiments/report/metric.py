"""How a metric is read: the axis it is drawn on, which of its values is the worst, whether a target is reached."""

import math
from collections.abc import Iterable

from diastole.models.metrics import LOSS, ahead, better, metric, title


def is_share(name: str) -> bool:
    """Return whether values of a metric are shares of one, which people read in per cent."""
    return name != LOSS and metric(name).share


def scale(name: str) -> float:
    """Return what a value is multiplied by to be drawn on its `axis`."""
    return 100.0 if is_share(name) else 1.0


def axis(name: str, what: str = "test") -> str:
    """Return the title of a metric's axis, such as "test accuracy (%)" or "test MAE (lower is better)"."""
    note = "%" if is_share(name) else f"{better(name)} is better"
    return f"{what} {title(name)} ({note})"


def heading(name: str) -> str:
    """Return a metric's name at the head of a table: it says if lower is better, for higher goes without saying."""
    found = title(name)
    return f"{found[:1].upper()}{found[1:]}" + (" (lower is better)" if better(name) == "lower" else "")


def reached(name: str, value: float | None, target: float) -> bool:
    """Return whether a value is as good as a target, or better."""
    return value is not None and math.isfinite(value) and not ahead(name, target, value)


def best(name: str, values: Iterable[float | None]) -> float | None:
    """Return the best of the values that are finite, or None."""
    found = [value for value in values if value is not None and math.isfinite(value)]
    return (max if better(name) == "higher" else min)(found, default=None)


def worst(name: str, values: Iterable[float]) -> float | None:
    """Return the worst of the values, or None if there are none."""
    return (min if better(name) == "higher" else max)(values, default=None)
