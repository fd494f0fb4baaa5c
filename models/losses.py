"""Losses by name: what a step of training lowers, and how a model's outputs answer targets.

Every loss gives a number an example; the loss of a batch is their mean. So a batch that is put together, split or
filled up with examples of no weight comes to the same on every engine. Where an example has many targets (the pixels
of a map, the tokens of a text), its loss is their mean, without those that are `IGNORED`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from diastole.models.allowed import function
from diastole.models.balance import raise_of
from diastole.models.crossing import crossing, on_purpose, send
from diastole.models.errors import ModelError, brief
from diastole.proto.registry import Registry

if TYPE_CHECKING:
    from diastole.models.training import TrainConfig

IGNORED = -100
"""The target of a pixel or token that counts for nothing, as in torch."""

Kind = Literal["classes", "many", "values"]
"""What targets are: one class at each place, any number of labels at once, or values."""

Each = Callable[[Tensor, Tensor, "TrainConfig"], Tensor]


@dataclass(frozen=True, slots=True)
class Loss:
    """One loss, as the registry knows it.

    Attributes:
        each: the losses of a batch's examples `[n]`, of the model's outputs, the targets and the settings.
        kind: what the targets are.
        metrics: what models are judged by unless the experiment says otherwise; the first one decides.
        last: the classes are on the last axis of the outputs `[n, length, classes]`, not on the second.
        settings: the names of the settings of training that it reads.

    """

    each: Each
    kind: Kind
    metrics: tuple[str, ...]
    last: bool = False
    settings: tuple[str, ...] = ()


def _cross_entropy(outputs: Tensor, y: Tensor, config: "TrainConfig") -> Tensor:
    weights = _class_weights(config, outputs) if config.class_weights else None
    each = F.cross_entropy(
        outputs, y, weights, ignore_index=IGNORED, reduction="none", label_smoothing=config.smoothing
    )
    if y.ndim == 1:
        return each
    counted = (y != IGNORED).flatten(1).sum(1).clamp(min=1)
    return each.flatten(1).sum(1) / counted


def _next_token(outputs: Tensor, y: Tensor, config: "TrainConfig") -> Tensor:
    return _cross_entropy(outputs.movedim(-1, 1), y, config)


def _multi_label(outputs: Tensor, y: Tensor, config: "TrainConfig") -> Tensor:
    each = F.binary_cross_entropy_with_logits(*_alike(outputs, y), reduction="none")
    if config.class_weights:
        each = each * _class_weights(config, outputs)
    return _mean(each)


def _class_weights(config: "TrainConfig", outputs: Tensor) -> Tensor:
    """Return the weights of the classes where the outputs are: those that `Criterion.on` has sent, if it has."""
    sent = _SENT.get((config.class_weights, outputs.device))
    if sent is not None:
        return sent.to(outputs.dtype)
    with on_purpose():
        crossing.sent += not outputs.is_cpu
        return outputs.new_tensor(config.class_weights)


_SENT: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}


def _mse(outputs: Tensor, y: Tensor, config: "TrainConfig") -> Tensor:
    return _mean(F.mse_loss(*_alike(outputs, y), reduction="none"))


def _mae(outputs: Tensor, y: Tensor, config: "TrainConfig") -> Tensor:
    return _mean(F.l1_loss(*_alike(outputs, y), reduction="none"))


def _huber(outputs: Tensor, y: Tensor, config: "TrainConfig") -> Tensor:
    return _mean(F.huber_loss(*_alike(outputs, y), reduction="none", delta=config.delta))


def _mean(each: Tensor) -> Tensor:
    return each if each.ndim == 1 else each.flatten(1).mean(1)


def _alike(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs in the shape of the values: `[n, 1]` and `[n]` are the same."""
    return outputs.reshape(y.shape), y.to(outputs.dtype)


_HERE = "diastole.models.losses"
LOSSES: Registry[Loss] = Registry(
    "loss",
    {
        "cross-entropy": f"{_HERE}:CROSS_ENTROPY",
        "multi-label": f"{_HERE}:MULTI_LABEL",
        "next-token": f"{_HERE}:NEXT_TOKEN",
        "mse": f"{_HERE}:MSE",
        "mae": f"{_HERE}:MAE",
        "huber": f"{_HERE}:HUBER",
    },
    Loss,
    ModelError,
)
"""Losses by name; a package of one's own adds to them by an entry point."""

CROSS_ENTROPY = Loss(_cross_entropy, "classes", ("accuracy",), settings=("class_weights", "smoothing", "balance"))
MULTI_LABEL = Loss(_multi_label, "many", ("f1", "accuracy"), settings=("class_weights",))
NEXT_TOKEN = Loss(
    _next_token, "classes", ("perplexity", "accuracy"), last=True, settings=("class_weights", "smoothing")
)
MSE = Loss(_mse, "values", ("rmse", "mae", "r2"))
MAE = Loss(_mae, "values", ("mae", "rmse", "r2"))
HUBER = Loss(_huber, "values", ("mae", "rmse", "r2"), settings=("delta",))

SETTINGS = {"class_weights": (), "smoothing": 0.0, "delta": 1.0, "balance": 0.0}
"""What only some losses read, with the defaults."""


def is_own(name: str) -> bool:
    """Return whether a name is that of a user's own function, "package.module:function"."""
    return ":" in name


def check_settings(config: "TrainConfig") -> None:
    """Raise `ValueError` for a loss that is not known, and for a setting that it would not read."""
    if is_own(config.loss):
        return
    LOSSES.known(config.loss)
    for name, plain in SETTINGS.items():
        if getattr(config, name) not in (plain, None) and name not in LOSSES[config.loss].settings:
            known = ", ".join(loss for loss in LOSSES if name in LOSSES[loss].settings)
            raise ValueError(f"{name}: loss {config.loss} does not read it; {known} do")


@dataclass(frozen=True, slots=True)
class Criterion:
    """The loss of a run.

    Attributes:
        config: names the loss and its settings.
        seen: the labels of all of a device's examples, int64 `[n]`, if its softmax is balanced.

    """

    config: "TrainConfig"
    seen: Tensor | None = field(default=None, kw_only=True, compare=False, repr=False)
    _raises: dict[tuple[int, torch.dtype], Tensor] = field(
        default_factory=dict, kw_only=True, compare=False, repr=False
    )

    def balanced(self, labels: Tensor) -> Self:
        """Return the loss on a device whose examples have these labels, int64 `[n]`, as `config.balance` asks for."""
        if not self.config.balance or not len(labels) or labels is self.seen:
            return self
        return replace(self, seen=labels, _raises={})

    def on(self, device: torch.device) -> Self:
        """Keep on a card what the loss reads, because a step that is replayed may send nothing; return the loss."""
        weights = self.config.class_weights
        if weights and device.type != "cpu" and (weights, device) not in _SENT:
            _SENT[weights, device] = send(torch.tensor(weights), device)
        return self

    @property
    def row(self) -> Loss | None:
        """The named loss; None for a user's own function."""
        return None if is_own(self.config.loss) else LOSSES[self.config.loss]

    def each(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the losses of a batch's examples, `[n]`.

        Raises `ModelError` if a user's own function gives anything else.
        """
        row, outputs = self.row, self._raised(outputs)
        if row is not None:
            return row.each(outputs, y, self.config)
        return self._of_each(self._own(outputs, y), y)

    def mean(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        row, config, outputs = self.row, self.config, self._raised(outputs)
        if row is None:
            found = self._own(outputs, y)
            return found if found.ndim == 0 else self._of_each(found, y).mean()
        if row is CROSS_ENTROPY and y.ndim == 1 and not config.class_weights:
            return F.cross_entropy(outputs, y, label_smoothing=config.smoothing)
        return row.each(outputs, y, config).mean()

    def over(self, terms: Tensor) -> Tensor:
        """Return the mean over a batch's examples of the sums of their terms, `[n, ...]`."""
        return terms.sum() / len(terms)

    def kind(self, y: Tensor) -> Kind:
        """Return what targets are; a user's own function has classes if they are whole numbers."""
        row = self.row
        if row is not None:
            return row.kind
        return "values" if y.is_floating_point() else "classes"

    @property
    def classified(self) -> bool:
        """Whether a named loss takes the outputs for logits of classes."""
        return self.row is not None and self.row.kind == "classes"

    def labels(self, y: Tensor) -> Tensor:
        """Return the classes of the examples, int64 `[n]`; none if an example has not just one."""
        return y if y.ndim == 1 and self.kind(y) == "classes" else y.new_empty(0, dtype=torch.int64)

    def classes_second(self, outputs: Tensor) -> Tensor:
        """Return outputs with the axis of the classes behind that of the examples."""
        row = self.row
        return outputs.movedim(-1, 1) if row is not None and row.last else outputs

    def metrics(self, y: Tensor) -> tuple[str, ...]:
        """Return what models are judged by, unless the experiment says otherwise; the first one decides."""
        row = self.row
        if row is None:
            return ("accuracy",) if self.kind(y) == "classes" else ("mae", "rmse")
        return row.metrics

    def blank(self, outputs: Tensor) -> Tensor:
        """Return targets that suit these outputs, for measuring."""
        row, count, like = self.row, len(outputs), self.classes_second(outputs)
        if row is not None and row.kind != "classes":
            return torch.zeros_like(outputs)
        classes = torch.zeros(count, *like.shape[2:], dtype=torch.int64, device=outputs.device)
        if row is not None:
            return classes
        try:
            self._own(outputs, classes)
        except ModelError:
            return torch.zeros_like(outputs)
        return classes

    def predict(self, outputs: Tensor) -> Tensor:
        """Return what a model says: probabilities of classes or labels, or values; the shape of `outputs`.

        The mean of what several models say is what they say together.
        """
        row = self.row
        if row is None or row.kind == "values":
            return outputs
        return outputs.sigmoid() if row.kind == "many" else outputs.softmax(-1 if row.last else 1)

    def towards(self, outputs: Tensor, said: Tensor) -> Tensor:
        """Return how far outputs are from what another model says (`predict`), a scalar; only `outputs` learn.

        Classes: the Kullback-Leibler divergence, mean over examples and places; labels: likewise, of each label by
        itself; values: the mean of the loss itself, with the other model's values as targets.
        """
        row, said = self.row, said.detach()
        if row is not None and self.classified:
            axis = -1 if row.last else 1
            each = F.kl_div(outputs.log_softmax(axis), said, reduction="none").sum(axis)
            return each.mean()
        if row is not None and row.kind == "many":
            own = F.binary_cross_entropy(said, said, reduction="none")
            return (F.binary_cross_entropy_with_logits(outputs, said, reduction="none") - own).mean()
        if row is not None:
            return row.each(outputs, said, self.config).mean()
        return F.mse_loss(outputs, said)

    def _raised(self, outputs: Tensor) -> Tensor:
        """Return logits raised for the labels that were seen. Raises `ModelError` for outputs that are none."""
        if self.seen is None:
            return outputs
        if outputs.ndim != 2:
            raise ModelError(f"training.balance: outputs are {list(outputs.shape)}; logits [n, classes] are accepted")
        key = outputs.shape[1], outputs.dtype
        if key not in self._raises:
            self._raises[key] = raise_of(self.seen, outputs.shape[1], self.config.balance or 0.0).to(outputs)
        return outputs + self._raises[key]

    def _of_each(self, found: Tensor, y: Tensor) -> Tensor:
        """Return what a user's own function gave, if it is a loss for each example. Raises `ModelError`."""
        if found.shape != (len(y),):
            raise ModelError(
                f"loss {self.config.loss} gives {list(found.shape)} for {len(y)} examples; a loss for each, "
                f"[{len(y)}], is needed here"
            )
        return found

    def _own(self, outputs: Tensor, y: Tensor) -> Tensor:
        name = self.config.loss
        called = function("loss", name)
        try:
            found = called(outputs, y)
        except Exception as error:
            shapes = f"outputs {list(outputs.shape)}, targets {str(y.dtype).removeprefix('torch.')} {list(y.shape)}"
            raise ModelError(f"loss {name}: {shapes}: {brief(error)}") from error
        if not isinstance(found, Tensor) or found.ndim > 1:
            what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ModelError(f"loss {name} gives {what}; expected a tensor: a loss for each example, or their mean")
        return found


def divergence(student: Tensor, teacher: Tensor, criterion: Criterion, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher || student) of two batches of logits, mean over the batch; only the student learns from it.

    Of outputs that are no logits `[n, classes]` it is `Criterion.towards`.
    """
    if student.ndim > 2 or not criterion.classified:
        hard = temperature if criterion.classified else 1.0
        return criterion.towards(student / hard, criterion.predict(teacher / hard))
    soft = F.log_softmax(teacher.detach() / temperature, 1)
    return criterion.over(F.kl_div(F.log_softmax(student / temperature, 1), soft, reduction="none", log_target=True))


def outputs_for(criterion: Criterion, y: Tensor, classes: int) -> tuple[int, ...]:
    """Return the shape of what a model has to give for one example, so that it answers targets like `y`.

    Args:
        criterion: the loss.
        y: targets `[n, ...]`.
        classes: how many there are, if targets are classes.

    """
    places, row = tuple(y.shape[1:]), criterion.row
    if criterion.kind(y) == "classes":
        return (*places, classes) if row is not None and row.last else (classes, *places)
    return places or (1,)


def check_targets(what: str, criterion: Criterion, y: Tensor, gives: Sequence[int], classes: int) -> None:
    """Raise `ModelError` for targets that a loss, or a model of this size, cannot answer.

    Args:
        what: whose targets they are, such as "train", for the error.
        criterion: the loss.
        y: targets `[n, ...]`.
        gives: the shape of what the model gives for one example.
        classes: that the model tells apart.

    """
    name, kind = criterion.config.loss, criterion.kind(y)
    found = f"{what}: targets are {str(y.dtype).removeprefix('torch.')} {list(y.shape)}"
    if kind == "classes":
        if y.is_floating_point():
            raise ModelError(
                f'{found}; training.loss "{name}" takes whole numbers; for values set it to "mse", "mae" or "huber"'
            )
        wrong = y[((y < 0) & (y != IGNORED)) | (y >= classes)]
        if len(wrong):
            raise ModelError(
                f"{what}: a label is {int(wrong[0])}; the model knows whole numbers from 0 to {classes - 1}"
            )
    elif kind == "many" and not ((y == 0) | (y == 1)).all():
        raise ModelError(f'{found}; loss "{name}" takes 0 and 1, one for each label')
    if criterion.config.balance and (kind != "classes" or y.ndim != 1):
        raise ModelError(f"{found}; training.balance needs one class an example; leave it out")
    expected = outputs_for(criterion, y, classes)
    if criterion.row is not None and tuple(gives) != expected:
        raise ModelError(
            f'{found}, which loss "{name}" answers by outputs [{len(y)}, {", ".join(map(str, expected))}]; '
            f"the model gives [{len(y)}, {', '.join(map(str, gives))}]"
        )
    weights = criterion.config.class_weights
    if weights and len(weights) != expected[-1 if criterion.row is not None and criterion.row.last else 0]:
        raise ModelError(f"training.class_weights has {len(weights)} weights; one for each of {classes} is accepted")
