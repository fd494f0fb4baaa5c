import itertools
from collections import Counter

import pytest
import torch

from diastole.models.moment import Moment
from diastole.models.seeds import generator
from diastole.server.sampler import Candidate, Uniform


def names(count: int) -> list[str]:
    return [f"d{k:02}" for k in range(count)]


def drawn(cohort: int | None, number: int, count: int, seed: int = 1) -> list[str]:
    return list(Uniform(seed, cohort).sample(names(count), Moment(number, 900, seed=99), Candidate))


@pytest.mark.parametrize("cohort", [None, 6, 7])
def test_without_a_smaller_cohort_everyone_takes_part(cohort: int | None) -> None:
    assert drawn(cohort, 1, 6) == names(6)


def test_nobody_is_drawn_of_nobody() -> None:
    assert drawn(None, 1, 0) == drawn(3, 1, 0) == []


@pytest.mark.parametrize(("seed", "cohort", "count"), [(1, 3, 9), (5, 1, 2), (0, 19, 20)])
def test_the_draw_is_the_first_of_a_permutation_seeded_by_run_and_round(seed: int, cohort: int, count: int) -> None:
    for number in range(1, 20):
        order = torch.randperm(count, generator=generator(seed, number, "cohort")).tolist()
        assert drawn(cohort, number, count, seed) == [names(count)[place] for place in sorted(order[:cohort])]


def test_the_draws_of_a_run_stay_what_they_were() -> None:
    # Written down once: experiments that were run before must come out the same.
    assert [drawn(2, number, 8, seed=4) for number in (1, 2, 3)] == [["d03", "d05"], ["d00", "d06"], ["d01", "d03"]]


def test_the_draw_depends_on_seed_round_and_devices_and_nothing_else() -> None:
    first = [drawn(5, number, 20) for number in range(8)]
    torch.manual_seed(3)
    assert [drawn(5, number, 20) for number in reversed(range(8))][::-1] == first
    assert len({tuple(found) for found in first}) > 4
    assert [drawn(5, number, 20, seed=2) for number in range(8)] != first


def test_every_device_is_drawn_about_as_often() -> None:
    counts = Counter(itertools.chain.from_iterable(drawn(3, number, 10) for number in range(500)))
    # 150 expected each, with a standard deviation of about 10; the draws are the same in every run.
    assert len(counts) == 10
    assert all(110 <= count <= 190 for count in counts.values())


def test_every_pair_is_drawn_about_as_often() -> None:
    pairs = Counter(tuple(drawn(2, number, 5)) for number in range(1000))
    # 100 expected each, with a standard deviation below 10.
    assert len(pairs) == 10
    assert all(60 <= count <= 140 for count in pairs.values())
