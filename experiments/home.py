"""Where the runs of a coordinator are kept: which of them go on, and what becomes of them."""

import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from diastole.experiments.checkpoint import Checkpoint, label
from diastole.experiments.errors import ExperimentError
from diastole.experiments.run import Run
from diastole.proto.missing import needed
from diastole.server.checkpoints import EARLIER, Earlier
from diastole.server.errors import FolderError
from diastole.server.security.audit import Audit
from diastole.server.snapshot import Snapshot
from diastole.server.store.folder import DATABASE, StateFolder
from diastole.server.store.labels import Labels
from diastole.server.store.store import Queued, RunRow, RunState, Store

if TYPE_CHECKING:
    from diastole.server.security.security import Security
    from diastole.server.store.sql import SqlStore

CHECKPOINT = "run.checkpoint"
HELD, PAUSED = "held", "paused"
"""A run that does not begin before an operator starts it, and one that has begun and is paused."""
MOST_OVER = 100


@dataclass(frozen=True, slots=True)
class Berth:
    """Where one run is kept.

    Attributes:
        run: what is run.
        run_id: its name, which survives the coordinator.
        path: its folder, for its checkpoint and its result.
        checkpoint: of the run.
        snapshot: what the run goes on from; None if it begins.
        over: whether its turn was over before this process began.

    """

    run: Run
    run_id: str
    path: Path
    checkpoint: Checkpoint
    snapshot: Snapshot | None = None
    over: bool = False


class Home:
    """A coordinator's state folder and database, and in them its queue of runs.

    A queue is kept until the last of its runs is over, so that a coordinator which is started again by the same command
    goes on with it.

    Attributes:
        folder: the state folder.
        store: the database.
        labels: of the devices.

    """

    def __init__(self, state: Path, database: str = "", kept: int = 0) -> None:
        """Take the folder `state`; `database` is a URL, by default of a file in the folder.

        Checkpoints are kept of the last `kept` rounds of each run.

        Raises `FolderError` if another coordinator has the folder, and `StoreError`.
        """
        with ExitStack() as stack:
            self.folder = StateFolder(state)
            stack.callback(self.folder.close)
            self.store: Store = _opened(database or f"sqlite:///{(state / DATABASE).absolute()}")
            stack.callback(self.store.close)
            self.labels = Labels(self.store, self.folder.place)
            self._kept, self._open = kept, stack.pop_all()

    def plan(self, runs: Sequence[Run], make: Callable[[str], Run], *, fresh: bool = False) -> list[Berth]:
        """Return where each run is kept that is to be run, in order: it goes on, or it begins.

        Args:
            runs: what is to be run, in order.
            make: returns the run of an experiment that an operator has sent, by its document.
            fresh: begin all of them in any case, and forget unfinished ones.

        Raises `ExperimentError` if the folder has an unfinished run of another experiment.

        """
        place = self.folder.place
        rows = {row.run_id: row for row in reversed(self.store.runs(place)) if row.state is RunState.OPEN}
        queue = [each for each in self.store.queue(place) if each.over or each.run_id in rows]
        if fresh or all(each.over for each in queue):
            queue = []
        for row in [*rows.values()] if fresh else []:
            self._drop(runs[0], rows.pop(row.run_id))
        pending = {each.run_id: each for each in queue}
        for row in rows.values():
            pending.setdefault(row.run_id, Queued(row.run_id, row.label))
        # First the very same, then those that differ by the number of rounds alone.
        found = dict[int, Queued]()
        for like in (str, _endless):
            for number, run in enumerate(runs):
                mine = [each for each in pending.values() if not each.document and like(each.label) == like(_of(run))]
                if number not in found and mine:
                    found[number] = pending.pop(mine[0].run_id)
        for each in pending.values():
            if each.run_id in rows and not each.document:
                # Raises if the run has begun; without a checkpoint it has not.
                self._checkpoint(runs[0], each.run_id).check()
                self._drop(runs[0], rows[each.run_id])
        sent = [(make(each.document), each) for each in pending.values() if each.document]
        planned = [*((run, found.get(number)) for number, run in enumerate(runs)), *sent]
        berths = [self._berth(run, each, rows, fresh=fresh) for run, each in planned]
        documents = [each.document if each else "" for _, each in planned]
        texts = zip(berths, documents, strict=True)
        self.store.set_queue(place, [Queued(b.run_id, _of(b.run), text, b.over) for b, text in texts])
        return berths

    def add(self, run: Run, document: str, *, held: bool = False) -> Berth:
        """Return where a run is kept that an operator has sent, behind all others in the queue; it may be `HELD`."""
        berth = self._berth(run, None, {}, fresh=True)
        if held:
            self.hold(berth.run_id, HELD)
        place = self.folder.place
        self.store.set_queue(place, [*self.store.queue(place), Queued(berth.run_id, _of(run), document)])
        return berth

    def hold(self, run_id: str, how: str) -> None:
        """Note that a run is `HELD` or `PAUSED`, or neither with an empty word. Raises `StoreError`."""
        self.store.note(self.folder.place, HELD, run_id, how)

    def held(self, run_id: str) -> str:
        """Return whether a run is `HELD` or `PAUSED`; empty if it is neither."""
        return self.store.notes(self.folder.place, HELD).get(run_id, "")

    def over(self) -> list[str]:
        """Return the latest runs that are over."""
        return [row.run_id for row in self.store.runs(self.folder.place)[:MOST_OVER] if row.state is not RunState.OPEN]

    def leave(self, berth: Berth) -> None:
        """Note that a run's turn is over; the queue is forgotten once all are."""
        place = self.folder.place
        queue = [replace(each, over=each.over or each.run_id == berth.run_id) for each in self.store.queue(place)]
        self.store.set_queue(place, [] if all(each.over for each in queue) else queue)

    def finish(self, berth: Berth, *, learned: bool) -> None:
        """Note that a run is over; `learned` says whether it came to anything."""
        self.store.set_run(berth.run_id, RunState.FINISHED if learned else RunState.FAILED)
        self.hold(berth.run_id, "")
        if not learned:
            berth.checkpoint.remove()
            return
        berth.checkpoint.finish()
        # Only the newest finished runs can be given more rounds.
        kept = {each.run_id for each in self.store.queue(self.folder.place)} | {berth.run_id}
        for row in self.store.runs(self.folder.place):
            if row.state is RunState.FINISHED and row.run_id not in kept:
                self._checkpoint(berth.run, row.run_id).remove()

    def security(self, audit: Audit) -> "Security":
        """Return the coordinator's own authority. Raises `FolderError`, without the library `cryptography` too."""
        with needed(FolderError, "enrollment", "cryptography", "diastole[coordinator]"):
            from diastole.server.security.security import Security
        return Security(self.folder, audit)

    def close(self) -> None:
        """Let another coordinator have the folder."""
        self._open.close()

    def _berth(self, run: Run, queued: Queued | None, rows: dict[str, RunRow], *, fresh: bool) -> Berth:
        """Return where a run is kept: in the place of one that is queued, or behind one that has finished, or anew."""
        row = rows.get(queued.run_id) if queued else None
        if queued and queued.over and queued.label == _of(run):
            return self._made(run, queued.run_id, over=True)
        snapshot = None
        if row is not None:
            snapshot = self._checkpoint(run, row.run_id).check()
            if row.label == _of(run):
                return self._made(run, row.run_id, snapshot)
        elif not fresh:
            snapshot = self._finished(run)
        run_id = uuid.uuid4().hex[:12]
        if snapshot is not None:
            # More rounds for the run before, which from here on this one has no need of.
            self._checkpoint(run, run_id).begin(snapshot)
        self.store.add_run(RunRow(run_id, self.folder.place, _of(run)))
        if row is not None:
            self._drop(run, row)
        return self._made(run, run_id, snapshot)

    def _finished(self, run: Run) -> Snapshot | None:
        """Return what a finished run had come to that is the beginning of this one; None if there is none."""
        for row in self.store.runs(self.folder.place):
            if row.state is RunState.FINISHED:
                checkpoint = self._checkpoint(run, row.run_id)
                if _endless(row.label) == _endless(_of(run)):
                    # A crash may have come between the two.
                    checkpoint.finish()
                    return checkpoint.check()
        return None

    def _drop(self, run: Run, row: RunRow) -> None:
        self.store.set_run(row.run_id, RunState.DROPPED)
        self.hold(row.run_id, "")
        self._checkpoint(run, row.run_id).remove()

    def _made(self, run: Run, run_id: str, snapshot: Snapshot | None = None, *, over: bool = False) -> Berth:
        return Berth(run, run_id, self.folder.run(run_id), self._checkpoint(run, run_id), snapshot, over)

    def _checkpoint(self, run: Run, run_id: str) -> Checkpoint:
        folder = self.folder.run(run_id)
        earlier = Earlier(folder / EARLIER, self._kept)
        return Checkpoint(folder / CHECKPOINT, run.experiment, run.dataset.digest, run_id, earlier)


def _of(run: Run) -> str:
    """Return what tells a run from all others."""
    return label(run.dataset.digest, run.experiment)


def _endless(text: str) -> list[str]:
    """Return a label without what depends on the number of rounds."""
    return text.split(" ")[1:]


def _opened(url: str) -> "SqlStore":
    """Return the store behind a URL. Raises `ExperimentError` without SQLAlchemy, which only coordinators need."""
    with needed(ExperimentError, "a coordinator's state", "SQLAlchemy", "diastole[coordinator]"):
        from diastole.server.store.sql import SqlStore
    return SqlStore(url)
