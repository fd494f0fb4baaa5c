"""Once-for-All: elastic kernels, depths and expansions in one supernet (Cai et al., ICLR 2020), federated.

A device trains one sub-network, by its own loss; SuperFedNAS's sandwich decides which, within budgets. OFA trains in
phases (progressive shrinking); here every architecture of the pool is trained from the start, or from the end of a
warm-up on: later work (BigNAS, DepS) found the phases unnecessary. A device has no larger network to learn from, so
there is no distillation. Our networks have no running statistics, so nothing is recalibrated.

A sub-network with a small kernel holds the middle of the large kernel and the rows of the matrices that lead to its
own, and trains them together; only devices that hold the large kernel cover its rim.
"""

from collections.abc import Sequence

from diastole.models.methods.registry import MethodRow
from diastole.models.methods.supernets.architectures import Architecture, build
from diastole.models.methods.supernets.supernet import Supernet, SupernetConfig
from diastole.models.networks.config import ModelConfig
from diastole.models.training import TrainConfig


class OfaMethod(Supernet):
    """Sub-networks with elastic kernels; a coordinate's mean is over its holders, weighted by their examples."""

    def __init__(
        self, model: ModelConfig, widths: Sequence[float], training: TrainConfig, config: SupernetConfig
    ) -> None:
        super().__init__("ofa", model, widths, training, config, elastic=True)


ROW = MethodRow(
    make=OfaMethod,
    module=build,
    size=Architecture,
    source="Once-for-All (Cai et al., ICLR 2020)",
    idea="architectures of a supernet, with kernels of several sizes",
    options=SupernetConfig,
    scheduled=lambda options: bool(options.warmup),
)
