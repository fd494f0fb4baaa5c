"""The journal of a run: what has gone out in the open round and what has come back, so that a new process goes on."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from diastole.models.levers import Levers
from diastole.models.methods.registry import read_spec
from diastole.models.spec import SubModelSpec
from diastole.models.task import Report, Task
from diastole.proto.errors import DiastoleError
from diastole.proto.files import sync_folder
from diastole.proto.jsontext import from_json
from diastole.proto.profile import Profile
from diastole.server.errors import StoreError
from diastole.server.events import RoundClosed
from diastole.server.link import Declined, Failure
from diastole.server.store.record import recorded
from diastole.server.store.store import Assigned, Outcome, RoundRow, Settled, Store

_REPORT, _PROFILE = TypeAdapter(Report), TypeAdapter(Profile)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a device was given in the open round, and what has come of it so far.

    Attributes:
        spec: its sub-model.
        levers: with which it trains.
        profile: what it said of itself when the round was planned.
        update: the file of its accepted update, and its report; None if there is none.
        failure: why there will be no update; None if there is one, or if the device still owes it.
        taken: whether the device has been told that its update was accepted.

    """

    spec: SubModelSpec
    levers: Levers
    profile: Profile
    update: tuple[Path, Report] | None = None
    failure: Failure | None = None
    taken: bool = False

    @property
    def owed(self) -> bool:
        """Whether the device still owes its update."""
        return self.update is None and self.failure is None


@dataclass(frozen=True, slots=True)
class Reopened:
    """A round that an earlier process had opened.

    Attributes:
        number: of the round.
        planner: the planner's memory, with what planning this round had made of it.
        kept: each device's part.
        began: when the round was planned, in seconds of the Unix epoch.

    """

    number: int = 0
    planner: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, Kept] = field(default_factory=dict)
    began: float = 0.0


class Journal:
    """Writes down a run's open round before anything goes out, and each update before its device is told.

    `reopened` is the round that an earlier process had opened; one without devices if there is none. A kill at any
    moment costs nothing that was written down here. Everything about a round is removed once the model after it is
    kept, but for the answers to late uploads (`KEPT_ROUNDS`).
    """

    def __init__(self, store: Store, run_id: str, objects: Path, closed: int, rollbacks: int = 0) -> None:
        """Go on with a run of which `closed` rounds are closed.

        Args:
            store: the database.
            run_id: of the run.
            objects: folder for the updates of the open round, which are named by their digests.
            closed: rounds whose model is kept.
            rollbacks: how often the run was rolled back.

        Raises `StoreError` if the database cannot be read, or has a round that is none.

        """
        self.run_id, self._store, self._objects, self._rollbacks = run_id, store, objects, rollbacks
        objects.mkdir(parents=True, exist_ok=True)
        self.number = closed + 1
        row = store.round(run_id, self.number)
        self.reopened = Reopened()
        try:
            said = from_json(row.planner) if row else {}
            if said.get("rollbacks", 0) != rollbacks:
                # Of before the last rollback, which a kill may have cut short; what is not open is undone too.
                store.roll_back(run_id, closed)
            elif row is not None:
                kept = {each.device: self._kept(each, row.settled.get(each.device)) for each in row.assigned}
                self.reopened = Reopened(row.number, said["memory"], kept, said["began"])
        except (DiastoleError, ValueError, KeyError, TypeError):
            raise StoreError(
                f"round {self.number} of run {run_id} cannot be read in the database; start afresh (--fresh)"
            ) from None
        needed = {each.update[0] for each in self.reopened.kept.values() if each.update}
        self._prune(needed)

    @property
    def names(self) -> tuple[str, ...]:
        """How the names of the run's tasks begin: those of today, and those of before each rollback, the last first."""
        return (*(f"{self.run_id}.{number}" for number in range(self._rollbacks, 0, -1)), self.run_id)

    def recall(self, closed: RoundClosed) -> None:
        """Write the last closed round down, if a kill has come between its model and that."""
        row = self._store.round(self.run_id, closed.round)
        kept = (each.number for each in self._store.records(self.run_id) if not each.undone)
        if row is not None and closed.round not in kept:
            self._record(closed, row)

    def past(self) -> Mapping[str, bool]:
        """Return the devices of the round before, and whether an update of theirs was accepted."""
        row = self._store.round(self.run_id, self.number - 1)
        if row is None:
            return {}
        taken = {name for name, each in row.settled.items() if each.sha256}
        return {each.device: each.device in taken for each in row.assigned}

    def open(
        self, number: int, planner: Mapping[str, Any], tasks: Sequence[Task], profiles: Mapping[str, Profile]
    ) -> None:
        """Write down a round that is planned, before its tasks go out."""
        rows = [
            Assigned(
                task.device,
                task.spec.to_json(),
                task.levers.to_json(),
                _text(profiles[task.device]),
            )
            for task in tasks
        ]
        planned = {"memory": dict(planner), "began": time.time(), "rollbacks": self._rollbacks}
        self._store.open_round(self.run_id, number, json.dumps(planned), rows)

    def accept(self, task: Task, part: Path, sha256: str, size: int, report: Report) -> Path:
        """Write down that an update has come, and return where its file is from now on.

        When this returns, neither a kill nor a power cut loses the update. Raises `OSError` and `StoreError`.
        """
        path = self._objects / sha256
        file = os.open(part, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
        part.replace(path)
        sync_folder(self._objects)
        text = _text(report)
        settled = Settled(task.device, Outcome.ACCEPTED, sha256=sha256, size=size, report=text)
        self._store.settle(self.run_id, task.round, [settled])
        return path

    def fail(self, number: int, failure: Failure) -> None:
        """Write down that a device's task brings no update, or one that must not be folded in."""
        outcome = Outcome.DECLINED if failure.declined else Outcome.LOST
        if failure.faulty:
            outcome = Outcome.QUARANTINED
        row = Settled(failure.device, outcome, failure.reason, failure.declined or "")
        self._store.settle(self.run_id, number, [row])

    def close(self, closed: RoundClosed) -> None:
        """Write down what a round came to, now that the model after it is kept."""
        self._record(closed, self._store.round(self.run_id, closed.round))
        self.number, self.reopened = closed.round + 1, Reopened()
        self._prune(set())

    def expected(self) -> Mapping[str, Profile]:
        """Return the devices of the open round, but for those that will bring nothing."""
        return {name: each.profile for name, each in self.reopened.kept.items() if each.failure is None}

    def _record(self, closed: RoundClosed, row: RoundRow | None) -> None:
        self._store.record(self.run_id, recorded(closed, row))
        self._store.close_round(self.run_id, closed.round, closed.updates, closed.abandoned)

    def _kept(self, row: Assigned, settled: Settled | None) -> Kept:
        spec, levers, profile = (
            read_spec(row.spec),
            Levers.from_json(row.levers),
            _PROFILE.validate_python(from_json(row.profile)),
        )
        if settled is None:
            return Kept(spec, levers, profile)
        if settled.outcome is Outcome.ACCEPTED:
            path = self._objects / settled.sha256
            # Somebody has removed the file: the device is asked again.
            there = path.is_file() and path.stat().st_size == settled.size
            update = (path, _REPORT.validate_python(from_json(settled.report))) if there else None
            return Kept(spec, levers, profile, update, taken=there)
        faulty, why = settled.outcome is Outcome.QUARANTINED, settled.why
        return Kept(
            spec,
            levers,
            profile,
            failure=Failure(row.device, settled.reason, faulty=faulty, declined=Declined(why) if why else None),
            taken=bool(settled.sha256),
        )

    def _prune(self, needed: set[Path]) -> None:
        for path in self._objects.iterdir():
            if path not in needed:
                path.unlink(missing_ok=True)


def _text(value: Report | Profile) -> str:
    """Return a value as JSON, with numbers that are not finite: a device may report any."""
    return json.dumps(asdict(value))
