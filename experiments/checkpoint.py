"""Going on with a run whose process was killed, or that is to have more rounds."""

import hashlib
import importlib.util
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment
from diastole.experiments.initial import digest
from diastole.models.state import State
from diastole.server.checkpoints import Earlier
from diastole.server.snapshot import Snapshot


def label(data: str, *experiments: Experiment) -> str:
    """Return what tells a run of these experiments from every other: hashes of all that decides it.

    Of what an experiment only names, the data, the code of a custom model and the weights to start from, the content
    counts and not the name; `data` is the data set's digest. The second hash is as the first, but for the number of
    rounds.
    """
    endless = [each.model_copy(update={"rounds": replace(each.rounds, count=0)}) for each in experiments]
    texts = [" ".join([version("diastole"), *(e.model_dump_json() for e in es)]) for es in (experiments, endless)]
    named = [name for each in experiments for name in (each.model.factory, *each.functions)]
    code = " ".join(dict.fromkeys(map(_source, named)))
    start = " ".join(dict.fromkeys(digest(experiment) for experiment in experiments)).strip()
    parts = (*texts, data, code, start) if start else (*texts, data, code)
    return " ".join(hashlib.sha256(part.encode()).hexdigest() for part in parts)


class OtherRunError(ExperimentError):
    """A run of another experiment, or on other data, where this one was looked for."""


def refuse_other(found: str, wanted: str, what: str) -> None:
    """Raise `OtherRunError` if a run that was found is not the one that is to go on; `what` names it."""
    if found == wanted:
        return
    same = [a == b for a, b in zip(found.split(" "), wanted.split(" "), strict=False)]
    why = "was of another experiment"
    if len(same) > 2 and all(same[:2]):
        others = ("on other data; the data set has changed", "of other code, which has changed", "from other weights")
        why = f"was {others[same.index(False) - 2]}"
    raise OtherRunError(f"{what} {why}; start afresh (--fresh) or choose another folder")


FREE, SHARE = 1.0, 0.05
"""Seconds of writing that any run may spend, and of a longer one the share of its time."""


class Checkpoint:
    """Keeps a coordinator's last closed round in a file, and the last few in files of their own.

    A run that went on from its checkpoint ends with the bits of one that was never stopped. So does one that is given
    more rounds, unless the method depends on their number. What a finished run had come to lies in a file beside.
    """

    def __init__(
        self,
        path: Path,
        experiment: Experiment,
        data: str,
        run_id: str = "",
        earlier: Earlier | None = None,
        *,
        sparing: bool = False,
    ) -> None:
        """Use the file at `path`, which belongs to `experiment` on the data of this digest and to no other.

        `earlier` keeps those of the last few rounds; without it none is kept. With `sparing`, rounds are left out where
        writing them all would take more than `SHARE` of the time: a run that is killed goes on from an earlier round,
        to the same bits. Who spares calls `flush` behind the last round.
        """
        self._run_id, self._earlier, self._sparing = run_id, earlier, sparing
        self._began, self._spent, self._written = time.monotonic(), 0.0, 0
        self._path, self._finished = path, path.with_suffix(".finished")
        self._experiment, self._label = experiment, label(data, experiment)
        self.extra: Callable[[], tuple[Mapping[str, Any], State]] = lambda: ({}, {})
        """Returns what else must not be lost, as JSON and tensors."""

    def check(self) -> Snapshot | None:
        """Return what the run goes on from: what is in the file, or what it had finished with; None for neither.

        A finished run that is not the beginning of this one is as good as none. Raises `ExperimentError` if the file is
        of another experiment, or if the run cannot be given more rounds, and `SnapshotError` if a file cannot be read.
        """
        if self._path.exists():
            return self._read(self._path)
        with suppress(OtherRunError):
            return self._read(self._finished) if self._finished.exists() else None
        return None

    def keep(self, snapshot: Snapshot) -> None:
        """Write a snapshot of a round that has closed, unless that is left out."""
        began = time.monotonic()
        if self._sparing and self._spent > FREE + SHARE * (began - self._began):
            return
        extra, tensors = self.extra()
        replace(snapshot, extra=extra, tensors=tensors).write(self._path, self._label, self._run_id)
        self._spent, self._written = self._spent + time.monotonic() - began, len(snapshot.closed)
        if self._earlier:
            self._earlier.keep(self._path, len(snapshot.closed))

    def flush(self, snapshot: Snapshot) -> None:
        """Write the last round, if it was left out."""
        if self._sparing and len(snapshot.closed) > self._written:
            self._sparing = False
            self.keep(snapshot)

    def earlier(self, number: int) -> Snapshot:
        """Return what was kept behind round `number`. Raises `ExperimentError`, and `SnapshotError`."""
        kept = self._earlier.numbers() if self._earlier else []
        if self._earlier is None or number not in kept:
            numbers = ", ".join(map(str, kept)) or "none"
            raise ExperimentError(f"of round {number} no checkpoint is kept; rounds that have one: {numbers}")
        path = self._earlier.path(number)
        return Snapshot.read(path, lambda found: refuse_other(found, self._label, str(path)))

    def roll_back(self, snapshot: Snapshot) -> None:
        """Write what the run goes on from, which is an earlier round of its own."""
        self.begin(snapshot)
        if self._earlier:
            self._earlier.forget(len(snapshot.closed))

    def begin(self, snapshot: Snapshot) -> None:
        """Write what the run goes on from, which was another run's."""
        snapshot.write(self._path, self._label, self._run_id)

    def finish(self) -> None:
        """Lay the file aside: what the run came to is written, and it may be given more rounds later."""
        if self._path.exists():
            self._path.replace(self._finished)

    def remove(self) -> None:
        """Remove what is kept of the run, which is to start afresh."""
        for path in (self._path, self._finished):
            path.unlink(missing_ok=True)
        if self._earlier:
            self._earlier.forget(-1)

    def _read(self, path: Path) -> Snapshot | None:
        """Return what a file has of this run; None for a finished run that has no fewer rounds.

        Raises `OtherRunError` for another run, `ExperimentError` if the run cannot be given more rounds.
        """
        what, labels, (_, *wanted) = f"{path}: the unfinished run there", list[str](), self._label.split(" ")

        def check(found: str) -> None:
            labels.append(found)
            if found.split(" ")[1:] != wanted:
                refuse_other(found, self._label, what)

        snapshot, experiment = Snapshot.read(path, check), self._experiment
        rounds, same = experiment.rounds, labels == [self._label]
        if same or len(snapshot.closed) >= rounds.count:
            if path == self._finished:
                return None
            refuse_other(labels[0], self._label, what)
            return snapshot
        if experiment.scheduled:
            schedule = experiment.schedule
            which = f"with training.schedule {schedule}" if schedule else f"of method {experiment.method}"
            raise ExperimentError(
                f"{path}: the run there cannot go on to {rounds.count} rounds, because the rounds {which} depend on "
                "how many there are; start afresh (--fresh) or choose another folder"
            )
        # What was only evaluated because it was the last.
        closed = [
            each
            if each.round % rounds.evaluate_every == 0
            else replace(each, scores=None, tier_scores={}, validation=None)
            for each in snapshot.closed
        ]
        return replace(snapshot, closed=closed)


def _source(factory: str) -> str:
    """Return the text of the file that makes a custom model; empty if there is none, or no file."""
    place = factory.partition(":")[0]
    if not place:
        return ""
    try:
        found = importlib.util.find_spec(place)
        return Path(found.origin).read_text() if found and found.origin else ""
    except Exception:  # noqa: BLE001 (the user's code may raise anything; making the model will say what)
        return ""
