"""A training loop of a user's own, in the place of this project's: a function `fit(module, examples, task)`.

    def fit(module, examples, task):
        optimiser = torch.optim.AdamW(module.parameters(), lr=task.training.learning_rate)
        for batch in torch.randperm(len(examples), generator=task.generator).split(task.training.batch_size):
            loss = task.loss(module, examples.x[batch], examples.y[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return loss.item()

The function finds the module in training mode, with the parameters that the device was sent, and changes them in place.
It returns the mean loss of its last epoch, or None.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diastole.models.allowed import FITS, function
from diastole.models.dropout import draw_from
from diastole.models.errors import ModelError, StateError, StoppedError, brief
from diastole.models.losses import Criterion, is_own
from diastole.models.scoring import evaluate
from diastole.models.seeds import derive_seed, generator
from diastole.models.state import State, check_state
from diastole.models.task import Task
from diastole.models.training import Examples, Step, TrainConfig, loss_of, never
from diastole.proto.errors import DiastoleError

_GLOBAL = threading.RLock()
"""torch's global generator is one for all threads, so only one of them may have it seeded for its task."""


@dataclass(frozen=True, slots=True)
class LocalTask:
    """What a training loop of a user's own is told of its task.

    Attributes:
        training: the settings of training, of which the loop may read any; the learning rate is this round's.
        round: counted from 1.
        device: name of the device.
        seed: seeds every draw of the task.
        generator: seeded by it; the module's own draws come from it too.
        progress: share of the run's rounds that is over, in [0, 1].
        labels: of all examples, int64 `[n]`; none if an example has not just one.

    """

    training: TrainConfig
    round: int
    device: str
    seed: int
    generator: torch.Generator
    progress: float
    labels: Tensor

    @property
    def criterion(self) -> Criterion:
        """The loss of the run: `criterion.mean(outputs, y)`, and `criterion.each(outputs, y)` for each example."""
        return self.training.criterion.balanced(self.labels)

    def loss(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the scalar that this project's own loop lowers: the method's loss if it has one, or else the run's."""
        step = Step(self.generator, self.progress, self.labels, self.criterion)
        return loss_of(module, Examples(x, y), step)


def find_fit(name: str) -> Callable[..., Any]:
    """Return a training loop: a user's own, "package.module:function", or one of an installed package, by name.

    Raises `ModelError` if nobody has allowed it, or if it cannot be imported.
    """
    return function("fit", name) if is_own(name) else FITS[name]


def fit_by_own(
    module: nn.Module, examples: Examples, task: Task, state: State, stopped: Callable[[], bool] = never
) -> float:
    """Train `module` in place by the function that `task.training.fit` names, and return its mean loss.

    For as long as the function runs, torch's global generator is seeded by the task. If the function returns None, the
    loss is that of the trained module on the examples. Values are the coordinator's to judge, as in any update.

    Args:
        module: to train, in training mode.
        examples: to train on.
        task: names the function, and seeds every draw.
        state: the parameters that the device was sent.
        stopped: asked before each forward pass whether to stop.

    Raises `ModelError` if the function cannot be imported, raises anything, returns no number, or leaves other
    parameters than it was given, and `StoppedError` if it is stopped.

    """
    name = task.training.fit
    called = find_fit(name)
    if not len(examples):
        return 0.0
    draws, criterion = generator(task.seed), task.training.criterion
    local = LocalTask(
        task.training.at(task.progress),
        task.round,
        task.device,
        task.seed,
        draws,
        task.progress,
        criterion.labels(examples.y),
    )
    module.train()
    draw_from(module, draws)

    def look(*_: object) -> None:
        if stopped():
            raise StoppedError("training was stopped")

    looking = module.register_forward_pre_hook(look)
    device = examples.x.device
    with _GLOBAL, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(task.seed, "global"))
        try:
            # Copies: what is changed in place here would be what the device has in every later round.
            found = called(module, Examples(examples.x.clone(), examples.y.clone()), local)
        except DiastoleError:
            raise
        except Exception as error:
            raise ModelError(f"fit {name}: {brief(error)}") from error
        finally:
            looking.remove()
    _check_left(name, module, state)
    if found is None:
        return evaluate(module, examples, criterion, ()).loss
    try:
        return float(found.detach() if isinstance(found, Tensor) else found)
    except (TypeError, ValueError, RuntimeError):
        raise ModelError(f"fit {name} returns a {type(found).__name__}; expected the mean loss, or None") from None


def _check_left(name: str, module: nn.Module, state: State) -> None:
    # The values take no part, nor any memory.
    left = {key: tensor.new_zeros(()).expand(tensor.shape) for key, tensor in module.named_parameters()}
    try:
        check_state(left, state)
    except StateError as error:
        raise ModelError(f"fit {name} leaves other parameters than it was given: {error}") from None
