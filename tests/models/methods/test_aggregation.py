"""What the server makes of the contributions of one method of each kind: slices, learned maps, a supernet."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from contract import Case, case_of, same
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.models.accumulator import Accumulator
from diastole.models.coordinates import Contribution, covered
from diastole.server.optimisers import ServerOptimiser, ServerOptimiserConfig

CASES = [("width", "cnn-1d"), ("conv", "cnn-2d"), ("ofa", "cnn-1d")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, separable) -> Case:
    return case_of(*request.param, separable)


def test_coverage_is_that_of_plain_loops(case: Case, densify) -> None:
    for size in case.sizes:
        contribution = case.method.dilate(case.trained(size.spec, 1), size.spec)
        masks, dense = covered(contribution, case.state), densify(contribution, case.state)
        for name, mask in masks.items():
            assert np.array_equal(mask.numpy(), ~np.isnan(dense[name]))


device = st.tuples(
    st.integers(0, 4), st.floats(2**-20, 500), st.sampled_from([1e-6, 0.1, 100.0]), st.integers(0, 2**32)
)


@given(cohort=st.lists(device, min_size=1, max_size=5))
@settings(deadline=None, max_examples=8)
def test_the_aggregate_is_the_mean_over_those_who_cover_each_coordinate(case: Case, densify, cohort) -> None:
    accumulator, dense, weights = Accumulator(case.state), [], []
    for size, weight, scale, seed in cohort:
        spec = case.sizes[size % len(case.sizes)].spec
        contribution = case.method.dilate(case.trained(spec, seed, scale), spec)
        accumulator.fold(contribution, weight)
        dense.append(densify(contribution, case.state))
        weights.append(round(weight * 2**20) / 2**20)
    deltas, masks = accumulator.mean()
    for name, tensor in case.state.items():
        reference = tensor.double().numpy()
        for index in np.ndindex(*tensor.shape):
            total, size, over = 0.0, 0.0, 0.0
            for values, weight in zip(dense, weights, strict=True):
                if not math.isnan(values[name][index]):
                    term = weight * (values[name][index] - reference[index])
                    total, size, over = total + term, size + abs(term), over + weight
            assert bool(masks[name][index]) == (over > 0)
            mean = total / over if over else 0.0
            # Each term loses at most 2^-61 in fixed point, and each float64 operation half a unit in the last place.
            loss = (len(cohort) * 2**-61 + (len(cohort) + 2) * 2**-52 * size) / over if over else 0.0
            assert abs(deltas[name][index].item() - mean) <= loss


def contributions(case: Case, sizes: Sequence[int]) -> list[Contribution]:
    specs = [case.sizes[size % len(case.sizes)].spec for size in sizes]
    return [case.method.dilate(case.trained(spec, k), spec) for k, spec in enumerate(specs)]


def test_the_aggregate_has_the_same_bits_for_every_order_of_arrival(case: Case) -> None:
    weighted = list(zip(contributions(case, (0, 2, 1, 0)), (3.0, 0.1, 17.7, 1e5), strict=True))
    results = []
    for order in itertools.permutations(weighted):
        accumulator = Accumulator(case.state)
        for contribution, weight in order:
            accumulator.fold(contribution, weight)
        results.append(accumulator.mean())
    for deltas, masks in results[1:]:
        assert same(deltas, results[0][0])
        assert same(masks, results[0][1])


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
def test_a_coordinate_that_nobody_covers_keeps_its_value_to_the_bit(case: Case, name: str) -> None:
    optimiser = ServerOptimiser(ServerOptimiserConfig(name=name, learning_rate=0.5))
    # The first step moves everything, so that the moments of what is then left alone are not zero.
    state = case.state
    for sizes in ((2, 0), (0,), (0, 0)):
        accumulator = Accumulator(case.state)
        for contribution in contributions(case, sizes):
            accumulator.fold(contribution, 2.0)
        deltas, masks = accumulator.mean()
        after = optimiser.step(state, deltas, masks)
        for tensor, old, mask in zip(after.values(), state.values(), masks.values(), strict=True):
            assert torch.equal(tensor.view(torch.int32)[~mask], old.view(torch.int32)[~mask])
            assert not mask.any() or (tensor[mask] != old[mask]).any()
        state = after
    if case.row.indexed:
        assert not all(bool(mask.all()) for mask in masks.values())
