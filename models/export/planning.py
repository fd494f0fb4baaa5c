"""Which parts of a network to simplify within a time: two-stage dynamic programming (Kim et al., ICML 2023, section 4).

Layers are numbered from 0; a segment `(i, j)` is the layers `i, ..., j - 1`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

Segment = tuple[int, int]
UNITS = 400
"""Steps in which a budget of time is counted."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One way to run the layers of a segment.

    Attributes:
        start: the first layer.
        stop: one behind the last.
        cost: seconds.
        worth: what is lost by it, as a number that is not above 0; those of a plan are added.
        action: what it is, for whoever carries it out.

    """

    start: int
    stop: int
    cost: float
    worth: float
    action: Any = None


def fastest(times: Mapping[Segment, float]) -> dict[Segment, tuple[float, list[Segment]]]:
    """Return, for every segment that can be merged, the least time in which it runs, and the merged parts of that.

    Merging may cost more than it saves, as kernels grow (stage 1):
    `T*(i, j) = min(T(i, j), min_m T*(i, m) + T*(m, j))`.

    Args:
        times: seconds of each segment, merged into one layer.

    """
    found: dict[Segment, tuple[float, list[Segment]]] = {}
    for start, stop in sorted(times, key=lambda segment: segment[1] - segment[0]):
        best = times[start, stop], [(start, stop)]
        for middle in range(start + 1, stop):
            if (start, middle) in found and (middle, stop) in found:
                (one, left), (other, right) = found[start, middle], found[middle, stop]
                best = min(best, (one + other, [*left, *right]), key=lambda each: each[0])
        found[start, stop] = best
    return found


def best_path(length: int, edges: Sequence[Edge], budget: float) -> list[Edge] | None:
    """Return edges from layer 0 to `length` that lose the least within a time; None if none are that fast (stage 2).

    Times are rounded up to a `UNITS`th of the budget, so the plan never takes more than the budget.
    """
    into: list[list[tuple[int, Edge]]] = [[] for _ in range(length + 1)]
    for edge in edges:
        into[edge.stop].append((ceil(edge.cost / budget * UNITS - 1e-9) if budget > 0 else (UNITS + 1), edge))
    worth = [[-inf] * (UNITS + 1) for _ in range(length + 1)]
    last: list[list[tuple[int, Edge] | None]] = [[None] * (UNITS + 1) for _ in range(length + 1)]
    worth[0] = [0.0] * (UNITS + 1)
    for stop in range(1, length + 1):
        for cost, edge in into[stop]:
            for time in range(cost, UNITS + 1):
                if (value := worth[edge.start][time - cost] + edge.worth) > worth[stop][time]:
                    worth[stop][time], last[stop][time] = value, (cost, edge)
    if worth[length][UNITS] == -inf:
        return None
    path, stop, time = list[Edge](), length, UNITS
    while stop:
        cost, edge = last[stop][time]  # type: ignore[misc]
        path.append(edge)
        stop, time = edge.start, time - cost
    return path[::-1]
