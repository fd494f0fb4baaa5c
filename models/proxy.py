"""The server's own examples, and supervised training on them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diastole.models.crossing import number
from diastole.models.errors import SpecError
from diastole.models.loading import load
from diastole.models.moment import Moment
from diastole.models.seeds import generator
from diastole.models.state import State, state_of
from diastole.models.training import Examples, TrainConfig, fit

NO_LABEL = -1


@dataclass(frozen=True, slots=True)
class Proxy:
    """The server's own examples; `validation` is for selection only and is never trained on.

    The label `NO_LABEL`, or a value that is no number, means that an example has none.
    """

    training: Examples
    validation: Examples

    @staticmethod
    def empty() -> "Proxy":
        """Return a proxy set without examples."""
        return Proxy(Examples.empty(), Examples.empty())

    @property
    def labelled(self) -> bool:
        """Whether every example has a label."""
        return not any(_missing(part.y) for part in (self.training, self.validation))

    def on(self, device: torch.device) -> "Proxy":
        """Return the same examples on a device."""
        return Proxy(self.training.on(device), self.validation.on(device))

    def without_labels(self) -> "Proxy":
        """Return the same examples without their labels."""
        parts = (self.training, self.validation)
        return Proxy(*(Examples(part.x, _unlabelled(part.y)) for part in parts))


def _missing(y: Tensor) -> bool:
    return bool(number((y.isnan() if y.is_floating_point() else y == NO_LABEL).any()))


def _unlabelled(y: Tensor) -> Tensor:
    return torch.full_like(y, torch.nan if y.is_floating_point() else NO_LABEL)


def supervised(module: nn.Module, state: State, proxy: Proxy, training: TrainConfig, moment: Moment) -> State:
    """Return the parameters of a module after training from `state` on the labelled proxy set, by its own objective.

    Raises `SpecError` if the proxy set has no labels.
    """
    if not proxy.labelled:
        raise SpecError("the proxy set has no labels, so nothing can be trained on it by its labels")
    load(module, state)
    with torch.enable_grad():
        fit(module, proxy.training, training, generator(moment.seed), moment.progress)
    return state_of(module)
