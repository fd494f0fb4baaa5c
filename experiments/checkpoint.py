"""Going on with a run whose process was killed."""

import hashlib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment
from diastole.server.coordinator import Coordinator
from diastole.server.events import Event, RoundClosed
from diastole.server.snapshot import Snapshot
from diastole.simulations.field.clock import FieldLink


def label(*experiments: Experiment) -> str:
    """Return what tells a run of these experiments from every other: a hash of all that decides it."""
    text = " ".join([version("diastole"), *(experiment.model_dump_json() for experiment in experiments)])
    return hashlib.sha256(text.encode()).hexdigest()


class Checkpoint:
    """Keeps a coordinator's last closed round in a file; observes it, and may set it back on its way first.

    A run that went on from its checkpoint ends with the bits of one that was never stopped.
    """

    def __init__(self, path: Path, experiment: Experiment) -> None:
        """Use the file at `path`, which belongs to `experiment` and to no other."""
        self._path = path
        self._label = label(experiment)
        self._coordinator: Coordinator | None = None
        self._field: FieldLink | None = None

    def attach(self, coordinator: Coordinator, field: FieldLink | None = None) -> None:
        """Go on from the file if there is one, and write it after every round from now on.

        `field` is the coordinator's link if the experiment has a population; its clock and batteries go on too.

        Raises `ExperimentError` if the file is of another experiment, `SnapshotError` if it cannot be read.
        """
        snapshot = self.check()
        if snapshot is not None:
            coordinator.resume(snapshot)
            if field is not None:
                field.resume(snapshot.extra)
        self._coordinator, self._field = coordinator, field
        coordinator.observe(self)

    def check(self) -> Snapshot | None:
        """Return what is in the file, or None if there is none.

        Raises `ExperimentError` if the file is of another experiment, `SnapshotError` if it cannot be read.
        """
        if not self._path.exists():
            return None
        snapshot, found = Snapshot.read(self._path)
        if found != self._label:
            raise ExperimentError(
                f"{self._path} is an unfinished run of another experiment; "
                "start afresh with --fresh or choose another folder"
            )
        return snapshot

    def __call__(self, event: Event) -> None:
        """Write the file when a round has closed."""
        if isinstance(event, RoundClosed) and self._coordinator is not None:
            snapshot = self._coordinator.snapshot()
            if self._field is not None:
                snapshot = replace(snapshot, extra=self._field.memory())
            snapshot.write(self._path, self._label)

    def remove(self) -> None:
        """Remove the file: what the run came to is written, or it is to start afresh."""
        self._path.unlink(missing_ok=True)
