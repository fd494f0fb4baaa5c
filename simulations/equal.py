"""Give each method of a comparison as many rounds as spend what an anchor spends in the experiment's rounds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from diastole.experiments.comparison.comparison import Comparison
from diastole.experiments.comparison.equal import KINDS, By, Equal, Reading, horizon, read, spent
from diastole.experiments.comparison.runs import RunResult
from diastole.experiments.errors import ExperimentError
from diastole.models.methods.registry import METHODS
from diastole.simulations.compare import one
from diastole.simulations.compared import NONE, ComparedRun, Files, planned_runs
from diastole.simulations.simulation import Simulation

MORE = 5
"""Times the experiment's rounds that a method may need at most, unless another bound is given."""

Finish = Callable[[Sequence[ComparedRun]], Mapping[str, RunResult]]
Key = tuple[str, int]
"""A method and a seed."""


def kinds_of(text: str) -> tuple[By, ...]:
    """Return what is to be equal in a text such as "bytes,macs". Raises `ExperimentError`."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in KINDS:
            raise ExperimentError(f"equal: {name!r} cannot be made equal; accepted: {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in names)


def among(option: str, name: str, methods: Sequence[str]) -> str:
    """Return the own name of a method that an option names. Raises `ExperimentError` if it is not compared."""
    own = METHODS.name(name) if name in METHODS else name
    if own and own not in methods:
        raise ExperimentError(f"{option} {name}: is not compared; accepted: {', '.join(methods)}")
    return own


def equalise(
    simulation: Simulation,
    comparison: Comparison,
    files: Files,
    kinds: Sequence[By],
    finish: Finish,
    *,
    anchor: str = "",
    most: int | None = None,
    values: Mapping[str, Mapping[str, Any]] = NONE,
    fresh: bool = False,
) -> Comparison:
    """Return a comparison with a table more for each kind, in which every method has spent what the anchor has.

    A method whose rounds spend less gets a run with so many more rounds that they do not, of the same seed; one whose
    rounds spend more is read at an earlier round, or gets a run with fewer if what its rounds do depends on how many
    there are. A longer run goes on from the shorter one where the bits are the same.

    Args:
        simulation: the experiment.
        comparison: its methods after the same rounds.
        files: keep the runs.
        kinds: of what is made equal.
        finish: plays runs, or finds them, and returns their results by name.
        anchor: by name; by default the method that spends most of those that serve every device, baselines left out.
        most: rounds that a method may have; one that would need more gets none, and is not in the table.
        values: of keys of the experiment, for each method that has its own.
        fresh: forget what the files have of the runs that are longer or shorter.

    Raises `ExperimentError` for an anchor that spends nothing, or is not compared.

    """
    most = MORE * simulation.rounds.count if most is None else most
    tables, known = [], _Known(simulation, comparison, values)
    for by in kinds:
        chosen = among("anchor", anchor, list(comparison.runs)) or costliest(comparison, by)
        allowances = [spent(run, by) for run in comparison.runs[chosen]]
        if not all(allowances):
            raise ExperimentError(f"anchor {chosen!r}: spends no {by}; accepted: a method that trains on devices")
        readings, wanted = dict[Key, Reading | None](), dict[Key, list[ComparedRun]]()
        for method, runs in comparison.runs.items():
            for run, allowance in zip(runs, allowances, strict=True):
                key, count = (method, run.seed), horizon(run, by, allowance)
                readings[key] = known.read(key, by, allowance)
                if readings[key] is None and 0 < count <= most:
                    wanted[key] = known.planned(key, count)
                    for stale in wanted[key] if fresh else ():
                        files.remove(stale)
                    known.lead(files, key, wanted[key])
        found = finish([run for runs in wanted.values() for run in runs])
        for key, each in wanted.items():
            place = list(comparison.seeds).index(key[1])
            result = one([(run, found[run.name]) for run in each], *key)
            if result.data != comparison.runs[key[0]][place].data:
                raise ExperimentError(f"runs of {key[0]}, seed {key[1]}, had different data: start afresh (--fresh)")
            known.add(key, each, result)
            readings[key] = read(result, by, allowances[place])
        by_method = {m: [readings[m, seed] for seed in comparison.seeds] for m in comparison.runs}
        tables.append(Equal(by, chosen, allowances, by_method))
    return replace(comparison, equal=tuple(tables))


def costliest(comparison: Comparison, by: By) -> str:
    """Return the method that spends most in the mean over seeds, of those that serve every device if there are any."""
    total = {method: sum(spent(run, by) for run in runs) for method, runs in comparison.runs.items()}
    served = [
        method
        for method, runs in comparison.runs.items()
        if not METHODS[method].baseline and all(tier.size for run in runs for tier in run.tiers)
    ]
    return max(served or list(total), key=lambda method: total[method])


class _Known:
    """Runs of a method and seed that differ in their number of rounds."""

    def __init__(self, simulation: Simulation, comparison: Comparison, values: Mapping[str, Mapping[str, Any]]) -> None:
        self._simulation, self._values = simulation, values
        self._runs = dict[Key, list[tuple[list[ComparedRun], RunResult]]]()
        for method, runs in comparison.runs.items():
            for run in runs:
                self.add((method, run.seed), self.planned((method, run.seed)), run)

    def planned(self, key: Key, count: int | None = None) -> list[ComparedRun]:
        """Return the runs of so many rounds, by default the experiment's."""
        method, seed = key
        rounds = {} if count is None else {"rounds.count": count}
        return planned_runs(self._simulation, [method], [seed], {method: {**self._values.get(method, {}), **rounds}})

    def add(self, key: Key, runs: list[ComparedRun], result: RunResult) -> None:
        """Take in what runs came to."""
        self._runs.setdefault(key, []).append((runs, result))

    def read(self, key: Key, by: By, allowance: int) -> Reading | None:
        """Return the run that has used most of an allowance up, if one has.

        If the rounds depend on how many there are, a run counts only if that is at its end.
        """
        found = []
        for runs, result in self._runs[key]:
            reading = read(result, by, allowance)
            if reading and (reading.count == len(result.rounds) or not _scheduled(runs)):
                found.append(reading)
        return max(found, key=lambda reading: reading.count, default=None)

    def lead(self, files: Files, key: Key, longer: Sequence[ComparedRun]) -> None:
        """Let runs go on from where the longest shorter ones have ended, if they begin with the same bits."""
        count = longer[0].home.rounds.count
        shorter = [pair for pair in self._runs[key] if len(pair[1].rounds) < count]
        if shorter and not _scheduled(longer):
            runs, _ = max(shorter, key=lambda pair: len(pair[1].rounds))
            for before, after in zip(runs, longer, strict=True):
                files.lead(before, after)


def _scheduled(runs: Sequence[ComparedRun]) -> bool:
    return any(run.simulation.scheduled for run in runs)
