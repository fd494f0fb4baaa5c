"""What an agent works by and what it tells: the terms of its owner, its progress, and the sum of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from diastole.client.budget import Budget
from diastole.client.choices import Personal
from diastole.client.keeper import SAVE_SECONDS
from diastole.client.statefolder import StateFolder
from diastole.models.training import Examples


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms an agent works.

    Attributes:
        folder: where it keeps things between its starts; None to keep nothing.
        budget: when it may work, and how much of the processor it may take.
        save_seconds: between two saved steps.
        memory: returns the bytes that training may take now; None to announce what the connection's profile says.
        kept: returns the examples that the device keeps for a test and does not train on.
        personal: what the device trains further for itself when the run is over, and keeps in its folder.
        share_scores: whether the coordinator is told how a sub-model does on that test, before and after training.
        share_classes: whether it is told how many examples there are of each class.
        measures: whether the agent measures the device's speeds, unless they are known, while it waits for work.

    """

    folder: StateFolder | None = None
    budget: Budget = field(default_factory=Budget)
    save_seconds: float = SAVE_SECONDS
    memory: Callable[[], int | None] | None = None
    kept: Callable[[], Examples] = Examples.empty
    personal: Personal = "none"
    share_scores: bool = False
    share_classes: bool = False
    measures: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """One thing the agent did, for an observer.

    Attributes:
        round: of the task.
        spec: label of its sub-model; the name of the task if it was declined.
        outcome: empty while the task is being trained; "paused" and "going on" may come in between.
        loss: mean training loss of the last epoch.
        seconds: of training.
        reason: why the task was declined, or the agent paused.

    """

    round: int
    spec: str
    outcome: str = ""
    loss: float = 0.0
    seconds: float = 0.0
    reason: str = ""


@dataclass(slots=True)
class Summary:
    """What the agent did in its life: tasks delivered, and the seconds it trained."""

    delivered: int = 0
    seconds: float = 0.0
