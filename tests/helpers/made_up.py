"""Made-up runs of a comparison."""

from diastole.experiments.comparison.comparison import Comparison
from diastole.experiments.comparison.runs import RoundResult, RunResult, TierResult

EXPERIMENT = {
    "name": "made up",
    "rounds": {"count": 5},
    "partition": {"kind": "iid"},
    "tiers": {"large": {"devices": 1, "width": 1.0}, "small": {"devices": 3, "width": 0.5}},
}


def result(
    accuracies: list[float | None],
    tiers: dict[str, float | None] | None = None,
    *,
    method: str = "width",
    seed: int = 0,
    moved: int = 100,
    macs: int = 1000,
    metric: str = "accuracy",
) -> RunResult:
    """Return a made-up run: a score for each round and tier, whose loss is what is missing to one."""

    def scores(score: float) -> dict[str, float]:
        return {metric: score, "loss": 1 - score}

    tiers = {"large": 0.9, "small": 0.5} if tiers is None else tiers
    devices = {"large": 1, "small": 3}
    return RunResult(
        method,
        seed,
        (metric,),
        "data",
        tuple(
            RoundResult(
                k,
                None if score is None else scores(score),
                {t: scores(s) for t, s in tiers.items() if s is not None},
                moved,
                macs,
                10.0 * k,
                2.0,
                0.5,
            )
            for k, score in enumerate(accuracies, 1)
        ),
        tuple(
            TierResult(t, devices[t], f"size of {t}", scores(s), 7, 1.0, 2.0)
            if s is not None
            else TierResult(t, devices[t], "", {}, None, 1.0, 2.0)
            for t, s in tiers.items()
        ),
    )


def comparison(runs: dict[str, list[RunResult]], target: float | None = None) -> Comparison:
    return Comparison(EXPERIMENT, list(runs), list(range(len(next(iter(runs.values()))))), runs, target)
