"""Metrics by name: how good a model is, over all of its examples, in sums that batches add to."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from diastole.models.allowed import function
from diastole.models.crossing import chosen
from diastole.models.errors import ModelError, brief
from diastole.models.losses import IGNORED, Criterion, is_own
from diastole.proto.registry import Registry

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model gives for a batch, and what was asked for.

    Attributes:
        outputs: of classes, logits `[m, classes]` of every place that counts; else, in the shape of the targets.
        y: of classes, int64 `[m]`; else the targets `[n, ...]`.

    """

    outputs: Tensor
    y: Tensor


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, as the registry knows it.

    Attributes:
        sums: what a batch adds to the sums, of one shape for all batches.
        value: the metric, of the sums over all batches, float64.
        better: which way is better.
        kinds: the targets that it takes: "classes", "many", "values".
        share: whether it is a share, which people read in per cent.
        shown: its name for people.

    """

    sums: Callable[[Answers], Tensor]
    value: Callable[[Tensor], float]
    better: Better
    kinds: tuple[str, ...]
    share: bool = False
    shown: str = ""


def _ratio(sums: Tensor) -> float:
    """Return the first sum's share of the second, 0 if there was nothing to count."""
    return float(sums[0] / sums[1]) if sums[1] else 0.0


def _right(answers: Answers) -> Tensor:
    """Count right answers, and all: of labels, each by itself."""
    y, outputs = answers.y, answers.outputs
    hits = outputs.argmax(1) == y if y.ndim == 1 and outputs.ndim == 2 else (outputs > 0) == y.bool()
    return _with_count(hits.sum(), hits.numel())


def _among(count: int) -> Callable[[Answers], Tensor]:
    def sums(answers: Answers) -> Tensor:
        best = answers.outputs.topk(min(count, answers.outputs.shape[1]), 1).indices
        return _with_count((best == answers.y[:, None]).sum(), len(answers.y))

    return sums


def _confusion(answers: Answers) -> Tensor:
    """Count, for each class, what was found rightly, wrongly, and not at all: `[3, classes]`."""
    y, outputs = answers.y, answers.outputs
    if y.ndim == 1 and outputs.ndim == 2:
        said, true = (F.one_hot(labels, outputs.shape[1]).bool() for labels in (outputs.argmax(1), y))
    else:
        said, true = outputs > 0, y.bool()
    if said.ndim == 1:
        said, true = said[:, None], true[:, None]
    axes = [0, *range(2, said.ndim)]
    return torch.stack([(said & true).sum(axes), (said & ~true).sum(axes), (~said & true).sum(axes)]).double()


def _f1(sums: Tensor) -> float:
    """Return the mean F1 over the classes that occur or are answered (macro)."""
    right, wrong, missed = sums
    return _present((2 * right), 2 * right + wrong + missed)


def _iou(sums: Tensor) -> float:
    """Return the mean intersection over union of the classes that occur or are answered."""
    right, wrong, missed = sums
    return _present(right, right + wrong + missed)


def _present(part: Tensor, whole: Tensor) -> float:
    there = whole > 0
    return float((part[there] / whole[there]).mean()) if there.any() else 0.0


def _surprise(answers: Answers) -> Tensor:
    total = F.cross_entropy(answers.outputs, answers.y, reduction="sum")
    return _with_count(total, len(answers.y))


def _distance(power: int) -> Callable[[Answers], Tensor]:
    def sums(answers: Answers) -> Tensor:
        errors = (answers.outputs - answers.y).double().abs() ** power
        return _with_count(errors.sum(), errors.numel())

    return sums


def _spread(answers: Answers) -> Tensor:
    """Sum squared errors, values, their squares and their number, `[4, columns]`; `[n, k]` has k columns."""
    columns = answers.y.shape[1] if answers.y.ndim == 2 else 1
    y, outputs = (values.double().reshape(-1, columns) for values in (answers.y, answers.outputs))
    return torch.stack([((outputs - y) ** 2).sum(0), y.sum(0), (y**2).sum(0), torch.full_like(y[0], len(y))])


def _explained(sums: Tensor) -> float:
    """Return the share of the values' variance that is explained, mean over columns; 0 of one that does not vary."""
    errors, total, squares, count = sums
    variance = squares - total**2 / count.clamp(min=1)
    return float(torch.where(variance > 0, 1 - errors / variance, 0.0).mean())


_HERE = "diastole.models.metrics"
METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "accuracy": f"{_HERE}:ACCURACY",
        "f1": f"{_HERE}:F1",
        "iou": f"{_HERE}:IOU",
        "perplexity": f"{_HERE}:PERPLEXITY",
        "mae": f"{_HERE}:MAE",
        "rmse": f"{_HERE}:RMSE",
        "r2": f"{_HERE}:R2",
    },
    Metric,
    ModelError,
)
"""Metrics by name, beside "top-2", "top-3" ...; a package of one's own adds to them by an entry point."""

ACCURACY = Metric(_right, _ratio, "higher", ("classes", "many"), True, "accuracy")
F1 = Metric(_confusion, _f1, "higher", ("classes", "many"), True, "F1")
IOU = Metric(_confusion, _iou, "higher", ("classes", "many"), True, "IoU")
PERPLEXITY = Metric(
    _surprise, lambda sums: float(torch.tensor(_ratio(sums)).exp()), "lower", ("classes",), False, "perplexity"
)
MAE = Metric(_distance(1), _ratio, "lower", ("values",), False, "MAE")
RMSE = Metric(_distance(2), lambda sums: _ratio(sums) ** 0.5, "lower", ("values",), False, "RMSE")
R2 = Metric(_spread, _explained, "higher", ("values",), False, "R²")

LOSS = "loss"
_TOP = re.compile(r"top-([1-9]\d{0,3})")


def metric(name: str) -> Metric:
    """Return a metric by its name; a user's own function gives a number for each example, of which the mean counts.

    Higher is better for it unless the function has an attribute `better` of "lower". Raises `ModelError`.
    """
    if top := _TOP.fullmatch(name):
        return Metric(_among(int(top[1])), _ratio, "higher", ("classes",), True, name)
    if is_own(name):
        return Metric(_own(name), _ratio, _direction(name), ("classes", "many", "values"), False, name.split(":")[1])
    return METRICS[name]


def known(name: str) -> str:
    """Return the name. Raises `ValueError`, for pydantic, if there is no such metric."""
    return name if _TOP.fullmatch(name) or is_own(name) else METRICS.known(name)


def better(name: str) -> Better:
    """Return which way a metric, or the loss, is better."""
    return "lower" if name == LOSS else metric(name).better


def ahead(name: str, one: float, other: float) -> bool:
    """Return whether a value of a metric is better than another."""
    return one > other if better(name) == "higher" else one < other


def title(name: str) -> str:
    """Return the name of a metric, or of the loss, for people."""
    return name if name == LOSS else metric(name).shown or name


def shown(name: str, value: float) -> str:
    """Return a value of a metric, or of the loss, for people: a share in per cent, all else with four digits."""
    return f"{value:.1%}" if name != LOSS and metric(name).share else f"{value:.4g}"


def answers(criterion: Criterion, outputs: Tensor, y: Tensor) -> Answers:
    """Return a batch's outputs and targets in the form that metrics take."""
    kind = criterion.kind(y)
    if kind == "classes":
        logits, flat = criterion.classes_second(outputs).movedim(1, -1), y.flatten()
        logits, counted = logits.reshape(-1, logits.shape[-1]), flat != IGNORED
        if y.ndim == 1:
            return Answers(logits, flat)
        places = chosen(counted)
        return Answers(logits[places], flat[places])
    return Answers(outputs.reshape(y.shape), y)


def _with_count(total: Tensor, count: int) -> Tensor:
    """Return a sum and how many were added, float64 `[2]`."""
    return torch.stack([total.double(), torch.full_like(total, count, dtype=torch.float64)])


def _own(name: str) -> Callable[[Answers], Tensor]:
    def sums(answers: Answers) -> Tensor:
        called = function("metric", name)
        try:
            each = torch.as_tensor(called(answers.outputs, answers.y)).double().flatten()
        except Exception as error:
            raise ModelError(f"metric {name}: {brief(error)}") from error
        if len(each) != len(answers.y):
            raise ModelError(f"metric {name} gives {len(each)} numbers for {len(answers.y)} targets; expected one each")
        return _with_count(each.sum(), len(each))

    return sums


def _direction(name: str) -> Better:
    return "lower" if getattr(function("metric", name), "better", "higher") == "lower" else "higher"
