"""The best sub-model within a budget: of those that a run has left, or of all that its global model holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import torch
from torch import nn

from diastole.experiments.errors import ExportError
from diastole.experiments.export.budget import Budget
from diastole.experiments.export.source import Known, Source
from diastole.models.export.counting import forward_macs, latency
from diastole.models.export.plain import parameter_bytes, plain
from diastole.models.loading import fill, used
from diastole.models.method import Wide
from diastole.models.methods.registry import build, make_method
from diastole.models.metrics import better
from diastole.models.moment import Moment
from diastole.models.recalibrate import ready
from diastole.models.seeds import generator
from diastole.models.spec import SubModelSpec
from diastole.models.state import State

EVERY = 200
"""Sub-models of a space that are all looked at; of a larger one an evolution looks at some."""

POPULATION, GENERATIONS, PARENTS, MUTATION = 32, 10, 8, 0.15
"""Of an evolution (Once-for-All, Cai et al., ICLR 2020, section 3.4, which takes 100 and 500)."""

Numbers = tuple[int, ...]
Timer = Callable[[nn.Module], float]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sub-model that may be exported.

    Attributes:
        spec: names it.
        state: its parameters, and statistics where it normalises by batches.
        module: of ordinary layers.
        trained: the module as it was trained.
        size: bytes of its parameters.
        macs: of answering one example.
        seconds: of answering one, if the budget limits that.
        score: by which it was chosen; None if there was nothing to choose by.

    """

    spec: SubModelSpec
    state: State
    module: nn.Module
    trained: nn.Module
    size: int
    macs: int
    seconds: float | None = None
    score: float | None = None


class Search:
    """Looks at sub-models, each once."""

    def __init__(self, source: Source, known: Known | None, budget: Budget, timer: Timer) -> None:
        """Choose among a run's models by `known`; `timer` returns the seconds that a module takes for one example."""
        self._source, self._known, self._budget, self._timer = source, known, budget, timer
        self._seen: dict[SubModelSpec, Candidate | None] = {}
        self._least: Candidate | None = None
        self.looked: int = 0

    def best(self) -> Candidate:
        """Return the best sub-model that fits. Raises `ExportError` if none does."""
        file = self._source.file
        for label, spec in file.specs.items():
            self._look(spec, lambda label=label: file.module(size=label))  # type: ignore[misc]
        if (wide := self._wide()) is not None:
            self._explore(wide)
        fitting = [each for each in self._seen.values() if each is not None]
        if not fitting and self._least:
            least = f"{self._least.size} bytes of parameters and {self._least.macs} multiply-accumulates"
            raise ExportError(f"none of {self.looked} sub-models fits the budget; the smallest has {least}")
        return max(fitting, key=self._rank)

    def candidate(self, spec: SubModelSpec, module: nn.Module) -> Candidate:
        """Return a trained sub-model, measured but for its time."""
        made = plain(module)
        macs = forward_macs(made, self._source.file.config.blank(1))
        return Candidate(spec, used(module), made, module, parameter_bytes(made), macs)

    def _look(self, spec: SubModelSpec, make: Callable[[], nn.Module]) -> Candidate | None:
        """Return a sub-model with its score if it fits, and note it."""
        if spec in self._seen:
            return self._seen[spec]
        self.looked += 1
        found = self.candidate(spec, make())
        self._least = min(self._least or found, found, key=lambda each: (each.size, each.macs))
        seconds = None
        if (fits := self._budget.allows(found.size, found.macs)) and self._budget.seconds is not None:
            seconds = self._timer(found.module)
            fits = seconds <= self._budget.seconds
        score = self._known.score(found.module, self._known.choose) if fits and self._known else None
        self._seen[spec] = replace(found, seconds=seconds, score=score) if fits else None
        return self._seen[spec]

    def _rank(self, found: Candidate) -> tuple[float, int]:
        """Return what is largest for the best: of equal scores the least work, without scores the most."""
        if found.score is None or self._known is None:
            return 0.0, found.macs
        return (found.score if better(self._known.metrics[0]) == "higher" else -found.score), -found.macs

    def _wide(self) -> Wide | None:
        """Return the run's method if its global model holds more than the file, and if there is what to choose by."""
        experiment, file = self._source.experiment, self._source.file
        if experiment is None or self._known is None or not self._known.metrics:
            return None
        method = make_method(file.method, file.config, experiment.widths, experiment.training, experiment.options)
        method.resume(file.state, None, Moment(file.round, max(file.round, 1)), file.kept)
        return method if isinstance(method, Wide) else None

    def _explore(self, wide: Wide) -> None:
        def look(numbers: Numbers) -> Candidate | None:
            spec = wide.at(numbers)
            return self._look(spec, lambda: self._made(spec, wide.cut(spec)))

        if prod(wide.choices) <= EVERY:
            for numbers in product(*map(range, wide.choices)):
                look(numbers)
            return

        def rank(numbers: Numbers) -> tuple[float, int] | None:
            found = look(numbers)
            return None if found is None else self._rank(found)

        evolve(wide.choices, rank, self._source.digest)

    def _made(self, spec: SubModelSpec, state: State) -> nn.Module:
        """Return a sub-model, recalibrated if it normalises by batches."""
        module = fill(build(self._source.file.config, spec), state)
        inputs = self._known.fit if self._known else torch.empty(0)
        return ready(module, inputs).eval()


def evolve(
    choices: Sequence[int], rank: Callable[[Numbers], tuple[float, int] | None], seed: str
) -> tuple[Numbers, tuple[float, int]] | None:
    """Return the best numbers found by evolution, one below each of `choices`, with their rank; None if none fits.

    `rank` returns what is largest for the best, or None for what does not fit. The start spreads from the smallest to
    the largest; each generation keeps the best and adds their mutations and crossings in equal numbers.
    """
    draws = generator(seed, "evolution")

    def draw(level: float) -> Numbers:
        return tuple(int((torch.rand(size - 1, generator=draws) < level).sum()) for size in choices)

    def mutated(numbers: Numbers) -> Numbers:
        return tuple(
            int(torch.randint(size, (), generator=draws)) if torch.rand((), generator=draws) < MUTATION else gene
            for gene, size in zip(numbers, choices, strict=True)
        )

    def crossed(one: Numbers, other: Numbers) -> Numbers:
        sides = torch.randint(2, (len(one),), generator=draws).tolist()
        return tuple(pair[side] for pair, side in zip(zip(one, other, strict=True), sides, strict=True))

    found: dict[Numbers, tuple[float, int]] = {}

    def look(numbers: Numbers) -> None:
        if numbers not in found and (value := rank(numbers)) is not None:
            found[numbers] = value

    for numbers in [(0,) * len(choices), tuple(size - 1 for size in choices)]:
        look(numbers)
    for turn in range(POPULATION):
        look(draw((turn + 0.5) / POPULATION))
    for _ in range(GENERATIONS):
        parents = sorted(found, key=lambda numbers: found[numbers], reverse=True)[:PARENTS]
        if not parents:
            return None
        pick = [parents[k] for k in torch.randint(len(parents), (POPULATION,), generator=draws).tolist()]
        for k, numbers in enumerate(pick):
            look(mutated(numbers) if k % 2 else crossed(numbers, pick[k - 1]))
    best = max(found, key=lambda numbers: found[numbers])
    return best, found[best]


def timer_of(source: Source) -> Timer:
    """Return what measures a module as torch runs it here, on one example."""
    x = source.file.config.drawn(1, generator("export"))
    return lambda module: latency(module, x)
