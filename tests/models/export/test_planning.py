"""Dynamic programming over segments, against a look at every plan."""

from collections.abc import Iterator, Sequence

import pytest
import torch

from diastole.models.export.planning import Edge, best_path, fastest


def every_path(edges: Sequence[Edge], start: int, length: int) -> Iterator[list[Edge]]:
    if start == length:
        yield []
    for edge in edges:
        if edge.start == start:
            yield from ([edge, *rest] for rest in every_path(edges, edge.stop, length))


@pytest.mark.parametrize("seed", range(6))
def test_the_best_plan_is_found(seed: int) -> None:
    draws, length = torch.Generator().manual_seed(seed), 6
    # Whole steps of a budget of 400, so that rounding up changes nothing.
    edges = [
        Edge(i, j, float(torch.randint(10, 120, (), generator=draws)), -float(torch.rand((), generator=draws)))
        for i in range(length)
        for j in range(i + 1, length + 1)
        for _ in range(2)
    ]
    found = best_path(length, edges, 400.0)
    able = [path for path in every_path(edges, 0, length) if sum(edge.cost for edge in path) <= 400]
    assert (found is None) == (not able)
    if found is not None:
        assert [edge.stop for edge in found[:-1]] == [edge.start for edge in found[1:]]
        assert sum(edge.cost for edge in found) <= 400
        best = max(sum(edge.worth for edge in path) for path in able)
        assert sum(edge.worth for edge in found) == pytest.approx(best)


def test_no_plan_takes_more_than_its_time() -> None:
    edges = [Edge(0, 1, 0.3, 0.0), Edge(0, 1, 0.1, -1.0), Edge(1, 2, 0.3, 0.0)]
    path = best_path(2, edges, 0.6)
    assert path is not None
    assert [edge.cost for edge in path] == [0.3, 0.3]
    path = best_path(2, edges, 0.599)
    assert path is not None
    assert [edge.cost for edge in path] == [0.1, 0.3]
    assert best_path(2, edges, 0.39) is None
    assert best_path(2, edges, 0.0) is None


@pytest.mark.parametrize("seed", range(4))
def test_a_segment_is_merged_only_where_that_is_faster(seed: int) -> None:
    draws, length = torch.Generator().manual_seed(seed), 5
    times = {
        (i, j): float(torch.rand((), generator=draws)) * (j - i) ** 1.5
        for i in range(length)
        for j in range(i + 1, length + 1)
    }

    def parts(start: int, stop: int) -> Iterator[list[tuple[int, int]]]:
        if start == stop:
            yield []
        for middle in range(start + 1, stop + 1):
            yield from ([(start, middle), *rest] for rest in parts(middle, stop))

    for (start, stop), (time, merged) in fastest(times).items():
        assert time == pytest.approx(min(sum(times[p] for p in split) for split in parts(start, stop)))
        assert sum(times[part] for part in merged) == pytest.approx(time)
