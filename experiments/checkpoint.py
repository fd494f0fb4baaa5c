"""Going on with a run whose process was killed."""

import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment
from diastole.experiments.initial import digest
from diastole.server.snapshot import Snapshot


def label(data: str, *experiments: Experiment) -> str:
    """Return what tells a run of these experiments from every other: hashes of all that decides it.

    Of what an experiment only names, the data, the code of a custom model and the weights to start from, the content
    counts and not the name; `data` is the data set's digest.
    """
    text = " ".join([version("diastole"), *(experiment.model_dump_json() for experiment in experiments)])
    named = [name for each in experiments for name in (each.model.factory, *each.functions)]
    code = " ".join(dict.fromkeys(map(_source, named)))
    start = " ".join(dict.fromkeys(digest(experiment) for experiment in experiments)).strip()
    parts = (text, data, code, start) if start else (text, data, code)
    return " ".join(hashlib.sha256(part.encode()).hexdigest() for part in parts)


def refuse_other(found: str, wanted: str, what: str) -> None:
    """Raise `ExperimentError` if a run that was found is not the one that is to go on; `what` names it."""
    if found == wanted:
        return
    same = [a == b for a, b in zip(found.split(" "), wanted.split(" "), strict=False)]
    why = "was of another experiment"
    if len(same) > 2 and same[0]:
        others = ("on other data; the data set has changed", "of other code, which has changed", "from other weights")
        why = f"was {others[same.index(False) - 1]}"
    raise ExperimentError(f"{what} {why}; start afresh (--fresh) or choose another folder")


class Checkpoint:
    """Keeps a coordinator's last closed round in a file.

    A run that went on from its checkpoint ends with the bits of one that was never stopped.
    """

    def __init__(self, path: Path, experiment: Experiment, data: str) -> None:
        """Use the file at `path`, which belongs to `experiment` on the data of this digest and to no other."""
        self._path = path
        self._label = label(data, experiment)
        self.extra: Callable[[], Mapping[str, Any]] = dict
        """Returns what else must not be lost, as JSON."""

    def check(self) -> Snapshot | None:
        """Return what is in the file, or None if there is none.

        Raises `ExperimentError` if the file is of another experiment, `SnapshotError` if it cannot be read.
        """
        if not self._path.exists():
            return None
        what = f"{self._path}: the unfinished run there"
        return Snapshot.read(self._path, lambda found: refuse_other(found, self._label, what))

    def keep(self, snapshot: Snapshot) -> None:
        """Write a snapshot of a round that has closed."""
        replace(snapshot, extra=self.extra()).write(self._path, self._label)

    def remove(self) -> None:
        """Remove the file: what the run came to is written, or it is to start afresh."""
        self._path.unlink(missing_ok=True)


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
