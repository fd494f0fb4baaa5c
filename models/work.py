"""How long training takes: multiply-accumulates alone do not say."""

from math import ceil

from diastole.models.cost import Cost
from diastole.models.training import TrainConfig

# Least squares on the logarithm of 54 measured step times (three CNNs and three ResNets on 8x8 to 32x32 images and a
# 1-D CNN, widths 1, 0.5 and 0.25, batches of 8 and 32, one x86 thread), scaled so that the step that device agents
# time (`client/profile.py`) has as much work as multiply-accumulates. Within -40 % to +22 % of each step time, 0.8 to
# 1.2 for most; multiply-accumulates alone are off by up to a hundredfold, always in favour of small sub-models.
PER_MAC = 0.4
PER_BYTE = 14.0
PER_TENSOR = 2.2e6


def training_work(cost: Cost, tensors: int, training: TrainConfig, examples: int) -> float:
    """Return the work of one task in multiply-accumulates of the benchmark step of device agents.

    Divided by a device's `macs_per_second` it is the seconds of training. Beside arithmetic it counts bytes moved
    (a step touches its peak memory about once) and a fixed share for every parameter tensor and step (calls).

    Args:
        cost: of the sub-model, measured with `training`.
        tensors: parameter tensors of the sub-model.
        training: how it is trained.
        examples: that the device trains on.

    """
    steps = ceil(examples / training.batch_size)
    arithmetic = PER_MAC * cost.training_macs * examples
    moved = PER_BYTE * cost.memory * examples / training.batch_size
    return training.epochs * (arithmetic + moved + PER_TENSOR * tensors * steps)
