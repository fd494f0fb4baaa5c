"""Baselines: plain federated learning of one size, on the same devices, data, proxy set, rounds and seed."""

from collections.abc import Sequence
from typing import Any

from diastole.models.errors import SpecError
from diastole.models.method import Size
from diastole.models.methods.bases.sliced import Sliced
from diastole.models.methods.registry import Conditions, MethodRow
from diastole.models.methods.widths.heterofl import Width, build
from diastole.models.methods.widths.width import check_widths, spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.training import TrainConfig


class OneSize(Sliced):
    """Plain federated learning of the model at one width: this size is the global model, and the only one on offer."""

    def __init__(self, model: ModelConfig, width: float, training: TrainConfig) -> None:
        (width,) = check_widths([width])
        super().__init__(model, [spec_of(width)], spec_of(width), training)


class ServerAlone(OneSize):
    """The whole model, trained by the server alone: no device is given it."""

    def __init__(self, model: ModelConfig, training: TrainConfig) -> None:
        super().__init__(model, 1.0, training)

    def offers(self) -> Sequence[Size]:
        """Return nothing."""
        return ()


def _largest(model: ModelConfig, widths: Sequence[float], training: TrainConfig, options: Any) -> OneSize:
    return OneSize(model, max(check_widths(widths)), training)


def _smallest(model: ModelConfig, widths: Sequence[float], training: TrainConfig, options: Any) -> OneSize:
    return OneSize(model, min(check_widths(widths)), training)


def _alone(model: ModelConfig, widths: Sequence[float], training: TrainConfig, options: Any) -> ServerAlone:
    return ServerAlone(model, training)


def _check_alone(options: Any, conditions: Conditions) -> None:
    if not (conditions.server_epochs and conditions.proxy):
        raise SpecError("method proxy: proxy.epochs and data.proxy must both be at least 1")


def _row(make: Any, baseline: str, **more: Any) -> MethodRow:
    return MethodRow(make, build, Width, "FedAvg (McMahan et al. 2017)", "one size", baseline=baseline, **more)


FEDAVG = _row(_largest, "FedAvg, every device as if large", ignore_budgets=True)
EXCLUSIVE = _row(_largest, "only the large devices")
SMALLEST = _row(_smallest, "the smallest size for every device")
PROXY = _row(_alone, "the server's proxy data alone", proxy=True, check=_check_alone)
DEDICATED = _row(_largest, "each width as if all devices could train it", ignore_budgets=True, each_width=True)
