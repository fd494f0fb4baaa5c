"""What a sub-model is worth to a device: scores on examples that it keeps for a test and never trains on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diastole.client.errors import DataError
from diastole.client.sources.mapped import Mapped
from diastole.client.sources.source import DataSource, Divided, Fixed
from diastole.models.methods.registry import filled
from diastole.models.metrics import known
from diastole.models.metrics import metric as judge
from diastole.models.networks.config import ModelConfig
from diastole.models.recalibrate import ready
from diastole.models.scoring import evaluate
from diastole.models.seeds import generator, reference_plan
from diastole.models.state import State
from diastole.models.task import Scores, Task
from diastole.models.training import Examples
from diastole.proto.errors import DiastoleError

MOST_OF_FILE = 4096


@dataclass(frozen=True, slots=True)
class Split:
    """A device's examples: those that it trains on, and those that it keeps for a test; perhaps none."""

    training: Examples
    kept: Examples


def split(examples: Examples, share: float, device: str) -> Split:
    """Keep a share of the examples for a test, drawn by the device's name: the same at every start.

    One example at least is trained on.
    """
    places = held_out(len(examples), share, generator(0, device, "test"))
    return Split(*map(examples.subset, places)) if places else Split(examples, examples.part(0, 0))


def held_out(examples: int, share: float, draws: torch.Generator) -> tuple[Tensor, Tensor] | None:
    """Return which of so many examples are trained on, one at least, and which are kept, int64, in ascending order.

    None if none is kept.
    """
    count = min(max(1, round(share * examples)), examples - 1) if share else 0
    if not count:
        return None
    order = torch.randperm(examples, generator=draws)
    return order[count:].sort().values, order[:count].sort().values


def divided(source: DataSource, share: float, device: str) -> tuple[DataSource, Callable[[], Examples]]:
    """Return a source of the examples to train on, and what returns those that are kept for a test.

    They are kept as the source itself divides them, or as `split` draws them. Raises `DataError` for a share of other
    examples that come and go: one that was tested on today would be trained on tomorrow.
    """
    if not share:
        return source, Examples.empty
    if isinstance(source, Divided):
        return source, source.kept
    if not isinstance(source, Fixed):
        raise DataError(
            f"a test share of {share:g} of a source that changes; 0 is accepted, or a source that divides its examples "
            "itself, by a method `kept`"
        )
    parts = split(source.examples(), share, device)
    return Fixed(parts.training), lambda: parts.kept


def inputs_of(examples: Examples) -> Tensor:
    """Return inputs `[n, ...]` for the statistics of batch normalisation, as models take them.

    Of a file, which may be larger than memory, they are the first.
    """
    return examples.part(0, MOST_OF_FILE).x if isinstance(examples, Mapped) else examples.x


def score(
    model: ModelConfig, task: Task, metric: str, states: tuple[State, State], kept: Examples, x: Tensor
) -> Scores | None:
    """Return a sub-model's scores before and after training; None if the device cannot score by this metric.

    Args:
        model: the global model.
        task: says which sub-model.
        metric: by name.
        states: the sub-model's parameters as the device got them, and once it has been trained.
        kept: examples that the device keeps for this.
        x: its training inputs `[n, ...]`, of which batch normalisation has its statistics.

    """
    if not metric or not len(kept):
        return None
    try:
        if task.training.criterion.kind(kept.y) not in judge(known(metric)).kinds:
            return None
        before, after = (_score(model, task, metric, state, kept, x) for state in states)
    except (DiastoleError, ValueError):
        # A function that nobody has allowed here, or a metric that does not judge what the model gives.
        return None
    return Scores(metric, len(kept), before, after)


def _score(model: ModelConfig, task: Task, metric: str, state: State, kept: Examples, x: Tensor) -> float:
    with reference_plan():
        usable = ready(filled(model, task.spec, state), x.to(model.dtype))
        return evaluate(usable, kept.to(model.dtype), task.training.criterion, (metric,)).metrics[metric]
