"""How fast updates are folded into the aggregate."""

import time
from collections.abc import Sequence

import torch

from diastole.benchmarks.models import RESNET18
from diastole.benchmarks.row import Row, compare
from diastole.models.accumulator import Accumulator
from diastole.models.coordinates import Contribution
from diastole.models.methods.registry import make_method
from diastole.models.moment import Moment
from diastole.models.native.fold import PART
from diastole.models.native.library import library
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.seeds import reference_plan
from diastole.models.state import State, tensor_bytes
from diastole.models.training import TrainConfig

WEIGHT = 3.0


class RunningSum:
    """What the exact accumulator is measured against: a float32 sum and a float32 weight for each coordinate.

    The sum depends on the order of arrival. Every operation is in place, one pass for the sum (a fused
    multiply-add) and one for the weight.
    """

    def __init__(self, reference: State) -> None:
        self._sum = {name: torch.zeros_like(tensor) for name, tensor in reference.items()}
        self._weight = {name: torch.zeros_like(tensor) for name, tensor in reference.items()}

    def fold(self, contribution: Contribution, weight: float) -> None:
        """Add one contribution whose regions are slices."""
        for name, patch in contribution.items():
            patch.region.view(self._sum[name]).add_(patch.values, alpha=weight)
            patch.region.view(self._weight[name]).add_(weight)


def rows(model: ModelConfig = RESNET18, widths: Sequence[float] = (1.0, 0.5, 0.25), repeats: int = 15) -> list[Row]:
    """Measure `fold.throughput`: GB (10^9 bytes) of update payload a CPU second that `Accumulator.fold` takes in.

    One update of each of `widths`, whose bytes are those of its own float32 tensors, is folded on one thread.
    The baseline is `RunningSum` on the same updates. Decoding and checking an update are not part of it.
    """
    library(PART)
    with reference_plan():
        method = make_method("width", model, widths, TrainConfig())
        state = method.prepare(initial_state(model, 0), None, Moment())
        updates, size = [], 0
        for offered in method.offers():
            # Any small change will do; it must not be zero everywhere.
            trained = {name: tensor * 1.01 + 0.001 for name, tensor in method.compress(offered.spec).items()}
            updates.append(method.dilate(trained, offered.spec))
            size += tensor_bytes(trained)
        exact, naive = Accumulator(state), RunningSum(state)

        def fold(target: Accumulator | RunningSum) -> None:
            for update in updates:
                target.fold(update, WEIGHT)

        value, baseline = compare(lambda: fold(exact), lambda: fold(naive), repeats, time.process_time)
    return [Row.of("fold.throughput", size / value / 1e9, size / baseline / 1e9, "GB/s", "higher")]
