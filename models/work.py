"""How long training takes, which multiply-accumulates alone cannot tell."""

from math import ceil

from diastole.models.cost import Cost
from diastole.models.training import TrainConfig

# Least squares on the logarithm of 100 measured step times (two to three blocks of CNN or ResNet on 8x8 to 32x32
# images, a 1-D CNN; widths 1, 0.5, 0.25; batches of 8 to 64; one x86 thread), in units of the speed that a device agent
# announced at the same time (`client/profile.py`). Nine in ten lie within 20 % of the formula. ResNets of 4 and 8
# channels were left out: they take up to twice as long. Multiply-accumulates alone would be off by up to a hundredfold,
# always in favour of small sub-models.
PER_MAC = 0.43
PER_BYTE = 16.0
PER_TENSOR = 2.4e6


def training_work(cost: Cost, training: TrainConfig, examples: int) -> float:
    """Return the work of one task in multiply-accumulates of the benchmark step of device agents.

    The work divided by a device's `macs_per_second` is the seconds of training. Beside arithmetic, the work counts
    bytes moved (a step touches its peak memory about once) and a fixed share for every parameter tensor and step
    (calls).

    Args:
        cost: of the sub-model, measured with `training`.
        training: how the sub-model is trained.
        examples: how many the device trains on.

    """
    steps = ceil(examples / training.batch_size)
    arithmetic = PER_MAC * cost.training_macs * examples
    moved = PER_BYTE * cost.memory * examples / training.batch_size
    return training.epochs * (arithmetic + moved + PER_TENSOR * cost.tensors * steps)
