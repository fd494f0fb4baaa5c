"""How good a module is on a set of examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diastole.models import metrics as judged
from diastole.models.batches import slices
from diastole.models.crossing import fetch
from diastole.models.losses import Criterion
from diastole.models.training import Examples, TrainConfig, outputs_of

EVALUATED, EVALUATED_ON_CARD = 64, 2048
"""Examples in a forward pass of an evaluation: few enough for the processor's cache, which halves the time of 512; on
a card enough to keep all of it busy."""


@dataclass(frozen=True, slots=True)
class Score:
    """How a model does on a set of examples: its mean loss, and metrics by name."""

    loss: float
    metrics: Mapping[str, float]

    @property
    def accuracy(self) -> float:
        """The share of right answers, in [0, 1]; a `KeyError` if it was not asked for."""
        return self.metrics["accuracy"]


def evaluate(
    module: nn.Module, examples: Examples, criterion: Criterion | None = None, metrics: Sequence[str] = ("accuracy",)
) -> Score:
    """Return the mean loss and metrics of `module` over `examples`, without training it.

    Args:
        module: to judge.
        examples: to judge it on.
        criterion: the loss; cross-entropy by default.
        metrics: by name (`models/metrics.py`).

    """
    criterion, was_training = criterion or TrainConfig().criterion, module.training
    found = {name: judged.metric(name) for name in metrics}
    losses, sums = list[tuple[Tensor, int]](), dict[str, Tensor]()
    module.eval()
    with torch.no_grad():
        for batch in slices(examples, EVALUATED if examples.y.is_cpu else EVALUATED_ON_CARD):
            outputs = outputs_of(module, batch.x)
            losses.append((criterion.mean(outputs, batch.y), len(batch)))
            answers = judged.answers(criterion, outputs, batch.y)
            for name, metric in found.items():
                sums[name] = sums[name] + metric.sums(answers) if name in sums else metric.sums(answers)
    module.train(was_training)
    # All numbers of an evaluation leave a card together.
    means = fetch([*sums.values(), *(mean for mean, _ in losses)])
    sums = dict(zip(sums, means, strict=False))
    loss = 0.0
    for mean, (_, count) in zip(means[len(sums) :], losses, strict=True):
        loss += mean.item() * count
    values = {name: metric.value(sums[name]) if name in sums else 0.0 for name, metric in found.items()}
    return Score(loss / max(len(examples), 1), values)
