"""AdaptiveFL: what its contract does not say."""

from collections import Counter

import pytest
import torch

from diastole.models.cost import Cost
from diastole.models.errors import SpecError
from diastole.models.method import Size
from diastole.models.methods.bases.budgets import within
from diastole.models.methods.registry import make_method
from diastole.models.methods.widths import adaptivefl
from diastole.models.methods.widths.adaptivefl import AdaptiveFLConfig, AdaptiveFLMethod, likelihood, spec_of, starts
from diastole.models.methods.widths.width import width_cost
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.training import TrainConfig

FOUR = ModelConfig("resnet", (3, 8, 8), classes=3, widths=(10, 10, 20, 20), blocks=(1, 1, 1, 1), group=2)
TRAINING = TrainConfig(batch_size=4)


def sized(stages: int) -> ModelConfig:
    return ModelConfig("cnn", (1, 256), classes=3, widths=(4,) * stages, group=2)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [(1, [0]), (2, [1]), (3, [1, 2]), (4, [1, 2, 3]), (5, [1, 2, 4]), (8, [2, 4, 6])],
)
def test_the_narrow_part_starts_at_up_to_three_places(stages: int, expected: list[int]) -> None:
    assert starts(sized(stages)) == expected


def test_the_pool_has_seven_sizes_of_these_shapes() -> None:
    method = AdaptiveFLMethod(FOUR, (1.0,), TRAINING)
    shapes = {}
    for size in method.offers():
        module = adaptivefl.build(FOUR, size.spec)
        key = (size.spec.options.width, size.spec.options.start)
        shapes[key] = [stage[0].conv1.out_channels for stage in module.stages]
        assert module.stem.out_channels == shapes[key][0]
    assert shapes == {
        (0.4, 1): [10, 4, 8, 8],
        (0.4, 2): [10, 10, 8, 8],
        (0.4, 3): [10, 10, 20, 8],
        (0.66, 1): [10, 6, 14, 14],
        (0.66, 2): [10, 10, 14, 14],
        (0.66, 3): [10, 10, 20, 14],
        (1.0, 0): [10, 10, 20, 20],
    }
    assert method.whole == spec_of()


def test_a_tier_too_weak_for_the_pool_gets_a_plain_slice() -> None:
    method = AdaptiveFLMethod(FOUR, (1.0, 0.2), TRAINING)
    extra = [size for size in method.offers() if size.spec.options.start == 0 and size.spec.options.width < 1]
    assert [size.spec.options.width for size in extra] == [0.2]
    assert extra[0].cost == width_cost(FOUR, 0.2, TRAINING)
    assert len(method.offers()) == 8
    exported = [size for size in method.offers() if size.exported]
    assert len(exported) == 2
    for width, size in zip((0.2, 1.0), exported, strict=True):
        assert within(size.cost, width_cost(FOUR, width, TRAINING))


def test_widths_are_an_option() -> None:
    method = AdaptiveFLMethod(FOUR, (1.0,), TRAINING, AdaptiveFLConfig(widths=(0.6,)))
    assert {size.spec.options.width for size in method.offers()} == {0.6, 1.0}
    for widths in ([], [1.5], [0.0]):
        with pytest.raises(SpecError, match="widths"):
            make_method("adaptivefl", FOUR, (1.0,), TRAINING, {"widths": widths})


def test_likelihood_is_successes_up_to_a_half_over_the_root_of_the_times_given() -> None:
    given, successes = [0, 3, 8, 0], [1.0, 0.5, 0.8, 0.2]
    rewards = [min(s, 0.5) / (1 + g) ** 0.5 for g, s in zip(given, successes, strict=True)]
    found = likelihood(torch.tensor(given), torch.tensor(successes))
    assert found.tolist() == pytest.approx([reward / sum(rewards) for reward in rewards])


SIZES = [
    Size(spec_of(width, start), Cost(1, 1, 1, 1, 1, 1, 1))
    for width, start in ((0.4, 1), (0.66, 1), (0.4, 2), (0.66, 2), (0.4, 3), (0.66, 3), (1.0, 0))
]


def test_sizes_are_given_by_turns() -> None:
    method = AdaptiveFLMethod(FOUR, (1.0,), TRAINING)
    given = Counter(method.assign({"a": SIZES[:4]}, Moment(seed=number))["a"].spec for number in range(200))
    assert set(given) == {size.spec for size in SIZES[:4]}
    assert all(30 <= count <= 70 for count in given.values())


def test_a_size_that_seldom_fits_is_given_seldom_even_when_it_does() -> None:
    method, rare = AdaptiveFLMethod(FOUR, (1.0,), TRAINING), 0
    place = {size.spec: k for k, size in enumerate(method.offers())}
    fitted = torch.zeros(8, dtype=torch.int64)
    fitted[place[SIZES[0].spec]], fitted[place[SIZES[1].spec]], fitted[-1] = 99, 4, 99
    for trial in range(200):
        method.resume({}, None, Moment(), {"given/a": torch.zeros(7, dtype=torch.int64), "fitted/a": fitted})
        rare += method.assign({"a": SIZES[:2]}, Moment(1, 1, trial))["a"] == SIZES[1]
    # 0.05 against 0.5: one in eleven.
    assert 6 <= rare <= 36


def test_the_tables_go_on_after_a_resume() -> None:
    first = AdaptiveFLMethod(FOUR, (1.0,), TRAINING)
    state = first.initial(0)
    first.prepare(state, None, Moment())
    fits = {"a": SIZES, "device/b": SIZES[:2]}
    for number in range(5):
        first.assign(fits, Moment(number, 9, number))
    memory = {name: row.clone() for name, row in first.memory().items()}
    second = AdaptiveFLMethod(FOUR, (1.0,), TRAINING)
    second.resume(state, None, Moment(6), memory)
    assert sum(int(row.sum()) for name, row in memory.items() if name.startswith("given/")) == 10
    for number in range(5, 9):
        assert second.assign(fits, Moment(number, 9, number)) == first.assign(fits, Moment(number, 9, number))
    ours, theirs = first.memory(), second.memory()
    assert ours.keys() == theirs.keys() == {f"{t}/{d}" for t in ("given", "fitted") for d in ("a", "device/b")}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
