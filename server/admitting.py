"""Admitting a round's updates: each passes every check, or is refused under its device's name."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from diastole.models.errors import StateError
from diastole.models.method import Method
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Update
from diastole.server.admission import check, expected_state
from diastole.server.link import Declined, Failure
from diastole.server.opened import Opened
from diastole.server.planner import Planner


class Admitting:
    """Checks the updates of a run, and tells its planner how long they took."""

    def __init__(self, method: Method, planner: Planner) -> None:
        """Admit updates of sub-models of `method`, whose sizes are the planner's."""
        self._method, self._planner = method, planner
        self._by_spec = {size.spec: size for size in planner.sizes}
        self._expected = {(spec, ""): expected_state(method, spec) for spec in self._by_spec}

    def admit(
        self,
        opened: Opened,
        outcomes: Iterable[Update | Failure],
        refused: Callable[[Failure], None],
        elapsed: Callable[[], float] = lambda: math.inf,
    ) -> Iterator[Update]:
        """Yield the updates that pass every check; call `refused` for the others.

        The planner learns how long each took, and what a device has too little memory for. `elapsed` returns the
        seconds since the tasks went out: nobody can have trained for longer, whatever the report says.
        """
        tasks = {task.device: task for task in opened.tasks}
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                if outcome.declined is Declined.MEMORY:
                    task = tasks[outcome.device]
                    size, profile = self._by_spec[task.spec], opened.profiles[outcome.device]
                    self._planner.declined(outcome.device, profile, size, task.levers)
                if outcome.faulty and outcome.device in tasks:
                    opened.fail(outcome.device)
                refused(outcome)
                continue
            device, spec, part = outcome.device, outcome.spec, outcome.task.levers.part
            profile, expected = opened.profiles[device], self._like(spec, part)
            try:
                check(outcome, opened.states[spec], expected, profile.examples, len(opened.tasks))
            except StateError as error:
                opened.fail(device)
                refused(Failure(device, str(error), faulty=True))
                continue
            # A little more, because two clocks differ.
            seconds = min(outcome.report.seconds, 1.01 * elapsed() + 0.01)
            self._planner.observe(device, profile, self._by_spec[spec], seconds, outcome.task.levers)
            report = outcome.report
            if report.examples > opened.most:
                report = replace(report, examples=max(1, int(opened.most)))
            opened.passed[device] = report
            # Methods see whole sub-models; what a device does not train, it need not have sent back.
            trained = frozenset(n for n, tensor in expected.items() if tensor.requires_grad) if part else None
            whole = outcome.state.keys() == opened.states[spec].keys()
            state = outcome.state if whole else {**opened.states[spec], **outcome.state}
            yield replace(outcome, state=state, report=report, trained=trained)

    def _like(self, spec: SubModelSpec, part: str) -> State:
        """Return tensors like those of a sub-model, of which a part, or all, is trained."""
        if (spec, part) not in self._expected:
            self._expected[spec, part] = expected_state(self._method, spec, part)
        return self._expected[spec, part]
