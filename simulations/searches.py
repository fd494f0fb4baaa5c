"""Which points a sweep tries next: every combination of a grid, or what Optuna draws from those before."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from diastole.experiments.errors import ExperimentError
from diastole.experiments.sweep.space import Choices, Range, Sweep, combinations
from diastole.models.seeds import derive_seed
from diastole.proto.files import write_bytes
from diastole.proto.missing import needed

Values = dict[str, Any]


class Search(Protocol):
    """Asks for points in batches, and is told what each came to."""

    @property
    def asked(self) -> Sequence[Values]:
        """The points so far, in order."""

    @property
    def told(self) -> Sequence[int]:
        """The numbers of the points whose scores are known."""

    def ask(self) -> list[int]:
        """Return the numbers of the points to try next; empty when there are no more."""

    def tell(self, number: int, score: float | None, pruned: tuple[int, float] | None = None) -> None:
        """Say what a point came to, None if it has no value; or the round behind which it was ended, and its score."""


class Grid:
    """Every combination of lists of values, in order and all at once."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.asked = combinations(parameters)
        self.told = list[int]()
        self._left = list(range(len(self.asked)))

    def ask(self) -> list[int]:
        """Return all numbers, once."""
        found, self._left = self._left, []
        return found

    def tell(self, number: int, score: float | None, pruned: tuple[int, float] | None = None) -> None:
        """Learn nothing from it."""
        self.told.append(number)


class Drawn:
    """A study of Optuna, kept in a journal: a file to which it adds a line for all that happens.

    The sampler is made anew for each point, of a seed that derives from the point's number: a search that was stopped
    goes on to the points that it would have come to.
    """

    def __init__(self, path: Path, method: str, sweep: Sweep, seed: int, *, label: str, better: str) -> None:
        """Use the study named after the method in the file at `path`.

        `label` tells the search from every other, and `better` is "higher" or "lower". Raises `ExperimentError` if the
        study there is of another search, or without Optuna.
        """
        optuna = library()
        self._optuna, self._method, self._sweep, self._seed = optuna, method, sweep, seed
        self._total, parameters = sweep.trials or 1, sweep.of(method)
        self._spaces = {key: _distribution(optuna, values) for key, values in parameters.items()}
        self._choices = {
            key: {_named(value): value for value in values}
            for key, values in parameters.items()
            if not isinstance(values, Range)
        }
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(_whole(path))))
        direction = "maximize" if better == "higher" else "minimize"
        self._study = optuna.create_study(storage=storage, study_name=method, direction=direction, load_if_exists=True)
        found = self._study.user_attrs.setdefault("label", label)
        if found != label:
            raise ExperimentError(
                f"{path}: the search of {method} there was of another experiment, or over other values; start afresh "
                "(--fresh) or choose another folder"
            )
        self._study.set_user_attr("label", label)

    @property
    def asked(self) -> list[Values]:
        """The points so far, in order."""
        return [self._values(trial.params) for trial in self._trials()]

    @property
    def told(self) -> list[int]:
        """The numbers of the points whose scores are known."""
        return [trial.number for trial in self._trials() if trial.state.is_finished()]

    def ask(self) -> list[int]:
        """Return the numbers of the batch that is begun and not told, or of the next one."""
        trials = self._trials()
        batch = self._sweep.batch
        end = min(self._total, (len(self.told) // batch + 1) * batch)
        for number in range(len(trials), end):
            self._study.sampler = self._sampler(derive_seed(self._seed, "sweep", self._method, number) % (1 << 32))
            self._study.ask(self._spaces)
        return [trial.number for trial in self._trials() if not trial.state.is_finished()]

    def tell(self, number: int, score: float | None, pruned: tuple[int, float] | None = None) -> None:
        """Keep what a point came to."""
        state = self._optuna.trial.TrialState
        if pruned:
            at, value = pruned
            self._optuna.trial.Trial(self._study, self._trials()[number]._trial_id).report(value, at)
            self._study.tell(number, state=state.PRUNED)
            return
        self._study.tell(number, score, state=state.COMPLETE if score is not None else state.FAIL)

    def _trials(self) -> list[Any]:
        return list(self._study.get_trials(deepcopy=False)[: self._total])

    def _values(self, params: Mapping[str, Any]) -> Values:
        return {key: self._choices[key][params[key]] if key in self._choices else params[key] for key in self._spaces}

    def _sampler(self, seed: int) -> Any:
        samplers = self._optuna.samplers
        return samplers.TPESampler(seed=seed) if self._sweep.sampler == "tpe" else samplers.RandomSampler(seed=seed)


def library() -> Any:
    """Return Optuna, told to be quiet. Raises `ExperimentError` if it is not installed."""
    with needed(ExperimentError, "a search", "Optuna", "diastole[sweep]"), warnings.catch_warnings():
        # In a notebook without ipywidgets, it warns of bars that nobody asked for.
        warnings.simplefilter("ignore")
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _whole(path: Path) -> Path:
    """Cut off what a killed process had begun to write, which Optuna could not read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        write_bytes(path, content[: content.rfind(b"\n") + 1])
    return path


def _distribution(optuna: Any, values: Range | Choices) -> Any:
    kinds = optuna.distributions
    if not isinstance(values, Range):
        return kinds.CategoricalDistribution([_named(value) for value in values])
    if values.whole:
        return kinds.IntDistribution(values.low, values.high, log=values.log, step=int(values.step or 1))
    return kinds.FloatDistribution(values.low, values.high, log=values.log, step=values.step)


def _named(value: Any) -> Any:
    """Return a value as Optuna can keep it."""
    return list(value).__repr__() if isinstance(value, tuple) else value
