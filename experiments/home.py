"""Where the runs of a coordinator are kept: which one goes on, and what becomes of it."""

import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from diastole.experiments.checkpoint import Checkpoint, label
from diastole.experiments.errors import ExperimentError
from diastole.experiments.run import Run
from diastole.server.snapshot import Snapshot
from diastole.server.store.folder import DATABASE, StateFolder
from diastole.server.store.store import RunRow, RunState, Store

if TYPE_CHECKING:
    from diastole.server.store.sql import SqlStore

CHECKPOINT = "run.checkpoint"


class Home:
    """A coordinator's state folder and database, and in them one run, which goes on or begins.

    Attributes:
        folder: the state folder.
        store: the database.
        run_id: of the run; it survives the coordinator.
        path: the run's folder: its checkpoint, and its result.
        checkpoint: of the run.
        snapshot: what the run goes on from; None if it begins.

    """

    def __init__(self, state: Path, run: Run, *, database: str = "", fresh: bool = False) -> None:
        """Take the folder `state`, and find the run that goes on, or begin one.

        Args:
            state: the coordinator's folder.
            run: what is run.
            database: its URL; by default a file in the folder.
            fresh: begin a run in any case, and forget an unfinished one.

        Raises `FolderError` if another coordinator has the folder, `StoreError`, and `ExperimentError` if the folder
        has an unfinished run of another experiment.

        """
        self._experiment, self._data = run.experiment, run.dataset.digest
        self._label = label(self._data, run.experiment)
        with ExitStack() as stack:
            self.folder = StateFolder(state)
            stack.callback(self.folder.close)
            self.store: Store = _opened(database or f"sqlite:///{(state / DATABASE).absolute()}")
            stack.callback(self.store.close)
            self.run_id = ""
            self.snapshot: Snapshot | None = None
            self._take(fresh=fresh)
            self.path = self.folder.run(self.run_id)
            self.checkpoint = self._checkpoint(self.run_id)
            self._open = stack.pop_all()

    def finish(self, *, learned: bool) -> None:
        """Note that the run is over; `learned` says whether it came to anything."""
        self.store.set_run(self.run_id, RunState.FINISHED if learned else RunState.FAILED)
        if not learned:
            self.checkpoint.remove()
            return
        self.checkpoint.finish()
        # Only the newest finished run can be given more rounds.
        for row in self.store.runs(self.folder.place):
            if row.state is RunState.FINISHED and row.run_id != self.run_id:
                self._checkpoint(row.run_id).remove()

    def close(self) -> None:
        """Let another coordinator have the folder."""
        self._open.close()

    def _take(self, *, fresh: bool) -> None:
        """Find the run that goes on, or begin one."""
        runs = self.store.runs(self.folder.place)
        newest = next((row for row in runs[:1] if row.state is RunState.OPEN), None)
        if newest is not None:
            checkpoint = self._checkpoint(newest.run_id)
            if fresh:
                checkpoint.remove()
            # Raises if it is of another run. Without a checkpoint nothing has begun.
            self.snapshot = checkpoint.check()
            if newest.label == self._label and not fresh:
                self.run_id = newest.run_id
                return
        finished = next((row for row in runs if row.state is RunState.FINISHED), None)
        if self.snapshot is None and finished is not None and not fresh:
            checkpoint = self._checkpoint(finished.run_id)
            # A crash may have come between the two.
            checkpoint.finish()
            self.snapshot = checkpoint.check()
        self.run_id = uuid.uuid4().hex[:12]
        if self.snapshot is not None:
            # More rounds for the run before, which from here on this one has no need of.
            self._checkpoint(self.run_id).begin(self.snapshot)
        self.store.add_run(RunRow(self.run_id, self.folder.place, self._label))
        if newest is not None:
            self.store.set_run(newest.run_id, RunState.DROPPED)
            self._checkpoint(newest.run_id).remove()

    def _checkpoint(self, run_id: str) -> Checkpoint:
        return Checkpoint(self.folder.run(run_id) / CHECKPOINT, self._experiment, self._data, run_id)


def _opened(url: str) -> "SqlStore":
    """Return the store behind a URL. Raises `ExperimentError` without SQLAlchemy, which only coordinators need."""
    try:
        from diastole.server.store.sql import SqlStore
    except ImportError:
        raise ExperimentError(
            "a coordinator keeps its state with SQLAlchemy, which is not installed; pip install 'diastole[coordinator]'"
        ) from None
    return SqlStore(url)
