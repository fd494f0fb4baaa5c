"""Differences between methods, seed by seed, against the plainest way to reckon them."""

import math
import random

import numpy as np
import pytest

from diastole.experiments.comparison.spread import Difference, Spread, differences


def drawn(seed: int, methods: int, seeds: int) -> dict[str, list[float | None]]:
    """Return made-up values, of which some are missing."""
    draws = random.Random(seed)
    names = [f"method-{k}" for k in range(methods)]
    return {m: [None if draws.random() < 0.2 else draws.uniform(-1, 1) for _ in range(seeds)] for m in names}


@pytest.mark.parametrize("metric", ["accuracy", "mae"])
@pytest.mark.parametrize("seed", range(20))
def test_each_method_is_held_against_the_best_of_the_others(metric: str, seed: int) -> None:
    values = drawn(seed, 2 + seed % 4, 1 + seed % 6)
    means = {m: np.mean([v for v in vs if v is not None]) for m, vs in values.items() if any(v is not None for v in vs)}
    found = differences(values, metric)
    assert set(found) == (set(means) if len(means) > 1 else set())
    for method, difference in found.items():
        counts = {m: sum(v is not None for v in values[m]) for m in means if m != method}
        whole = [m for m, count in counts.items() if count == max(counts.values())]
        ranked = sorted(whole, key=lambda m: means[m], reverse=metric == "accuracy")
        assert difference.against == ranked[0]
        pairs = [(a, b) for a, b in zip(values[method], values[ranked[0]], strict=True) if None not in (a, b)]
        gaps = [a - b for a, b in pairs]  # type: ignore[operator]
        assert difference.count == len(gaps)
        if gaps:
            assert difference.mean == pytest.approx(sum(gaps) / len(gaps))
        if len(gaps) > 1:
            mean = sum(gaps) / len(gaps)
            error = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1) / len(gaps))
            assert difference.error == pytest.approx(error)
            gain = mean if metric == "accuracy" else -mean
            assert difference.clear(metric) == (gain > 2 * error)
        else:
            assert difference.error is None
            assert not difference.clear(metric)


def test_a_named_method_is_what_all_others_are_held_against() -> None:
    values: dict[str, list[float | None]] = {"a": [0.1, 0.2], "b": [0.5, 0.9], "c": [0.3, 0.3], "d": [None, None]}
    found = differences(values, "accuracy", "c")
    assert {method: it.against for method, it in found.items()} == {"a": "c", "b": "c"}
    assert found["b"] == Difference("c", pytest.approx(0.4), pytest.approx(0.2), 2)
    assert differences(values, "accuracy", "d") == {}


def test_spread_that_all_seeds_share_does_not_blur_a_difference() -> None:
    other = [0.3, 0.9, 0.5]
    own = [value + 0.01 for value in other]
    difference = differences({"own": own, "other": other}, "accuracy")["own"]
    assert difference.mean == pytest.approx(0.01)
    assert difference.clear("accuracy")
    assert (Spread.of(own).deviation or 0) > 0.3
