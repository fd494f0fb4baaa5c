"""A round that has begun, and what it came to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Report, Task
from diastole.proto.profile import Profile


@dataclass(frozen=True, slots=True)
class Opened:
    """A round that has begun.

    Attributes:
        number: counted from 1.
        tasks: what each device of the cohort is to do.
        states: the state that is sent for each spec; devices with one spec share it.
        profiles: what each device says of itself.
        most: examples that one device counts for at most.
        goal: updates that are enough.
        faulty: devices whose updates were quarantined so far.
        passed: what devices said of the updates that have passed every check so far.

    """

    number: int
    tasks: Sequence[Task]
    states: Mapping[SubModelSpec, State]
    profiles: Mapping[str, Profile]
    most: float = math.inf
    goal: float = math.inf
    faulty: set[str] = field(default_factory=set)
    passed: dict[str, Report] = field(default_factory=dict)

    @property
    def enough(self) -> bool:
        """Whether no more updates are needed."""
        return len(self.passed) >= self.goal

    @property
    def examples(self) -> float:
        """What all devices together count for at most."""
        return sum(min(self.profiles[task.device].examples, self.most) for task in self.tasks)

    def fail(self, device: str) -> None:
        """Note that a device's update was quarantined."""
        self.faulty.add(device)
        self.passed.pop(device, None)


@dataclass(frozen=True, slots=True)
class Closed:
    """What a round came to.

    Attributes:
        updates: how many were folded in.
        abandoned: why the round does not count; empty if it does.
        failed: whether the run cannot go on, for the same reason.
        warnings: what the operator should look at, each one line.

    """

    updates: int
    abandoned: str
    failed: bool = False
    warnings: tuple[str, ...] = ()


def named(tasks: Sequence[Task], run_id: str) -> list[Task]:
    """Return the tasks with the run in their names, because agents may have had tasks of other runs."""
    return [replace(task, task_id=f"{run_id}-{task.task_id}") for task in tasks] if run_id else list(tasks)
