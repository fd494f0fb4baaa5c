"""A progress bar of runs from Python."""

from importlib.util import find_spec

from rich.console import Console
from rich.progress import Progress

from diastole.server.events import Event, RoundClosed, RunStarted
from diastole.simulations.compared import Standing


class Bar:
    """A progress bar of rounds, in a terminal or notebook."""

    def __init__(self, title: str, wanted: bool | None) -> None:
        console = Console()
        # In a notebook, bars are ipywidgets'.
        widgets = console.is_jupyter and find_spec("ipywidgets") is not None
        shown = ((console.is_terminal and not console.is_jupyter) or widgets) if wanted is None else wanted
        self._progress, self._behind = Progress(console=console, transient=True, disable=not shown), dict[str, int]()
        self._task = self._progress.add_task(title, total=None)

    def __enter__(self) -> "Bar":
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
