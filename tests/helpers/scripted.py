"""A link whose devices train honestly in the test's own thread, until a test says otherwise."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from diastole.client.training import train
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.models.training import Examples, TrainConfig
from diastole.proto.profile import Profile
from diastole.server.events import Change, Event
from diastole.server.link import Failure, Traffic

MODEL = ModelConfig(name="cnn", input_shape=(1, 8, 8), classes=3, widths=(4, 8))
TRAINING = TrainConfig(batch_size=8)


def examples(count: int = 12, seed: int = 0) -> Examples:
    draws = torch.Generator().manual_seed(seed)
    return Examples(torch.randn(count, 1, 8, 8, generator=draws), torch.randint(0, 3, (count,), generator=draws))


def reported(update: Update, **changes: Any) -> Update:
    return replace(update, report=replace(update.report, **changes))


@dataclass
class ScriptedLink:
    """Trains honestly, then lets `spoil` change what comes back."""

    names: Sequence[str]
    spoil: Callable[[Update], Update | Failure | None] = lambda update: update
    reverse: bool = False
    model: ModelConfig = MODEL
    tasks: list[Task] = field(default_factory=list)
    interrupted: bool = False
    tell: Callable[[Change], None] = lambda event: None

    def devices(self) -> Mapping[str, Profile]:
        return {name: Profile("test", 12) for name in self.names}

    def seen(self) -> Mapping[str, Profile]:
        return self.devices()

    def wait(self, count: int, seconds: float) -> bool:
        return len(self.names) >= count

    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        self.tasks += tasks
        for task in reversed(tasks) if self.reverse else tasks:
            update = train(self.model, task, states[task.spec], examples())
            outcome = self.spoil(reported(update, seconds=0.1))
            if outcome is not None:
                yield outcome

    def enough(self) -> bool:
        return False

    def interrupt(self) -> None:
        self.interrupted = True

    def observe(self, tell: Callable[[Change], None]) -> None:
        self.tell = tell

    def traffic(self) -> Mapping[str, Traffic]:
        return dict.fromkeys(self.names, Traffic(len(self.tasks), 2 * len(self.tasks)))


def only(events: list[Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]
