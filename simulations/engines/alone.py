"""Training one device by itself, with the code that a device agent runs."""

from collections.abc import Callable
from dataclasses import replace

import torch

from diastole.models.crossing import device_of, on_card, send_all
from diastole.models.errors import BatchError
from diastole.models.networks.config import ModelConfig
from diastole.models.rows import Stack
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.models.training import Examples
from diastole.server.link import Failure

Train = Callable[[ModelConfig, Task, State, Examples], Update]


def train_alone(
    train: Train, model: ModelConfig, task: Task, state: State, examples: Examples, place: torch.device
) -> Update | Failure:
    """Train a task at a place, where its examples are; the update is where the state is that was dispatched.

    What the coordinator asks of an update on a card is asked in one transfer, as of devices that train together.
    """
    try:
        # A module lives where the state that is assigned to it lives.
        update = train(model, task, send_all(state, place), examples)
    except BatchError as error:
        return Failure(task.device, str(error), faulty=True)
    trained = send_all(update.state, device_of(state))
    if on_card(*trained.values()):
        stack, _ = Stack.of({name: tensor[None] for name, tensor in trained.items()}, state)
        (trained,) = stack.rows()
    return replace(update, state=trained)
