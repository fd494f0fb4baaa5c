"""What the rounds of a run have taught of whom to trust."""

from collections.abc import Mapping
from typing import Any

from diastole.server.admission import AdmissionConfig
from diastole.server.history import History
from diastole.server.opened import Opened
from diastole.server.robust.norms import PAST, Norms
from diastole.server.suspensions import Suspensions


class Trust:
    """Alarms in a row, the lengths of past updates, what devices brought, and who is kept out.

    Attributes:
        alarms: rounds in a row most of whose updates were quarantined.
        norms: medians of the lengths of past rounds' updates, the latest last.
        highest: of the medians of all of them.
        history: what samplers know.
        suspensions: who is kept out.

    """

    def __init__(self, admission: AdmissionConfig) -> None:
        self._admission = admission
        self.alarms, self.norms, self.highest, self.history = 0, list[float](), 0.0, History()
        self.suspensions = Suspensions(admission.offences, admission.suspension)

    def count(self, opened: Opened, norms: Norms) -> tuple[str, ...]:
        """Note a round that counts, and return what the operator should look at."""
        self.alarms = 0
        self.history.note(opened.number, (task.device for task in opened.tasks), opened.passed)
        if median := norms.median():
            self.norms, self.highest = [*self.norms, median][-PAST:], max(self.highest, median)
        suspended = self.suspensions.note(opened.number, opened.faulty - opened.passed.keys(), opened.passed)
        warnings = [f"{device}: {each}" for device, each in suspended.items()]
        if self._admission.fold == "mean" and (found := norms.outweighing(opened.passed)):
            warnings.append(found)
        return tuple(warnings)

    def memory(self) -> dict[str, Any]:
        """Return all of it, as JSON."""
        parts = {"history": self.history.memory(), "suspensions": self.suspensions.memory()}
        return {"alarms": self.alarms, "norms": self.norms, "highest": self.highest, **parts}

    def resume(self, memory: Mapping[str, Any]) -> None:
        """Go on with another run's `memory()`; an older one lacks what was not learned then."""
        self.alarms, self.norms = memory["alarms"], list(memory["norms"])
        self.highest = memory.get("highest", max(self.norms, default=0.0))
        self.history.resume(memory.get("history", {}))
        self.suspensions.resume(memory.get("suspensions", {}))
