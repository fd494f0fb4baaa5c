"""What runs come to side by side, on made-up runs."""

import json
import math
import random

import numpy as np
import pytest
from made_up import comparison, result

from diastole.cli.compare_tables import markdown
from diastole.experiments.comparison.comparison import Comparison
from diastole.experiments.comparison.picture import figure
from diastole.experiments.comparison.runs import RUN_RESULT, together
from diastole.experiments.comparison.spread import Spread
from diastole.experiments.report.figures import rendered
from diastole.experiments.report.picture import time_unit


def test_spread_is_that_of_numpy_over_the_values_there_are() -> None:
    draws = random.Random(0)
    for count in range(2, 7):
        values = [draws.uniform(0, 1) for _ in range(count)]
        spread = Spread.of([*values, None])
        assert spread.count == count
        assert spread.mean == pytest.approx(np.mean(values))
        assert spread.deviation == pytest.approx(np.std(values, ddof=1))
    assert Spread.of([0.5]) == Spread(0.5, None, 1)
    assert Spread.of([None, None]) == Spread(None, None, 0)


def test_the_worst_tier_is_none_if_one_is_not_served() -> None:
    assert result([0.8], {"large": 0.9, "small": 0.5}).worst == 0.5
    assert result([0.8], {"large": 0.9, "small": None}).worst is None
    assert result([0.8], {}).worst is None


def test_the_mean_of_the_tiers_is_none_if_one_is_not_served() -> None:
    assert result([0.8], {"large": 0.9, "small": 0.4}).mean == pytest.approx(0.65)
    assert result([0.8], {"large": 0.9, "small": None}).mean is None
    assert result([0.8], {}).mean is None
    figures = result([0.8], {"large": 0.9, "small": None}).figures()
    assert figures["served_devices"] == 1
    assert figures["accuracy/small"] is figures["memory/small"] is None


def test_a_target_is_reached_by_the_first_evaluated_round_that_has_it() -> None:
    run = result([0.5, None, 0.7, 0.6, 0.9])
    assert run.figures(0.65)["rounds_to_target"] == 3
    assert run.figures(0.65)["seconds_to_target"] == 10 + 20 + 30
    assert run.figures(0.95)["rounds_to_target"] is run.figures(0.95)["seconds_to_target"] is None
    assert "seconds_to_target" not in run.figures()


def test_totals_are_of_all_devices_and_means_of_one() -> None:
    figures = result([0.5, 0.6]).figures()
    assert (figures["bytes"], figures["bytes_per_device"]) == (200, 50)
    assert (figures["macs"], figures["macs_per_device"]) == (2000, 500)
    assert (figures["wall_seconds"], figures["server_seconds"]) == (4, 1)


def test_only_devices_take_virtual_time() -> None:
    assert result([0.5, 0.6]).figures(virtual=True)["virtual_seconds"] == 30
    alone = result([0.5, 0.6], {}, moved=0).figures(0.5, virtual=True)
    assert alone["virtual_seconds"] is alone["seconds_to_target"] is None
    assert alone["rounds_to_target"] == 1


def test_dedicated_federations_are_one_run() -> None:
    small = result([0.4, 0.5], {"large": None, "small": 0.6}, moved=1, macs=10)
    large = result([0.7, 0.8], {"large": 0.9, "small": None}, moved=5, macs=70)
    run = together([small, large])
    assert [closed.scores for closed in run.rounds] == [closed.scores for closed in large.rounds]
    assert [{t: s["accuracy"] for t, s in closed.tiers.items()} for closed in run.rounds] == [
        {"large": 0.9, "small": 0.6}
    ] * 2
    assert [(closed.bytes, closed.macs, closed.wall_seconds) for closed in run.rounds] == [(6, 80, 4.0)] * 2
    assert [closed.seconds for closed in run.rounds] == [closed.seconds for closed in large.rounds]
    assert [(tier.size, tier.scores["accuracy"]) for tier in run.tiers] == [
        ("size of large", 0.9),
        ("size of small", 0.6),
    ]
    assert run.worst == 0.6
    assert together([large]) == large


def test_a_dedicated_federation_that_ended_early_stays_as_it_is_and_spends_nothing() -> None:
    small = result([0.4], {"large": None, "small": 0.6}, moved=1, macs=10)
    large = result([0.7, 0.8], {"large": 0.9, "small": None}, moved=5, macs=70)
    run = together([small, large])
    assert [closed.tiers["small"]["accuracy"] for closed in run.rounds] == [0.6, 0.6]
    assert [(closed.round, closed.bytes, closed.macs) for closed in run.rounds] == [(1, 6, 80), (2, 5, 70)]


def test_where_lower_is_better_the_worst_is_the_highest_and_targets_are_reached_from_above() -> None:
    run = result([9.0, None, 4.0, 5.0, 2.0], {"large": 3.0, "small": 8.0}, metric="mae")
    assert (run.worst, run.score) == (8.0, 2.0)
    assert run.figures(4.0)["rounds_to_target"] == run.figures(4.5)["rounds_to_target"] == 3
    assert run.figures(1.9)["rounds_to_target"] is None
    figures = run.figures()
    assert (figures["mae"], figures["worst_tier_mae"], figures["mae/small"], figures["loss/small"]) == (2, 8, 8, -7)


@pytest.mark.parametrize(("metric", "ranking"), [("accuracy", ["b", "c", "a"]), ("mae", ["a", "c", "b"])])
def test_the_best_is_ranked_first_and_bold_if_its_difference_is_clear(metric: str, ranking: list[str]) -> None:
    finals, shown = {"a": 0.1, "b": 0.8, "c": 0.5}, "**0.1500" if metric == "mae" else "**85.0"

    def found(*steps: dict[str, float]) -> Comparison:
        return comparison(
            {
                m: [result([s + step[m]], {}, method=m, metric=metric, seed=k) for k, step in enumerate(steps)]
                for m, s in finals.items()
            }
            | {"d": [result([], metric=metric)] * len(steps)}
        )

    alike, other = dict.fromkeys(finals, 0.1), dict.fromkeys(finals, 0.0)
    # The seeds differ, the methods' differences do not.
    clear = found(alike, other)
    assert clear.ranking == clear.as_dict()["ranking"] == ranking
    text = markdown(clear)
    assert text.count(shown) == text.count("**") // 2 - len([1 for line in text.splitlines() if line[:2] == "**"]) == 1
    # One seed, or differences that vary as much as they are large, make no type bold.
    for unclear in (found(other), found({"a": 0.5, "b": -0.5, "c": 0.0}, other)):
        rows = [line for line in markdown(unclear).splitlines() if line.startswith("|")]
        assert rows
        assert not any("**" in line for line in rows)


def test_what_is_not_finite_is_null_in_json_and_in_no_mean() -> None:
    found = comparison({"a": [result([math.inf]), result([0.5]), result([math.nan])]})
    assert found.summary()["a"]["accuracy"].mean == 0.5
    document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert [run["rounds"][0]["accuracy"] for run in document["runs"]["a"]] == [None, 0.5, None]


def test_a_tier_that_no_dedicated_federation_fits_is_not_served() -> None:
    nothing = {"large": None, "small": None}
    run = together([result([0.4], nothing), result([0.7], {"large": 0.9, "small": None})])
    assert [tier.scores.get("accuracy") for tier in run.tiers] == [0.9, None]


def test_results_survive_json() -> None:
    run = result([0.5, None], {"large": 0.9, "small": None})
    assert RUN_RESULT.validate_python(json.loads(json.dumps(RUN_RESULT.dump_python(run, mode="json")))) == run
    document = comparison({"width": [run, run]}, target=0.4).as_dict()
    assert json.loads(json.dumps(document))["summary"]["width"]["accuracy"] == {
        "mean": None,
        "deviation": None,
        "count": 0,
    }
    assert document["summary"]["width"]["rounds_to_target"]["mean"] == 1


@pytest.mark.slow
def test_every_comparison_has_a_picture() -> None:
    draws = random.Random(1)
    methods = [f"method-{k}" for k in range(12)] + ["fedavg", "exclusive", "smallest", "dedicated"]
    runs = {m: [result([draws.random() for _ in range(4)], method=m, seed=s) for s in (0, 1)] for m in methods}
    runs["proxy"] = [result([0.5] * 4, {}, method="proxy", seed=s, moved=0, macs=0) for s in (0, 1)]
    early = [result([0.5, 0.6, 0.7]), result([0.4], seed=1), result([math.inf, 3.0], seed=2)]
    odd = {"width": early, "conv": [result([math.pi / 4], method="conv", seed=s) for s in range(3)]}
    for chosen in (runs, {"proxy": runs["proxy"]}, {"width": [result([])]}, odd):
        assert rendered(figure(comparison(chosen))).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("seconds", "unit"), [(0, "seconds"), (119, "seconds"), (120, "minutes"), (7_200, "hours"), (172_800, "days")]
)
def test_an_axis_of_time_reaches_at_least_two_of_its_units(seconds: float, unit: str) -> None:
    name, size = time_unit(seconds)
    assert name == unit
    assert seconds < 120 or 2 <= seconds / size < 120
