"""Training and evaluating one module on one set of examples."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from sys import float_info
from typing import Annotated, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from diastole.models.allowed import check_fit
from diastole.models.augment import Mixed, changed, parse
from diastole.models.batches import cuts, least_batch
from diastole.models.crossing import counted, number, send
from diastole.models.dropout import draw_from
from diastole.models.errors import BatchError, ModelError, StoppedError, brief
from diastole.models.gradients import gradients, kept
from diastole.models.late import Late
from diastole.models.levers import NO_LEVERS, Levers, check_choices
from diastole.models.losses import Criterion, check_settings, is_own
from diastole.models.schedule import CONSTANT, check_schedule, share_of_rate
from diastole.models.spec import STRICT, one_line
from diastole.models.steps import buffers, step
from diastole.models.trainstate import TrainState
from diastole.proto.errors import DiastoleError

LONGEST_JSON = 1 << 21
"""The most characters of a configuration as JSON: that of as many class weights as there may be."""

MOST, LARGEST = 1 << 30, 1e9
"""The most epochs and examples a step, and the largest factor: torch refuses factors that a float32 cannot hold."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples and their targets.

    Attributes:
        x: `[n, *input_shape]`, float32, or int64 for tokens.
        y: `[n, ...]`: labels int64 `[n]`, classes of places int64 `[n, *places]` (`losses.IGNORED` counts for nothing),
            or values float32.

    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    @staticmethod
    def empty() -> "Examples":
        """Return no examples."""
        return Examples(torch.empty(0), torch.empty(0, dtype=torch.int64))

    def subset(self, index: Tensor) -> "Examples":
        """Return the examples at `index`, int64 `[m]`."""
        index = send(index, self.y.device)
        return Examples(self.x[index], self.y[index])

    def to(self, dtype: torch.dtype) -> "Examples":
        """Return the same examples, with inputs of a type."""
        return Examples(self.x.to(dtype), self.y)

    def on(self, device: torch.device) -> "Examples":
        """Return the examples on a device; what is on the CPU may stay in its file until it is asked for."""
        return self if self.y.device == device else Examples(send(self.x, device), send(self.y, device))

    def part(self, start: int, stop: int) -> "Examples":
        """Return the examples from `start` to before `stop`; nothing is copied."""
        return Examples(self.x[start:stop], self.y[start:stop])


@validated(frozen=True, slots=True, config=STRICT)
class TrainConfig:
    """How a device trains: the optimiser is made anew for each task.

    Attributes:
        epochs: passes over the local examples in one task.
        batch_size: examples a step; the last batch of an epoch may be smaller.
        learning_rate: of the optimiser.
        momentum: of SGD; Adam ignores it.
        weight_decay: L2 penalty.
        optimiser: "sgd" or "adam".
        loss: what is lowered: a name of `models/losses.py`, or a user's own function "package.module:function", which
            takes the outputs and the targets of a batch and returns the loss of each example, or their mean.
        smoothing: label smoothing (Szegedy et al., CVPR 2016), in [0, 1); "cross-entropy" and "next-token" only.
        class_weights: what an example's loss is multiplied by, for each class; for each label of "multi-label". The
            loss of a batch is the mean over its examples, and not, as in torch, over their weights.
        delta: where "huber" turns from squares to distances.
        balance: how far the loss on a device makes up for its own mix of labels: 0 not at all, 1 in full (the balanced
            softmax, `models/balance.py`); one class an example only. None: as the recipe says, or else 0.
        clip: the largest L2 norm of the gradient of a step, of all weights together; 0 for any. None: as the recipe
            says, or else 0.
        schedule: how the learning rate falls over the rounds of the run (`models/schedule.py`): "constant", "cosine",
            "step:0.5,0.75" or "exponential:0.1". None: as the recipe says, or else constant.
        augment: how devices change the examples of each step, in this order: "name" or "name:strength" of
            `models/augment.py`.
        fit: the training loop of devices in the place of this project's: a user's own, "package.module:function", or
            one of an installed package, by name (`client/own_fit.py`).
        levers: what the coordinator may use where a sub-model does not fit a device's memory (`models/levers.py`).
        parts: what a device may train alone where it cannot train all (`models/parts.py`), in order of preference.
        parts_first: whether a part of a larger sub-model comes before all of a smaller one.

    """

    epochs: int = Field(default=1, ge=1, le=MOST)
    batch_size: int = Field(default=32, ge=1, le=MOST)
    learning_rate: float = Field(default=0.05, gt=0, le=LARGEST)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=LARGEST)
    optimiser: Literal["sgd", "adam"] = "sgd"
    loss: str = Field(default="cross-entropy", max_length=300)
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: tuple[Annotated[float, Field(ge=0, le=LARGEST)], ...] = Field(default=(), max_length=1 << 16)
    delta: float = Field(default=1.0, gt=0, le=LARGEST)
    balance: float | None = Field(default=None, ge=0, le=LARGEST)
    clip: float | None = Field(default=None, ge=0, le=LARGEST)
    schedule: str | None = Field(default=None, max_length=200)
    augment: tuple[Annotated[str, Field(max_length=64)], ...] = Field(default=(), max_length=16)
    fit: str = Field(default="", max_length=300)
    levers: tuple[Annotated[str, Field(max_length=64)], ...] = Field(default=(), max_length=16)
    parts: tuple[Annotated[str, Field(max_length=64)], ...] = Field(default=(), max_length=16)
    parts_first: bool = False

    def __post_init__(self) -> None:
        """Raise `ValueError` for a name that is not known, and for a setting that nobody would read."""
        check_settings(self)
        for each in self.augment:
            parse(each)
        if self.schedule is not None:
            check_schedule(self.schedule)
        check_fit(self.fit)
        if self.fit and self.augment:
            raise ValueError("augment: a training loop of one's own changes examples itself; leave out augment or fit")
        check_choices(self.levers, self.parts, self.fit)

    @property
    def criterion(self) -> Criterion:
        """The loss."""
        return Criterion(self)

    @property
    def plain(self) -> bool:
        """Whether a step takes a multiple of the gradients from the weights, and nothing else."""
        return self.optimiser == "sgd" and not (self.momentum or self.weight_decay or self.clip)

    @property
    def functions(self) -> tuple[str, ...]:
        """The user's own functions that it names."""
        return tuple(name for name in (self.loss, self.fit) if is_own(name))

    @property
    def told(self) -> "TrainConfig":
        """What a device is told: its levers, not which ones there were."""
        return replace(self, levers=(), parts=(), parts_first=False)

    @property
    def scheduled(self) -> bool:
        """Whether the learning rate depends on how many rounds the run has."""
        return self.schedule not in (None, CONSTANT)

    def at(self, progress: float) -> "TrainConfig":
        """Return how devices train in a round, once a share of the run's rounds is over: with that round's rate."""
        if not self.scheduled:
            return self
        rate = self.learning_rate * share_of_rate(str(self.schedule), progress)
        return replace(self, learning_rate=max(float_info.min, rate), schedule=None)

    def to_json(self) -> str:
        """Return the configuration as compact JSON, without the later settings where they have their defaults."""
        plain = {name for name in LATER if getattr(self, name) == getattr(_PLAIN, name)}
        return _ADAPTER.dump_json(self, exclude=plain).decode()

    @staticmethod
    def from_json(text: str) -> "TrainConfig":
        """Parse what `to_json` wrote. Raises `ModelError`."""
        if len(text) > LONGEST_JSON:
            raise ModelError(f"training of {len(text)} characters; at most {LONGEST_JSON} are accepted")
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise ModelError(f"training {text[:200]!r}: {one_line(error)[:1000]}") from None


LATER = (
    "loss",
    "smoothing",
    "class_weights",
    "delta",
    "balance",
    "clip",
    "schedule",
    "augment",
    "fit",
    "levers",
    "parts",
    "parts_first",
)
_ADAPTER = TypeAdapter(TrainConfig)
_PLAIN = TrainConfig()


@dataclass(frozen=True, slots=True)
class Step:
    """What an objective may depend on beside its batch.

    Attributes:
        draws: the generator of every random draw of the task.
        progress: the share of the run's rounds that is over, in [0, 1]; a scalar on a card where devices train
            together, so that no step waits for it.
        labels: of all of the task's examples, int64 `[n]`; none if an example has not just one. Where devices train
            together they are filled up with -1.
        criterion: the loss of the run, of outputs and targets, balanced by the labels if the run asks for that.

    """

    draws: torch.Generator
    progress: float | Tensor = 0.0
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    criterion: Criterion = field(default_factory=lambda: _PLAIN.criterion)

    def __post_init__(self) -> None:
        """Balance the loss by the labels."""
        object.__setattr__(self, "criterion", self.criterion.balanced(self.labels))

    def pick(self, count: int) -> int:
        """Return a number below `count`, drawn uniformly."""
        return int(torch.randint(count, (), generator=self.draws))


class Objective(nn.Module, ABC):
    """A module with a loss of its own: a subclass, so that no name of an attribute can be met by accident.

    Any other module is trained by the run's loss, even if it has attributes of these names.
    """

    draws: int = 1
    """The number of choices of the objective's `Step.pick`, if it picks; costs are means over all of them."""

    learns: bool = True
    """Whether a step lowers anything. If not, devices show it their examples as they are, by this project's loop."""

    @abstractmethod
    def loss(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Return the scalar that a training step lowers."""


def loss_of(module: nn.Module, batch: Examples, step: Step) -> Tensor:
    """Return an `Objective`'s own loss on a batch, or any other module's mean loss."""
    if isinstance(module, Objective):
        return module.loss(batch.x, batch.y, step)
    return step.criterion.mean(outputs_of(module, batch.x), batch.y)


def outputs_of(module: nn.Module, x: Tensor) -> Tensor:
    """Return a module's outputs `[n, ...]`, even if it drops the first axis when there is only one example."""
    outputs: Tensor = module(x)
    if not isinstance(outputs, Tensor) or len(x) != 1:
        return outputs
    return outputs[None] if outputs.ndim <= 1 and outputs.shape != (1,) else outputs


def learns(module: nn.Module) -> bool:
    """Return whether training a module lowers anything."""
    return not isinstance(module, Objective) or module.learns


def never() -> bool:
    """Return False: nothing stops the training."""
    return False


def fit(
    module: nn.Module,
    examples: Examples,
    config: TrainConfig,
    generator: torch.Generator,
    progress: float = 0.0,
    changes: torch.Generator | None = None,
    stopped: Callable[[], bool] = never,
    between: Callable[[TrainState], None] = lambda state: None,
    saved: Mapping[str, Tensor] | None = None,
    levers: Levers = NO_LEVERS,
) -> float:
    """Train `module` in place by `loss_of` and return the mean loss of the last epoch.

    Every draw, such as the order of the examples, comes from `generator`. If the module normalises examples by their
    batch, a last batch of one example joins the batch before it. Raises `BatchError` if there is a batch of one and the
    module cannot be trained on it, `StoppedError` if it is stopped, `StateError` if `saved` is of another task, and
    whatever `between` raises.

    Args:
        module: to train, in place.
        examples: to train on.
        config: how to train; the learning rate is that of `progress`, if there is a schedule.
        generator: of every random draw but those of `changes`.
        progress: the share of the run's rounds that is over, in [0, 1].
        changes: of the draws of `config.augment`; without it examples stay as they are.
        stopped: asked before each step whether to stop.
        between: is called after each step; it may keep where training stands, or wait.
        saved: what `TrainState.tensors` gave after a step of this very task; training goes on behind that step.
        levers: how to do with less memory.

    """
    config = config.at(progress)
    here, augment = examples.y.device, config.augment if learns(module) else ()
    criterion = config.criterion.on(here)
    context = Step(generator, progress, criterion.labels(examples.y), criterion)
    # It writes to every layer, which takes a twentieth of a short task; an objective may begin anew by it.
    if isinstance(module, Objective) or not all(layer.training for layer in module.modules()):
        module.train()
    draw_from(module, generator)
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    memory = buffers(config, weights, levers.half_state)
    state = TrainState(module, memory, [each for each in (generator, changes) if each], torch.arange(len(examples)))
    if saved is not None:
        state.restore(saved)
    parts = cuts(len(examples), config.batch_size, least_batch(module))
    with kept(module, levers, generator):
        for epoch in range(state.epoch, config.epochs):
            if not state.batch:
                state.order, state.total = torch.randperm(len(examples), generator=generator), 0.0
            # All of an epoch's at once: this is what training sends to a card.
            order = send(state.order, here)
            for at, cut in enumerate(parts[state.batch :], state.batch + 1):
                if stopped():
                    raise StoppedError(f"training was stopped after {state.steps} steps")
                batch, told = _changed(augment, examples.subset(order[cut]), context, changes)
                state.steps += 1
                late: list[Late] | None = [] if config.plain else None
                loss, found = gradients(partial(_loss_of, module, step=told), batch, weights, levers, late)
                with torch.no_grad():
                    _take(config, weights, found, memory, state.steps)
                    for add in late or ():
                        add(-config.learning_rate)
                state.total += counted(loss) * len(batch)
                state.epoch, state.batch = (epoch, at) if at < len(parts) else (epoch + 1, 0)
                # Nothing of the step that is over stays while `between` waits.
                del batch, told, loss, found, late
                between(state)
    return float(number(state.total) if isinstance(state.total, Tensor) else state.total) / max(len(examples), 1)


def _changed(
    augment: Sequence[str], batch: Examples, step: Step, draws: torch.Generator | None
) -> tuple[Examples, Step]:
    if not augment or draws is None:
        return batch, step
    x, y, criterion = changed(augment, batch.x, batch.y, step.criterion, draws)
    return Examples(x, y), replace(step, criterion=criterion)


def _loss_of(module: nn.Module, batch: Examples, step: Step) -> Tensor:
    try:
        loss = loss_of(module, batch, step)
        if isinstance(step.criterion, Mixed) and not step.criterion.asked:
            raise ModelError(
                f"{type(module).__name__}.loss does not ask step.criterion, which alone knows the targets of mixed "
                "examples; leave mixup and cutmix out of training.augment"
            )
        return loss
    except DiastoleError:
        raise
    except Exception as error:
        if len(batch) > 1:
            raise
        raise BatchError(
            f"a {type(module).__name__} cannot be trained on a batch of one example; have at least 2 examples on every "
            f"device, and a batch size that does not leave one over ({brief(error)})"
        ) from error


def _take(
    config: TrainConfig,
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    memory: Sequence[Sequence[Tensor]],
    number: int,
) -> None:
    """Take one step with the weights that the loss depended on; the others, and their momenta, stay as they are."""
    used = [k for k, gradient in enumerate(gradients) if gradient is not None]
    found = [gradient for gradient in gradients if gradient is not None]
    if found:
        step(config, [weights[k] for k in used], found, [[tensors[k] for k in used] for tensors in memory], number)
