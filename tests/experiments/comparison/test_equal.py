"""Reading runs where they have spent as much, against the plainest way to do it, on made-up runs."""

import json
import random
from dataclasses import replace

import pytest
from made_up import comparison, result

from diastole.cli.compare_tables import markdown
from diastole.experiments.comparison.comparison import Comparison
from diastole.experiments.comparison.equal import TOLERANCE, By, Equal, Reading, horizon, read, spent
from diastole.experiments.comparison.picture import figure
from diastole.experiments.comparison.runs import RoundResult, RunResult, TierResult
from diastole.experiments.report.figures import rendered


def drawn(seed: int) -> RunResult:
    """Return a made-up run whose rounds cost unequally and are not all evaluated; a tier may not be served."""
    draws = random.Random(seed)
    rounds, served = [], ["large", "small"][: 1 + seed % 2]
    for number in range(1, draws.randint(2, 12)):
        tested = draws.random() < 0.6
        score = {"accuracy": draws.random(), "loss": draws.random()}
        tiers = {t: {"accuracy": draws.random(), "loss": draws.random()} for t in served} if tested else {}
        costs = draws.randint(0, 50), draws.randint(500, 900)
        rounds.append(RoundResult(number, score if tested else None, tiers, *costs, 1.0, 1.0, 0.5))
    rows = tuple(TierResult(t, 1, t if t in served else "", {}, 7, 1.0, 2.0) for t in ("large", "small"))
    return RunResult("width", 0, ("accuracy",), "data", tuple(rounds), rows)


@pytest.mark.parametrize("by", ["bytes", "macs"])
@pytest.mark.parametrize("seed", range(40))
def test_a_run_is_read_at_its_last_evaluated_round_within_the_allowance(by: By, seed: int) -> None:
    run = drawn(seed)
    total = spent(run, by)
    for allowance in (1, total // 2 + 1, total, 2 * total + 1):
        found = read(run, by, allowance)
        best, used = None, 0
        for closed in run.rounds:
            used += getattr(closed, by)
            if used > allowance * (1 + TOLERANCE):
                break
            if closed.scores is not None:
                best = closed.round, used
        left_out = best is None or best[1] + total / len(run.rounds) < allowance * (1 - TOLERANCE)
        if left_out or not total:
            assert found is None
            continue
        assert best is not None
        assert found is not None
        assert (found.count, found.share) == (best[0], best[1] / allowance)
        figures, closed = found.figures(), run.rounds[best[0] - 1]
        assert (figures["rounds"], figures[by]) == best
        assert figures["accuracy"] == closed.scores["accuracy"]  # type: ignore[index]
        tiers = [closed.tiers[tier.tier]["accuracy"] for tier in run.tiers if tier.size]
        served = len(tiers) == len(run.tiers)
        assert figures["mean_tier_accuracy"] == (pytest.approx(sum(tiers) / len(tiers)) if served else None)
        assert figures["worst_tier_accuracy"] == (min(tiers) if served else None)
        assert figures["accuracy/large"] == closed.tiers["large"]["accuracy"]


@pytest.mark.parametrize("seed", range(20))
def test_a_horizon_is_the_most_rounds_of_mean_cost_that_fit(seed: int) -> None:
    run = drawn(seed)
    mean = spent(run, "macs") / len(run.rounds)
    for allowance in (1, 700, 12_345, spent(run, "macs")):
        count = horizon(run, "macs", allowance)
        assert count * mean <= allowance * (1 + 1e-12) < (count + 1) * mean * (1 + 1e-12)
    assert horizon(run, "macs", spent(run, "macs")) == len(run.rounds)
    assert horizon(result([0.5], macs=0), "macs", 5) == 0
    assert read(result([0.5], macs=0), "macs", 5) is None


def test_whole_runs_have_the_figures_that_the_last_round_has() -> None:
    run = result([0.3, 0.6], {"large": 0.9, "small": 0.5})
    figures = run.figures()
    scored = run.scored(run.rounds[-1])
    assert scored == {name: figures[name] for name in scored}
    assert {"accuracy", "loss", "accuracy/small", "mean_tier_accuracy", "worst_tier_accuracy"} <= set(scored)


def made_equal(by: By) -> Comparison:
    """Return a comparison in which one method needs half as much as another, and a third nothing."""
    allowance = 400 if by == "bytes" else 4000
    costly = [result([0.2, 0.4], method="width", seed=s, moved=200, macs=2000) for s in (0, 1)]
    cheap = [result([0.3, 0.5], method="splitmix", seed=s) for s in (0, 1)]
    more = [result([0.3, 0.5, 0.7, 0.8], method="splitmix", seed=s) for s in (0, 1)]
    found = comparison({"width": costly, "splitmix": cheap, "proxy": [result([0.1], {}, moved=0, macs=0)] * 2})
    readings: dict[str, list[Reading | None]] = {
        "width": [read(run, by, allowance) for run in costly],
        "splitmix": [read(run, by, allowance) for run in more],
        "proxy": [None, None],
    }
    return replace(found, equal=(Equal(by, "width", [allowance, allowance], readings),))


def test_tables_have_what_was_read() -> None:
    found = made_equal("bytes")
    text = markdown(found)
    table = text.split("as many bytes as width in 5 rounds")[1].split("\n\n")[1]
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in table.splitlines()}
    assert [rows["splitmix"][k] for k in (0, -2, -1)] == ["**80.0%**", "4", "100.0%"]
    assert [rows["width"][k] for k in (0, -2, -1)] == ["40.0%", "2", "100.0%"]
    assert set(rows["proxy"]) == {"-"}
    document = json.loads(json.dumps(found.as_dict()))["equal"][0]
    assert document["summary"]["splitmix"]["accuracy"]["mean"] == pytest.approx(0.8)
    assert document["differences"]["splitmix"]["accuracy"] == {
        "against": "width",
        "mean": pytest.approx(0.4),
        "error": 0.0,
        "count": 2,
    }
    assert [len(it["run"]["rounds"]) for it in document["readings"]["splitmix"]] == [4, 4]


@pytest.mark.slow
def test_a_picture_draws_what_was_read() -> None:
    found = made_equal("macs")
    assert rendered(figure(found)).startswith(b"\x89PNG")
    drawn = figure(found)
    rendered(drawn)
    # A lead goes from the end of each line to its label.
    for axes in drawn.axes[:3]:
        ends = {line.get_label(): line.get_xydata()[-1] for line in axes.lines if not line.get_label().startswith("_")}
        leads = [line for line in axes.lines if line.get_linestyle() == ":" and line.get_transform() == axes.transAxes]
        places = {
            tuple(axes.transData.inverted().transform(axes.transAxes.transform(it.get_xydata()[0]))) for it in leads
        }
        for method in ("width", "splitmix"):
            assert any(place == pytest.approx(ends[method]) for place in places), (axes.get_xlabel(), method)
    (work,) = [axes for axes in drawn.axes if "GMAC" in axes.get_xlabel()]
    assert [len(line.get_xdata()) for line in work.lines[:2]] == [2, 4]
