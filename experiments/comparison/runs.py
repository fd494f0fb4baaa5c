"""What runs of a comparison came to, round by round."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from diastole.experiments.report.metric import reached, worst
from diastole.models.metrics import LOSS


@dataclass(frozen=True, slots=True)
class RoundResult:
    """One round of one run.

    Attributes:
        round: counted from 1.
        scores: of the global model on the test set, by metric, and "loss"; None if it was not evaluated.
        tiers: likewise of each tier's own size, by tier; a tier that nothing fits is missing.
        bytes: payload bytes moved in this round, all devices, both ways.
        macs: multiply-accumulates of the devices' training in this round.
        seconds: the round took, virtual with a population.
        wall_seconds: it really took, evaluation included.
        server_seconds: of them, the server's own work.

    """

    round: int
    scores: dict[str, float] | None
    tiers: dict[str, dict[str, float]]
    bytes: int
    macs: int
    seconds: float
    wall_seconds: float
    server_seconds: float


@dataclass(frozen=True, slots=True)
class TierResult:
    """What one tier of devices came to in one run.

    Attributes:
        tier: its name.
        devices: how many.
        size: the label of the largest exported size that fits its devices (most of them, with a population); empty
            if none does, and then the tier is not served.
        scores: of that size on the test set, by metric, and "loss"; empty if there is none.
        memory: peak bytes of training that size; None if there is none.
        bytes: payload bytes a device moved in the whole run, both ways.
        macs: multiply-accumulates a device spent on training in the whole run.

    """

    tier: str
    devices: int
    size: str
    scores: dict[str, float]
    memory: int | None
    bytes: float
    macs: float


@dataclass(frozen=True, slots=True)
class RunResult:
    """One finished run.

    Attributes:
        method: its name.
        seed: of the run.
        metrics: that scores are of, beside "loss"; the run is judged by the first.
        data: SHA-256 of every device's examples, the proxy set and the test set.
        rounds: in order.
        tiers: in the experiment's order, those without a device left out.
        personal: the devices' mean score on examples of their own, "before" and "after" they train, if they keep any.
        training_seconds: that the devices trained for, all of them together; None if only virtual time is known.
        clock: by which that was measured: "processor" (of all threads) or "wall"; empty if it was not.
        pruned: whether a sweep ended the run, because trials before it were better after as many rounds.

    """

    method: str
    seed: int
    metrics: tuple[str, ...]
    data: str
    rounds: tuple[RoundResult, ...]
    tiers: tuple[TierResult, ...]
    personal: dict[str, float] = field(default_factory=dict)
    training_seconds: float | None = None
    clock: str = ""
    pruned: bool = False

    @property
    def metric(self) -> str:
        """The metric that the run is judged by."""
        return self.metrics[0]

    @property
    def scores(self) -> dict[str, float]:
        """The final global scores."""
        return (self.rounds[-1].scores if self.rounds else None) or {}

    @property
    def score(self) -> float | None:
        """The final global score by the metric that the run is judged by."""
        return self.scores.get(self.metric)

    @property
    def worst(self) -> float | None:
        """The final score of the tier that is worst off; None if a tier is not served."""
        return worst(self.metric, self._served({tier.tier: tier.scores for tier in self.tiers}))

    @property
    def mean(self) -> float | None:
        """The final score in the mean of the tiers, each counting alike; None if a tier is not served."""
        return _mean(self._served({tier.tier: tier.scores for tier in self.tiers}))

    def _served(self, scores: Mapping[str, Mapping[str, float]]) -> list[float]:
        """Return each tier's score by the metric that decides; none at all if a tier has none."""
        found = [scores[tier.tier][self.metric] for tier in self.tiers if self.metric in scores.get(tier.tier, {})]
        return found if len(found) == len(self.tiers) else []

    def scored(self, closed: RoundResult) -> dict[str, float | None]:
        """Return the scores behind one of the run's rounds, by the names that `figures` has; None for what has none."""
        names, served = (*self.metrics, LOSS), self._served(closed.tiers)
        found = {name: (closed.scores or {}).get(name) for name in names}
        for tier in self.tiers:
            found |= {f"{name}/{tier.tier}": closed.tiers.get(tier.tier, {}).get(name) for name in names}
        return found | {
            f"worst_tier_{self.metric}": worst(self.metric, served),
            f"mean_tier_{self.metric}": _mean(served),
        }

    def reached(self, target: float) -> Sequence[RoundResult] | None:
        """Return the rounds up to the first whose global score is as good as `target`; None if none has it."""
        for number, closed in enumerate(self.rounds, 1):
            if reached(self.metric, (closed.scores or {}).get(self.metric), target):
                return self.rounds[:number]
        return None

    def figures(self, target: float | None = None, *, virtual: bool = False) -> dict[str, float | None]:
        """Return the run in single numbers, by name; None for what there is not.

        Scores have the names of their metrics, those of a tier "accuracy/TIER" and so on. `target` is a global score by
        the metric that the run is judged by; `virtual` says that the rounds' seconds are virtual.
        """
        devices = max(1, sum(tier.devices for tier in self.tiers))
        moved, spent = sum(r.bytes for r in self.rounds), sum(r.macs for r in self.rounds)
        found: dict[str, float | None] = {name: self.scores.get(name) for name in (*self.metrics, LOSS)}
        found |= {
            f"worst_tier_{self.metric}": self.worst,
            f"mean_tier_{self.metric}": self.mean,
            "served_devices": float(sum(tier.devices for tier in self.tiers if tier.size)),
            "bytes": float(moved),
            "bytes_per_device": moved / devices,
            "macs": float(spent),
            "macs_per_device": spent / devices,
            "wall_seconds": sum(r.wall_seconds for r in self.rounds),
            "server_seconds": sum(r.server_seconds for r in self.rounds),
            "training_seconds": self.training_seconds,
        }
        found |= {f"personal_{when}": mean for when, mean in self.personal.items()}
        if virtual:
            # Without devices nothing happens in the field.
            found["virtual_seconds"] = sum(r.seconds for r in self.rounds) if moved else None
        if target is not None:
            reached = self.reached(target)
            found["rounds_to_target"] = None if reached is None else float(len(reached))
            timed = reached if moved or not virtual else None
            found["seconds_to_target"] = None if timed is None else sum(r.seconds for r in timed)
        for tier in self.tiers:
            found |= {f"{name}/{tier.tier}": tier.scores.get(name) for name in (*self.metrics, LOSS)}
            found[f"memory/{tier.tier}"] = None if tier.memory is None else float(tier.memory)
            found[f"bytes/{tier.tier}"], found[f"macs/{tier.tier}"] = tier.bytes, tier.macs
        return found


def together(parts: Sequence[RunResult]) -> RunResult:
    """Return dedicated federations, one for each size and the largest last, as one run.

    The global model and the time are those of the largest size, bytes, work and the seconds of this machine those of
    all together. A tier is taken from the federation of its own size, the only one that has a size for it. One that has
    ended before the others stays as it is, and spends nothing more.
    """
    rounds, count = [], max(len(part.rounds) for part in parts)
    for closed in zip(*(_rested(part.rounds, count) for part in parts), strict=True):
        scores = {tier: score for each in closed for tier, score in each.tiers.items()}
        rounds.append(
            replace(
                closed[-1],
                tiers={row.tier: scores[row.tier] for row in parts[-1].tiers if row.tier in scores},
                bytes=sum(each.bytes for each in closed),
                macs=sum(each.macs for each in closed),
                wall_seconds=sum(each.wall_seconds for each in closed),
                server_seconds=sum(each.server_seconds for each in closed),
            )
        )
    rows = zip(*(part.tiers for part in parts), strict=True)
    tiers = tuple(next((row for row in same if row.size), same[-1]) for same in rows)
    # Which federation a device would be in is not known here.
    personal = parts[-1].personal if len(parts) == 1 else {}
    trained, clocks = [part.training_seconds for part in parts], {part.clock for part in parts}
    known = [seconds for seconds in trained if seconds is not None] if len(clocks) == 1 else []
    return replace(
        parts[-1],
        rounds=tuple(rounds),
        tiers=tiers,
        personal=personal,
        training_seconds=sum(known) if len(known) == len(parts) else None,
        clock=parts[-1].clock,
    )


def _rested(rounds: Sequence[RoundResult], count: int) -> list[RoundResult]:
    """Return `count` rounds: these, and then the last one again, without its costs."""
    still = [
        replace(rounds[-1], round=number, bytes=0, macs=0, seconds=0.0, wall_seconds=0.0, server_seconds=0.0)
        for number in range(len(rounds) + 1, count + 1)
    ]
    return [*rounds, *still]


def run_dict(run: RunResult) -> dict[str, Any]:
    """Return a run for JSON; accuracy has keys of its own, null where it is not measured."""
    document = asdict(run)
    for item in (*document["rounds"], *document["tiers"]):
        item["accuracy"] = (item["scores"] or {}).get("accuracy")
    return document


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


RUN_RESULT: TypeAdapter[RunResult] = TypeAdapter(RunResult)


def metric_of(figure: str) -> str:
    """Return the metric that a figure of a run is a value of; the figure itself if that is none, but a cost."""
    return figure.removeprefix("worst_tier_").removeprefix("mean_tier_").partition("/")[0]
