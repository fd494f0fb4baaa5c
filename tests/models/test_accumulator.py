import math
import random
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diastole.models.accumulator import (
    BLOCK,
    MAX_DELTA,
    MAX_TOTAL_WEIGHT,
    MOST_EXAMPLES,
    Accumulator,
    check_change,
    scaled,
    unit,
)
from diastole.models.coordinates import Contribution, Patch, Region, Scalars, Tiles, covered, full_region
from diastole.models.errors import StateError
from diastole.models.native import library
from diastole.models.native.fold import PART

Kind = Region | Scalars | Tiles
Coordinates = Callable[[Kind, torch.Size], list[tuple[int, ...]]]


def whole(*values: float) -> Contribution:
    tensor = torch.tensor(values)
    return {"w": Patch(full_region(tensor), tensor)}


def zeros(count: int = 2) -> dict[str, Tensor]:
    return {"w": torch.zeros(count)}


# Exactness

grid = st.integers(-(2**30), 2**30).map(lambda k: k * 2.0**-20)


@st.composite
def updates(draw: st.DrawFn) -> tuple[list[float], list[tuple[list[float], int]]]:
    """Values that float32 holds exactly once rounded, and integer weights, so that every product fits float64."""
    size = draw(st.integers(1, 4))
    values = st.lists(grid, min_size=size, max_size=size)
    return draw(values), draw(st.lists(st.tuples(values, st.integers(1, 2**15)), min_size=1, max_size=6))


@given(updates())
@settings(deadline=None, max_examples=100)
def test_the_mean_is_the_exact_fraction_rounded(case: tuple[list[float], list[tuple[list[float], int]]]) -> None:
    reference, folded = case
    state = {"w": torch.tensor(reference)}
    accumulator = Accumulator(state)
    sums = [Fraction(0)] * len(reference)
    for values, weight in folded:
        contribution = whole(*values)
        accumulator.fold(contribution, weight)
        for k, (value, origin) in enumerate(zip(contribution["w"].values.tolist(), state["w"].tolist(), strict=True)):
            sums[k] += weight * (Fraction(value) - Fraction(origin))
    mean = accumulator.mean()[0]["w"].tolist()
    total = sum(weight for _, weight in folded)
    for got, exact in zip(mean, sums, strict=True):
        # Two roundings: the sum to float64, and the quotient.
        assert abs(Fraction(got) - exact / total) <= abs(exact / total) * Fraction(1, 2**52)


finite = st.floats(-6e4, 6e4, width=32)


@given(st.lists(st.tuples(finite, st.floats(2**-20, 2.0**20)), min_size=1, max_size=20), finite)
@settings(deadline=None, max_examples=100)
def test_any_values_lose_no_more_than_2_to_the_minus_61_a_term(
    folded: list[tuple[float, float]], origin: float
) -> None:
    accumulator = Accumulator({"w": torch.tensor([origin])})
    sums, size, over = Fraction(0), Fraction(0), Fraction(0)
    for value, weight in folded:
        if abs(value - origin) > MAX_DELTA:
            continue
        accumulator.fold(whole(value), weight)
        exact = Fraction(round(weight * 2**20), 2**20)
        term = exact * (Fraction(value) - Fraction(origin))
        sums, size, over = sums + term, size + abs(term), over + exact
    if not over:
        return
    # The difference and the product are float64; then fixed point; then the sum's and the quotient's rounding.
    loss = Fraction(len(folded), 2**61) + size * Fraction(1, 2**51)
    assert abs(Fraction(accumulator.mean()[0]["w"].item()) - sums / over) <= loss / over


def test_cancelling_updates_leave_exactly_what_remains() -> None:
    accumulator = Accumulator(zeros(1))
    for value in (3e4, 2.0**-30, -3e4):
        accumulator.fold(whole(value), 1.0)
    assert accumulator.mean()[0]["w"].item() == 2.0**-30 / 3


@given(st.permutations([(6e4, 0.3), (-6e4, 1e5), (1e-9, 7.7), (1e-30, 2.0**-20), (-0.1, 1 / 3), (0.0, 1e7)]))
@settings(deadline=None, max_examples=30)
def test_the_order_of_arrival_does_not_change_a_bit(order: list[tuple[float, float]]) -> None:
    def mean(items: list[tuple[float, float]]) -> int:
        accumulator = Accumulator(zeros(1))
        for value, weight in items:
            accumulator.fold(whole(value), weight)
        return accumulator.mean()[0]["w"].view(torch.int64).item()

    assert mean(order) == mean(sorted(order))


def test_the_limits_together_do_not_overflow() -> None:
    for sign in (1.0, -1.0):
        accumulator = Accumulator(zeros(1))
        for _ in range(64):
            accumulator.fold(whole(sign * MAX_DELTA), MAX_TOTAL_WEIGHT / 64)
        assert accumulator.mean()[0]["w"].item() == sign * MAX_DELTA


# Weights


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf, -math.inf, 2.0**-22, MAX_TOTAL_WEIGHT * 2])
def test_a_weight_out_of_bounds_is_refused(weight: float) -> None:
    accumulator = Accumulator(zeros())
    with pytest.raises(StateError, match="weight"):
        accumulator.fold(whole(1.0, 1.0), weight)
    assert accumulator.count == 0
    assert not accumulator.mean()[1]["w"].any()


def test_one_update_may_have_all_the_weight_there_is() -> None:
    accumulator = Accumulator(zeros(1))
    accumulator.fold(whole(3.0), MAX_TOTAL_WEIGHT)
    assert accumulator.mean()[0]["w"].item() == 3.0


@given(
    st.lists(st.tuples(st.integers(1, 2**40), finite), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
    finite,
)
@settings(deadline=None, max_examples=100)
def test_any_number_of_examples_is_averaged_exactly_and_in_any_order(
    folded: list[tuple[int, float]], draws: random.Random, origin: float
) -> None:
    by = unit(sum(weight for weight, _ in folded))

    def mean(items: list[tuple[int, float]]) -> float:
        accumulator = Accumulator({"w": torch.tensor([origin])})
        for weight, value in items:
            accumulator.fold(whole(value), scaled(float(weight), by))
        return accumulator.mean()[0]["w"].item()

    folded = [(weight, value) for weight, value in folded if abs(value - origin) <= MAX_DELTA] or [(1, origin)]
    total = sum(weight for weight, _ in folded)
    terms = [weight * (Fraction(value) - Fraction(origin)) for weight, value in folded]
    loss = Fraction(len(folded), 2**61) / Fraction(by) + sum(map(abs, terms)) * Fraction(1, 2**51)
    assert abs(Fraction(mean(folded)) - sum(terms) / total) <= loss / total
    assert mean(folded) == mean(draws.sample(folded, len(folded)))


def test_weights_within_the_limit_stay_as_they_are_and_what_is_none_stays_none() -> None:
    assert unit(0) == unit(1000) == unit(MAX_TOTAL_WEIGHT) == 1
    assert unit(MAX_TOTAL_WEIGHT + 1) == 1 / 4
    assert unit(MOST_EXAMPLES) == 2.0**-20
    assert scaled({"a": 3.0, "b": 2.0**-20}, 0.25) == {"a": 0.75, "b": 2.0**-20}
    for wrong in (0.0, -1.0, math.nan, 2.0**-22):
        with pytest.raises(StateError, match="weight"):
            Accumulator(zeros()).fold(whole(1.0, 1.0), scaled(wrong, 0.5))


def test_the_total_weight_is_limited() -> None:
    accumulator = Accumulator(zeros(1))
    accumulator.fold(whole(1.0), MAX_TOTAL_WEIGHT - 1)
    with pytest.raises(StateError, match="weight"):
        accumulator.fold(whole(1.0), 1 + 2.0**-20)
    accumulator.fold(whole(1.0), 1.0)
    with pytest.raises(StateError, match="weight"):
        accumulator.fold(whole(1.0), 2.0**-20)
    assert accumulator.count == 2


def test_float_weights_count_in_units_of_2_to_the_minus_20() -> None:
    accumulator = Accumulator(zeros(1))
    accumulator.fold(whole(1.0), 1 / 3)
    accumulator.fold(whole(0.0), 0.1)
    one, two = round(2**20 / 3), round(2**20 / 10)
    # Terms of one are exact, so only the quotient rounds.
    assert accumulator.mean()[0]["w"].item() == one / (one + two)


def test_a_weight_for_each_tensor_counts_there_alone() -> None:
    accumulator = Accumulator({"a": torch.zeros(1), "b": torch.zeros(1)})

    def fold(value: float, **weights: float) -> None:
        accumulator.fold({n: Patch(full_region(torch.ones(1)), torch.tensor([value])) for n in weights}, weights)

    fold(1.0, a=3.0, b=1.0)
    fold(5.0, a=1.0, b=1.0)
    assert {name: mean.item() for name, mean in accumulator.mean()[0].items()} == {"a": 2.0, "b": 3.0}
    for wrong in ({"a": 1.0, "b": 0.0}, {"a": MAX_TOTAL_WEIGHT, "b": 1.0}):
        with pytest.raises(StateError, match="weight"):
            fold(9.0, **wrong)
    assert accumulator.count == 2
    # The limit is each tensor's own.
    fold(3.0, b=MAX_TOTAL_WEIGHT - 2)
    assert accumulator.mean()[0]["a"].item() == 2.0


# Refusals change nothing


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, math.nextafter(MAX_DELTA, math.inf), -1e30])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_bad_value_anywhere_is_refused_and_nothing_has_changed(bad: float, where: int) -> None:
    state = {"a": torch.zeros(2, dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)}
    accumulator = Accumulator(state)
    good = {"a": torch.tensor([1.0, 2.0]).double(), "b": torch.tensor(3.0).double()}
    accumulator.fold({name: Patch(full_region(t), t) for name, t in good.items()}, MAX_TOTAL_WEIGHT - 2)
    before = accumulator.mean()
    wrong = {name: tensor.clone() for name, tensor in good.items()}
    if where < 2:
        wrong["a"][where] = bad
    else:
        wrong["b"].fill_(bad)
    with pytest.raises(StateError, match="'a'" if where < 2 else "'b'"):
        accumulator.fold({name: Patch(full_region(t), t) for name, t in wrong.items()}, 1.5)
    for now, then in zip(accumulator.mean(), before, strict=True):
        assert all(torch.equal(now[name], then[name]) for name in state)
    assert accumulator.count == 1
    # The weight that was refused is still to be had.
    accumulator.fold({name: Patch(full_region(t), t) for name, t in good.items()}, 2.0)


def test_the_largest_delta_is_accepted_on_both_sides() -> None:
    accumulator = Accumulator({"w": torch.tensor([1.0, -1.0])})
    accumulator.fold(whole(1.0 + MAX_DELTA, -1.0 - MAX_DELTA), 1.0)
    assert accumulator.mean()[0]["w"].tolist() == [MAX_DELTA, -MAX_DELTA]


@pytest.mark.parametrize("change", [0.0, MAX_DELTA, math.nextafter(MAX_DELTA, math.inf), -1e9, math.nan, -math.inf])
def test_a_change_passes_the_check_if_it_could_be_folded(change: float) -> None:
    reference = {"a": torch.ones(2, dtype=torch.float64), "none": torch.zeros(0), "s": torch.tensor(0.0).double()}
    state = {name: tensor.clone() for name, tensor in reference.items()} | {
        "s": torch.tensor(change, dtype=torch.float64)
    }
    contribution = {name: Patch(full_region(tensor), tensor) for name, tensor in state.items()}
    if abs(change) <= MAX_DELTA:
        check_change(state, reference)
        Accumulator(reference).fold(contribution, 1.0)
        return
    with pytest.raises(StateError, match="'s'"):
        check_change(state, reference)
    with pytest.raises(StateError, match="'s'"):
        Accumulator(reference).fold(contribution, 1.0)


def test_folding_changes_neither_the_reference_nor_the_contribution() -> None:
    state, values = {"w": torch.ones(3, dtype=torch.float64)}, torch.arange(3, dtype=torch.float64)
    accumulator = Accumulator(state)
    accumulator.fold({"w": Patch(full_region(values), values)}, 5.0)
    assert state["w"].tolist() == [1.0, 1.0, 1.0]
    assert values.tolist() == [0.0, 1.0, 2.0]


# Regions


@st.composite
def regions(draw: st.DrawFn) -> tuple[tuple[int, ...], Kind]:
    """A shape of 0 to 4 axes, and coordinates of it.

    They are prefixes, inner slices, permuted indices or a ring's window of each axis, any scalars in any order, or
    several regions whose rows differ.
    """
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    kind = draw(st.sampled_from(["slices", "indices", "scalars", *(["tiles"] if shape else [])]))
    if kind == "scalars":
        size = math.prod(shape)
        places = draw(st.permutations(range(size)))[: draw(st.integers(0, size))]
        return shape, Scalars(torch.tensor(places, dtype=torch.int64))
    if kind == "tiles":
        tiles = list[Region]()
        cuts = sorted(draw(st.lists(st.integers(0, shape[0]), min_size=2, max_size=4)))
        for start, end in pairwise(cuts):
            axes = [
                torch.arange(start, end),
                *(torch.randperm(size)[: draw(st.integers(1, size))] for size in shape[1:]),
            ]
            inner = tuple(slice(0, draw(st.integers(1, size))) for size in shape[1:])
            tiles.append(Region(tuple(axes)) if draw(st.booleans()) else Region((slice(start, end), *inner)))
        return shape, Tiles(tuple(tiles))
    if kind == "slices":
        ends = [sorted((draw(st.integers(0, size)), draw(st.integers(0, size)))) for size in shape]
        return shape, Region(tuple(slice(start, end) for start, end in ends))
    axes = []
    for size in shape:
        count = draw(st.integers(1, size))
        if draw(st.booleans()):
            start = draw(st.integers(0, size - 1))
            axes.append(torch.arange(start, start + count) % size)
        else:
            axes.append(torch.tensor(draw(st.permutations(range(size)))[:count]))
    return shape, Region(tuple(axes))


@given(regions(), st.integers(0, 2**32))
@settings(deadline=None, max_examples=100)
def test_regions_are_what_plain_loops_make_of_them(
    coordinates: Coordinates, case: tuple[tuple[int, ...], Kind], seed: int
) -> None:
    shape, region = case
    draws = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=draws)
    where = coordinates(region, tensor.shape)

    taken = region.take(tensor)
    assert taken.flatten().tolist() == [tensor[index].item() for index in where]
    taken.fill_(9.0)
    values = torch.randn(taken.shape, generator=draws)

    put, added = tensor.clone(), tensor.clone()
    region.put_(put, values)
    region.add_(added, values)
    for index, value in zip(where, values.flatten(), strict=True):
        assert put[index] == value
        assert added[index] == tensor[index] + value
    outside = torch.ones(shape, dtype=torch.bool)
    for index in where:
        outside[index] = False
    assert torch.equal(put[outside], tensor[outside])
    assert torch.equal(added[outside], tensor[outside])
    assert torch.equal(covered({"w": Patch(region, values)}, {"w": tensor})["w"], ~outside)


@given(regions(), st.integers(0, 2**32))
@settings(deadline=None, max_examples=50)
def test_overlapping_regions_average_coordinate_by_coordinate(
    coordinates: Coordinates, case: tuple[tuple[int, ...], Kind], seed: int
) -> None:
    shape, region = case
    draws = torch.Generator().manual_seed(seed)
    state = {"w": torch.randint(-8, 8, shape, generator=draws).float()}
    accumulator = Accumulator(state)
    sums, over = torch.zeros(shape).double(), torch.zeros(shape).double()
    for weight, part in ((2.0, region), (6.0, full_region(state["w"])), (8.0, region)):
        values = torch.randint(-8, 8, part.take(state["w"]).shape, generator=draws).float()
        accumulator.fold({"w": Patch(part, values)}, weight)
        for index, value in zip(coordinates(part, state["w"].shape), values.flatten().tolist(), strict=True):
            sums[index] += weight * (value - state["w"][index].item())
            over[index] += weight
    deltas, masks = accumulator.mean()
    assert torch.equal(deltas["w"], sums / over)
    assert masks["w"].all()


@pytest.mark.parametrize("strided", [False, True])
def test_scalars_are_counted_row_major_whatever_the_memory_layout(strided: bool) -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    if strided:
        tensor = tensor.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    places = Scalars(torch.tensor([23, 5, 6]))
    assert places.take(tensor).tolist() == [23, 5, 6]
    assert places.rows(1, 9).take(tensor).tolist() == [5, 6]
    places.put_(tensor, torch.tensor([-1.0, -2.0, -3.0]))
    places.rows(0, 1).add_(tensor, torch.tensor(0.5))
    assert (tensor[1, 2, 3], tensor[0, 1, 1], tensor[0, 1, 2], tensor.sum()) == (-0.5, -2.0, -3.0, 276 - 34 - 5.5)


def test_many_scalars_are_folded_in_blocks_as_the_region_would_be() -> None:
    draws = torch.Generator().manual_seed(0)
    state = {"w": torch.randn(3 * BLOCK // 1000, 1000, generator=draws)}
    mask = torch.rand(state["w"].shape, generator=draws) < 0.7
    index = mask.flatten().nonzero().flatten()
    assert len(index) > 2 * BLOCK
    values = torch.randn(len(index), generator=draws)
    accumulator = Accumulator(state)
    accumulator.fold({"w": Patch(Scalars(index), values)}, 3.0)
    deltas, masks = accumulator.mean()
    assert torch.equal(masks["w"], mask)
    assert torch.equal(deltas["w"][mask].float(), (values.double() - state["w"][mask].double()).float())


def test_a_tensor_that_is_absent_is_not_covered() -> None:
    accumulator = Accumulator({"a": torch.zeros(2), "s": torch.tensor(1.0), "none": torch.zeros(0)})
    accumulator.fold({"s": Patch(Region(()), torch.tensor(4.0))}, 2.0)
    deltas, masks = accumulator.mean()
    assert deltas["s"].item() == 3.0
    assert masks["s"].item() is True
    assert deltas["a"].tolist() == [0.0, 0.0]
    assert not masks["a"].any()
    assert deltas["none"].shape == (0,)


def test_nothing_folded_is_nothing_covered() -> None:
    accumulator = Accumulator(zeros())
    deltas, masks = accumulator.mean()
    assert accumulator.count == 0
    assert deltas["w"].dtype == torch.float64
    assert deltas["w"].tolist() == [0.0, 0.0]
    assert not masks["w"].any()


def test_count_counts_what_was_folded() -> None:
    accumulator = Accumulator(zeros())
    for _ in range(3):
        accumulator.fold(whole(1.0, 2.0), 1.0)
    assert accumulator.count == 3


# The loop in C++


@pytest.fixture(scope="module")
def needs_library() -> None:
    if library.library(PART) is None:
        pytest.skip(str(library.absence(PART)))


@st.composite
def folds(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]], int, float, float]:
    """Return a shape, a block of it, and a seed, a spread of values and a weight."""
    shape = draw(st.lists(st.integers(1, 9), max_size=4))
    block = [
        draw(st.integers(0, size - 1).flatmap(lambda a, n=size: st.tuples(st.just(a), st.integers(a + 1, n))))
        for size in shape
    ]
    return (
        shape,
        block,
        draw(st.integers(0, 2**31)),
        draw(st.sampled_from([1e-12, 1e-3, 1.0, 3e4])),
        draw(st.floats(1e-6, 2.0**24)),
    )


@given(folds())
@settings(deadline=None, max_examples=200)
@pytest.mark.usefixtures("needs_library")
def test_the_loop_in_cpp_makes_the_same_bits(case: tuple[list[int], list[tuple[int, int]], int, float, float]) -> None:
    shape, block, seed, spread, weight = case
    draws = torch.Generator().manual_seed(seed)
    state = {"w": torch.randn(shape, generator=draws)}
    region = Region(tuple(slice(start, stop) for start, stop in block))
    values = (torch.randn(region.view(state["w"]).shape, generator=draws) * spread).clamp(-6e4, 6e4)
    sums = []
    for native in (True, False):
        accumulator = Accumulator(state)
        with pytest.MonkeyPatch.context() as patched:
            if not native:
                patched.setattr(library, "loaded", lambda part: None)
            for _ in range(2):
                accumulator.fold({"w": Patch(region, values)}, weight)
        sums.append((accumulator._coarse["w"], accumulator._fine["w"]))
    assert torch.equal(sums[0][0], sums[1][0])
    assert torch.equal(sums[0][1], sums[1][1])


@pytest.mark.usefixtures("needs_library")
def test_terms_too_large_for_the_loop_in_cpp_are_folded_all_the_same() -> None:
    accumulator = Accumulator(zeros(3))
    accumulator.fold(whole(2.0**15, -(2.0**16), 0.5), 2.0**25)
    assert accumulator.mean()[0]["w"].tolist() == [2.0**15, -(2.0**16), 0.5]


@pytest.mark.usefixtures("needs_library")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 7e4, -1e30])
@pytest.mark.parametrize("at", [0, 17, 36])
def test_what_the_loop_in_cpp_had_added_is_taken_away_when_a_later_value_is_refused(bad: float, at: int) -> None:
    draws = torch.Generator().manual_seed(at)
    state = {name: torch.randn(37, generator=draws) for name in ("a", "b", "c")}
    accumulator = Accumulator(state)

    def fold(changed: dict[str, Tensor]) -> None:
        accumulator.fold({name: Patch(full_region(tensor), tensor) for name, tensor in changed.items()}, 5.0)

    good = {name: tensor + 0.01 for name, tensor in state.items()}
    fold(good)
    before = [tensor.clone() for sums in (accumulator._coarse, accumulator._fine) for tensor in sums.values()]
    wrong = {name: tensor.clone() for name, tensor in good.items()}
    wrong["b"][at] = bad
    with pytest.raises(StateError, match="'b'"):
        fold(wrong)
    after = [tensor for sums in (accumulator._coarse, accumulator._fine) for tensor in sums.values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
