"""What methods came to side by side: values, and their mean and spread over seeds."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class RoundResult:
    """One round of one run.

    Attributes:
        round: counted from 1.
        accuracy: of the global model on the test set, in [0, 1]; None if it was not evaluated.
        tiers: likewise of each tier's own size, by tier; a tier that nothing fits is missing.
        bytes: payload bytes moved in this round, all devices, both ways.
        macs: multiply-accumulates of the devices' training in this round.
        seconds: the round took, virtual with a population.
        wall_seconds: it really took, evaluation included.
        server_seconds: of them, the server's own work.

    """

    round: int
    accuracy: float | None
    tiers: dict[str, float]
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
        accuracy: of that size on the test set, in [0, 1].
        memory: peak bytes of training that size; None if there is none.
        bytes: payload bytes a device moved in the whole run, both ways.
        macs: multiply-accumulates a device spent on training in the whole run.

    """

    tier: str
    devices: int
    size: str
    accuracy: float | None
    memory: int | None
    bytes: float
    macs: float


@dataclass(frozen=True, slots=True)
class RunResult:
    """One finished run.

    Attributes:
        method: its name.
        seed: of the run.
        data: SHA-256 of every device's examples, the proxy set and the test set.
        rounds: in order.
        tiers: in the experiment's order, those without a device left out.

    """

    method: str
    seed: int
    data: str
    rounds: tuple[RoundResult, ...]
    tiers: tuple[TierResult, ...]

    @property
    def accuracy(self) -> float | None:
        """The final global accuracy."""
        return self.rounds[-1].accuracy if self.rounds else None

    @property
    def worst(self) -> float | None:
        """The final accuracy of the tier that is worst off; None if a tier is not served."""
        scores = [tier.accuracy for tier in self.tiers]
        return None if None in scores else min((score for score in scores if score is not None), default=None)

    @property
    def mean(self) -> float | None:
        """The final accuracy in the mean of the tiers, each counting alike; None if a tier is not served."""
        scores = [tier.accuracy for tier in self.tiers if tier.accuracy is not None]
        return statistics.fmean(scores) if scores and len(scores) == len(self.tiers) else None

    def reached(self, target: float) -> Sequence[RoundResult] | None:
        """Return the rounds up to the first whose global accuracy is `target`; None if none has it."""
        for number, closed in enumerate(self.rounds, 1):
            if closed.accuracy is not None and closed.accuracy >= target:
                return self.rounds[:number]
        return None

    def figures(self, target: float | None = None, *, virtual: bool = False) -> dict[str, float | None]:
        """Return the run in single numbers, by name; None for what there is not.

        `target` is a global accuracy in [0, 1]; `virtual` says that the rounds' seconds are virtual.
        """
        devices = max(1, sum(tier.devices for tier in self.tiers))
        moved, spent = sum(r.bytes for r in self.rounds), sum(r.macs for r in self.rounds)
        found: dict[str, float | None] = {
            "accuracy": self.accuracy,
            "worst_tier_accuracy": self.worst,
            "mean_tier_accuracy": self.mean,
            "served_devices": float(sum(tier.devices for tier in self.tiers if tier.size)),
            "bytes": float(moved),
            "bytes_per_device": moved / devices,
            "macs": float(spent),
            "macs_per_device": spent / devices,
            "wall_seconds": sum(r.wall_seconds for r in self.rounds),
            "server_seconds": sum(r.server_seconds for r in self.rounds),
        }
        if virtual:
            # Without devices nothing happens in the field.
            found["virtual_seconds"] = sum(r.seconds for r in self.rounds) if moved else None
        if target is not None:
            reached = self.reached(target)
            found["rounds_to_target"] = None if reached is None else float(len(reached))
            timed = reached if moved or not virtual else None
            found["seconds_to_target"] = None if timed is None else sum(r.seconds for r in timed)
        for tier in self.tiers:
            found[f"accuracy/{tier.tier}"] = tier.accuracy
            found[f"memory/{tier.tier}"] = None if tier.memory is None else float(tier.memory)
            found[f"bytes/{tier.tier}"], found[f"macs/{tier.tier}"] = tier.bytes, tier.macs
        return found


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation over the seeds that have a value.

    `deviation` is None for a single value, `mean` for none.
    """

    mean: float | None
    deviation: float | None
    count: int

    @staticmethod
    def of(values: Iterable[float | None]) -> "Spread":
        """Return the spread of the values that are not None."""
        found = [value for value in values if value is not None]
        deviation = statistics.stdev(found) if len(found) > 1 else None
        return Spread(statistics.fmean(found) if found else None, deviation, len(found))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Methods side by side.

    Attributes:
        experiment: what was asked for, without method and seed; JSON.
        methods: in the order asked for.
        seeds: likewise.
        runs: by method, one a seed.
        target: global accuracy in [0, 1] whose time is reported; None for none.
        population: what the devices were drawn from, in a word; empty if they were not, and then there is no virtual
            time.

    """

    experiment: Mapping[str, Any]
    methods: Sequence[str]
    seeds: Sequence[int]
    runs: Mapping[str, Sequence[RunResult]]
    target: float | None = None
    population: str = ""

    @property
    def virtual(self) -> bool:
        """Whether the rounds' seconds are virtual."""
        return bool(self.population)

    @property
    def tiers(self) -> list[str]:
        """The tiers that have devices, in the experiment's order."""
        return list(dict.fromkeys(tier.tier for runs in self.runs.values() for run in runs for tier in run.tiers))

    def summary(self) -> dict[str, dict[str, Spread]]:
        """Return for each method every figure's mean and spread over the seeds."""
        found = {}
        for method, runs in self.runs.items():
            rows = [run.figures(self.target, virtual=self.virtual) for run in runs]
            names = dict.fromkeys(name for row in rows for name in row)
            found[method] = {name: Spread.of(row.get(name) for row in rows) for name in names}
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "experiment": dict(self.experiment),
            "methods": list(self.methods),
            "seeds": list(self.seeds),
            "target": self.target,
            "population": self.population,
            "summary": {
                method: {name: asdict(spread) for name, spread in row.items()} for method, row in self.summary().items()
            },
            "runs": {method: [asdict(run) for run in runs] for method, runs in self.runs.items()},
        }


def together(parts: Sequence[RunResult]) -> RunResult:
    """Return dedicated federations, one for each size and the largest last, as one run.

    The global model and the time are those of the largest size, bytes, work and the seconds of this machine those of
    all together. A tier is taken from the federation of its own size, the only one that has a size for it.
    """
    rounds = []
    for closed in zip(*(part.rounds for part in parts), strict=True):
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
    return replace(parts[-1], rounds=tuple(rounds), tiers=tiers)


RUN_RESULT: TypeAdapter[RunResult] = TypeAdapter(RunResult)
