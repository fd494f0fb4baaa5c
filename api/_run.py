"""Runs from Python: simulated, compared, and over real devices."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from diastole._experiment import Experiment
from diastole.experiments.comparison.comparison import Comparison
from diastole.experiments.errors import ExperimentError
from diastole.experiments.result import Result
from diastole.experiments.run import make_run
from diastole.experiments.serving import Serving
from diastole.models.allowed import is_given
from diastole.models.metrics import shown
from diastole.server.events import Event, Observer, RoundClosed, RunStarted
from diastole.server.wire.tls import credentials
from diastole.simulations import compare as comparing
from diastole.simulations import simulate as simulating
from diastole.simulations.compared import Standing, known, planned_runs
from diastole.simulations.devices import make_federation

if TYPE_CHECKING:
    import pandas


def simulate(
    experiment: Experiment | Path | str, *, observers: Sequence[Observer] = (), progress: bool | None = None
) -> Result:
    """Run an experiment with simulated devices, in this process, and return what it came to.

    Args:
        experiment: what to run, or the path of its file.
        observers: are called with every event of the run (`diastole.server.events`).
        progress: show a bar; by default in a terminal or notebook.

    Raises `DiastoleError` in one line.

    """
    experiment = _experiment(experiment)
    federation = make_federation(experiment.settings, experiment.given)
    with _Bar(experiment.settings.method, progress) as bar:
        return simulating.simulate(federation, (bar.event, *observers))


@dataclass(frozen=True, slots=True)
class Table:
    """Methods side by side.

    Attributes:
        comparison: every run, round by round.

    """

    comparison: Comparison

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row a run: method, seed and its figures by name; shares are in [0, 1]."""
        found = self.comparison
        return [
            {"method": method, "seed": run.seed} | run.figures(found.target, virtual=found.virtual)
            for method, runs in found.runs.items()
            for run in runs
        ]

    def frame(self) -> "pandas.DataFrame":
        """Return `rows` as a pandas `DataFrame`. Raises `ExperimentError` without pandas."""
        try:
            import pandas
        except ImportError:
            raise ExperimentError("pandas is not installed; pip install pandas, or use .rows") from None
        return pandas.DataFrame(self.rows)

    def __str__(self) -> str:
        lines, metric = [], self.comparison.metric
        for method, row in self.comparison.summary().items():
            mean = {"global": row[metric].mean} | {tier: row[f"{metric}/{tier}"].mean for tier in self.comparison.tiers}
            found = (f"{what} {'-' if value is None else shown(metric, value)}" for what, value in mean.items())
            lines.append(f"{method}: {', '.join(found)}")
        return "\n".join(lines)


def compare(
    experiment: Experiment | Path | str,
    methods: Sequence[str],
    seeds: int = 3,
    *,
    folder: Path | str | None = None,
    jobs: int = 1,
    target: float | None = None,
    progress: bool | None = None,
) -> Table:
    """Run methods on the same data, devices, rounds, budgets and proxy set.

    Args:
        experiment: what to run, or the path of its file; its method does not matter.
        methods: and baselines, by name.
        seeds: how many, from the experiment's own on.
        folder: keeps the runs, so that the same call goes on after it was stopped; by default they are not kept.
        jobs: runs at a time, each in a process of its own.
        target: global score by the experiment's first metric, shares in [0, 1], the time to which is told.
        progress: show a bar; by default in a terminal or notebook.

    Raises `DiastoleError` in one line.

    """
    experiment = _experiment(experiment)
    numbers = range(experiment.settings.seed, experiment.settings.seed + seeds)
    runs = planned_runs(experiment.settings, known(methods), numbers)
    with ExitStack() as stack:
        place = Path(folder) if folder is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bar = stack.enter_context(_Bar("rounds of all runs", progress))
        bar.total(len(runs) * experiment.settings.rounds.count)
        found = comparing.compare(
            experiment.settings,
            methods,
            numbers,
            place,
            bar.standing,
            jobs=jobs,
            target=target,
            dataset=experiment.given,
        )
    return Table(found)


def serve(
    experiment: Experiment | Path | str,
    listen: str = "127.0.0.1:7700",
    state: Path | str = "state",
    *,
    admin: str | None = None,
    observers: Sequence[Observer] = (),
    track: Sequence[str] = (),
    lease: float = 30.0,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    tls_client_ca: Path | None = None,
    insecure: bool = False,
    fresh: bool = False,
) -> Serving:
    """Coordinate real devices, in a thread of its own, until the run is over.

    `with diastole.serve(experiment) as run: result = run.wait()`.

    Args:
        experiment: what to run, or the path of its file; its simulated devices are not used.
        listen: where devices call, `host:port`; port 0 for any free one.
        state: folder for the checkpoint, from which the same call goes on, and the result.
        admin: where `diastole admin` calls, likewise; None for nowhere.
        observers: are called with every event.
        track: names of trackers, which write curves into `state`: "csv", "jsonl", "tensorboard", "mlflow", "wandb".
        lease: seconds of silence after which a device is lost.
        tls_cert: the coordinator's certificate, PEM; other machines are not served in plain text unless `insecure`.
        tls_key: its key, PEM.
        tls_client_ca: take only devices that it has certified, PEM.
        insecure: serve other machines in plain text.
        fresh: forget an unfinished run in `state`.

    Raises `DiastoleError` in one line.

    """
    experiment = _experiment(experiment)
    if any(map(is_given, (experiment.settings.model.factory, *experiment.settings.training.functions))):
        raise ExperimentError(
            "devices cannot import a module or a function that was given in Python; name it in the experiment, as "
            "[model] factory is"
        )
    secrets = credentials(listen, tls_cert, tls_key, tls_client_ca, insecure=insecure)
    return Serving(
        make_run(experiment.settings, experiment.given),
        listen,
        Path(state),
        admin=admin,
        observers=observers,
        track=track,
        lease=lease,
        credentials=secrets,
        fresh=fresh,
    )


class _Bar:
    """A progress bar of rounds, in a terminal or notebook."""

    def __init__(self, title: str, wanted: bool | None) -> None:
        console = Console()
        shown = (console.is_terminal or console.is_jupyter) if wanted is None else wanted
        self._progress, self._behind = Progress(console=console, transient=True, disable=not shown), dict[str, int]()
        self._task = self._progress.add_task(title, total=None)

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def total(self, rounds: int) -> None:
        """Tell how many rounds there are."""
        self._progress.update(self._task, total=rounds)

    def event(self, event: Event) -> None:
        """Show an event of one run."""
        if isinstance(event, RunStarted):
            self._progress.update(self._task, total=event.rounds, completed=event.closed)
        elif isinstance(event, RoundClosed):
            self._progress.update(self._task, completed=event.round)

    def standing(self, standing: Standing) -> None:
        """Show how a run of a comparison stands."""
        name = standing.run.name
        self._progress.update(self._task, advance=standing.round - self._behind.get(name, 0))
        self._behind[name] = standing.round


def _experiment(given: Experiment | Path | str) -> Experiment:
    return given if isinstance(given, Experiment) else Experiment.load(given)
