"""Methods side by side: every run, means over seeds, and what each method has over the best of the others."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from diastole.experiments.comparison.equal import Equal
from diastole.experiments.comparison.runs import RunResult, run_dict
from diastole.experiments.comparison.spread import Difference, Spread, differences
from diastole.models.methods.registry import METHODS
from diastole.models.metrics import better
from diastole.server.events import finite

Figures = Mapping[str, Sequence[Mapping[str, float | None]]]
"""By method, for each seed figures by name."""

REFERENCE = "width"
"""HeteroFL, whose work and time others' are multiples of."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Methods side by side.

    Attributes:
        experiment: what was asked for, without method and seed; JSON.
        methods: in the order asked for.
        seeds: likewise.
        runs: by method, one a seed.
        target: global score whose time is reported, by the metric that runs are judged by; None for none.
        population: what the devices were drawn from, in a word; empty if they were not, and then there is no virtual
            time.
        against: the method that differences are from; empty: for each method the best of the others.
        equal: methods after they have spent what an anchor spends, if that was asked for.
        tuned: where the values of each method's own that the experiment has come from (`experiments/sweep/tuned.py`).

    """

    experiment: Mapping[str, Any]
    methods: Sequence[str]
    seeds: Sequence[int]
    runs: Mapping[str, Sequence[RunResult]]
    target: float | None = None
    population: str = ""
    against: str = ""
    equal: Sequence[Equal] = ()
    tuned: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of every run; they are judged by the first."""
        return next(run.metrics for runs in self.runs.values() for run in runs)

    @property
    def metric(self) -> str:
        """The metric that runs are judged by."""
        return self.metrics[0]

    @property
    def virtual(self) -> bool:
        """Whether the rounds' seconds are virtual."""
        return bool(self.population)

    @property
    def tiers(self) -> list[str]:
        """The tiers that have devices, in the experiment's order."""
        return list(dict.fromkeys(tier.tier for runs in self.runs.values() for run in runs for tier in run.tiers))

    @property
    def scores(self) -> list[str]:
        """The figures by which methods are held against each other: the score that decides, by tier and over them."""
        metric = self.metric
        return [metric, *(f"{metric}/{tier}" for tier in self.tiers), f"mean_tier_{metric}", f"worst_tier_{metric}"]

    def figures(self) -> dict[str, list[dict[str, float | None]]]:
        """Return every figure of every run; beside them how many times `REFERENCE`'s work and time it took, if it ran.

        Times are by the same clock, processor or wall, or there is no such figure.
        """
        found = {m: [run.figures(self.target, virtual=self.virtual) for run in runs] for m, runs in self.runs.items()}
        for method, runs in self.runs.items():
            for own, run, row, other in zip(
                found[method], runs, found.get(REFERENCE, []), self.runs.get(REFERENCE, []), strict=False
            ):
                own["macs_of_width"] = _ratio(own["macs"], row["macs"])
                same = run.clock == other.clock
                own["training_seconds_of_width"] = (
                    _ratio(run.training_seconds, other.training_seconds) if same else None
                )
        return found

    def summary(self) -> dict[str, dict[str, Spread]]:
        """Return for each method every figure's mean and spread over the seeds."""
        return summary(self.figures())

    def differences(self, figures: Figures | None = None) -> dict[str, dict[str, Difference]]:
        """Return for each method what it has over another in each of `scores` that it has, seed by seed.

        `figures` are those of the whole runs by default.
        """
        figures, found = figures or self.figures(), dict[str, dict[str, Difference]]()
        for name in self.scores:
            values = {method: [row.get(name) for row in rows] for method, rows in figures.items()}
            for method, difference in differences(values, self.metric, self.against).items():
                found.setdefault(method, {})[name] = difference
        return found

    @property
    def ranking(self) -> list[str]:
        """The methods that were evaluated, from the best to the worst mean of the final global score."""
        means = {method: row[self.metric].mean for method, row in self.summary().items()}
        sign = -1.0 if better(self.metric) == "higher" else 1.0
        return sorted((m for m, mean in means.items() if mean is not None), key=lambda m: sign * (means[m] or 0.0))

    @property
    def footnotes(self) -> dict[str, str]:
        """What readers must know of the scores of methods' sizes, by method."""
        return {method: note for method in self.runs if method in METHODS and (note := METHODS[method].footnote)}

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON; keys of accuracy are null where it is not measured."""
        document = {
            "experiment": dict(self.experiment),
            "methods": list(self.methods),
            "seeds": list(self.seeds),
            "target": self.target,
            "population": self.population,
            "metrics": list(self.metrics),
            "ranking": self.ranking,
            "summary": _rows(self.summary()),
            "against": self.against,
            "differences": _rows(self.differences()),
            "equal": [
                equal.as_dict()
                | {
                    "summary": _rows(summary(equal.figures())),
                    "differences": _rows(self.differences(equal.figures())),
                }
                for equal in self.equal
            ],
            "tuned": dict(self.tuned),
            "footnotes": self.footnotes,
            "runs": {method: [run_dict(run) for run in runs] for method, runs in self.runs.items()},
        }
        found: dict[str, Any] = finite(document)
        return found


def summary(figures: Figures) -> dict[str, dict[str, Spread]]:
    """Return for each method every figure's mean and spread over the seeds."""
    found = {}
    for method, rows in figures.items():
        names = dict.fromkeys(name for row in rows for name in row)
        found[method] = {name: Spread.of(row.get(name) for row in rows) for name in names}
    return found


def _ratio(own: float | None, other: float | None) -> float | None:
    return own / other if own is not None and other else None


def _rows(found: Mapping[str, Mapping[str, Spread | Difference]]) -> dict[str, dict[str, Any]]:
    return {method: {name: asdict(value) for name, value in row.items()} for method, row in found.items()}
