"""Choosing sizes within a tier's limits, against a search of every candidate."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from diastole.models.cost import Cost
from diastole.models.errors import SpecError
from diastole.models.methods.bases.budgets import best, ratios, tier_costs, within
from diastole.models.methods.registry import cost_of, make_method
from diastole.models.methods.widths.width import spec_of, width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import narrowed
from diastole.models.spec import SubModelSpec
from diastole.models.training import TrainConfig

CNN = ModelConfig("cnn", (1, 16, 16), classes=4, widths=(8, 24), group=4)
RESNET = ModelConfig("resnet", (3, 8, 8), classes=4, widths=(8, 16), blocks=(2, 1), group=2)
TRAINING = TrainConfig(batch_size=4)


def sized(stage: int, ratio: int) -> SubModelSpec:
    return SubModelSpec("any", f"{stage} stages {ratio}", (stage, ratio))


def cost(macs: int, size: int, memory: int) -> Cost:
    return Cost(1, 1, macs, memory, size, size, 1)


@pytest.mark.parametrize("seed", range(200))
def test_the_best_size_is_that_of_a_search_of_all(seed: int) -> None:
    draws = random.Random(seed)
    costs: dict[SubModelSpec, Cost] = {}
    families = []
    for stage in range(1, draws.randint(2, 4)):
        family = [sized(stage, ratio) for ratio in range(1, draws.randint(2, 9))]
        rising = [sorted(draws.sample(range(100), len(family))) for _ in range(3)]
        costs |= {spec: cost(*(column[k] for column in rising)) for k, spec in enumerate(family)}
        families.append(family)
    limit = cost(*(draws.randint(0, 100) for _ in range(3)))
    expected = None
    for wish in ("mbp", "mb", "p"):
        fitting = [
            spec
            for spec, price in costs.items()
            if ("m" not in wish or price.training_macs <= limit.training_macs)
            and ("b" not in wish or price.bytes_down <= limit.bytes_down)
            and ("p" not in wish or price.memory <= limit.memory)
        ]
        if fitting and expected is None:
            expected = max(costs[spec].training_macs for spec in fitting)
    if expected is None:
        expected = min(price.training_macs for price in costs.values())
    assert costs[best(families, costs.__getitem__, limit)].training_macs == expected


def test_value_chooses_among_the_last_sizes_that_fit() -> None:
    narrow, wide, deep = sized(1, 2), sized(1, 4), sized(2, 2)
    costs = {narrow: cost(1, 1, 1), wide: cost(3, 3, 3), deep: cost(2, 2, 2)}
    families, price = [[narrow, wide], [deep]], costs.__getitem__
    assert best(families, price, cost(3, 3, 3)) == wide
    assert best(families, price, cost(3, 3, 3), lambda spec: spec.options[0]) == deep
    assert best(families, price, cost(1, 1, 1), lambda spec: spec.options[0]) == narrow


@pytest.mark.parametrize("model", [CNN, RESNET], ids=["cnn", "resnet"])
def test_each_ratio_is_another_shape_and_no_shape_is_missing(model: ModelConfig) -> None:
    found = ratios(model)
    shapes = [narrowed(model, ratio).widths for ratio in found]
    assert found == sorted(found)
    assert found[-1] == 1.0
    assert len(set(shapes)) == len(shapes)
    assert {shape[0] for shape in shapes} == set(range(model.group, model.widths[0] + 1, model.group))
    for smaller, larger in pairwise(found):
        less, more = (cost_of(model, spec_of(ratio), TRAINING) for ratio in (smaller, larger))
        assert within(less, more)
        assert not within(more, less)


def test_a_ratio_is_the_simplest_fraction_of_its_shape() -> None:
    assert {0.25, 0.5, 1.0} <= set(ratios(RESNET))
    assert ratios(replace(CNN, widths=(8, 8))) == [0.5, 1.0]


def test_limits_are_those_of_plain_training_at_each_width() -> None:
    assert tier_costs(CNN, (1.0, 0.5), TRAINING) == [width_cost(CNN, 0.5, TRAINING), width_cost(CNN, 1.0, TRAINING)]
    with pytest.raises(SpecError, match=r"0\.01"):
        tier_costs(CNN, (1.0, 0.01), TRAINING)


@pytest.mark.parametrize("model", [CNN, RESNET], ids=["cnn", "resnet"])
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scalefl", "nefl", "adaptivefl"])
def test_methods_that_can_be_as_narrow_have_a_size_within_every_limit_of_every_tier(
    kind: str, model: ModelConfig
) -> None:
    widths = (1.0, 0.75, 0.5)
    sizes = make_method(kind, model, widths, TRAINING).offers()
    for width in widths:
        assert any(within(size.cost, width_cost(model, width, TRAINING)) for size in sizes)


@pytest.mark.parametrize("kind", ["depthfl", "inclusivefl", "scalefl", "nefl", "adaptivefl"])
def test_the_largest_tier_can_train_the_whole_model(kind: str) -> None:
    for model in (CNN, RESNET):
        method = make_method(kind, model, (0.5, 1.0), TRAINING)
        costs = {size.spec: size.cost for size in method.offers()}
        assert within(costs[method.whole], width_cost(model, 1.0, TRAINING))
