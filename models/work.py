"""How long training takes, which multiply-accumulates alone cannot tell."""

from collections.abc import Mapping, Sequence
from math import ceil

from diastole.models.cost import Cost
from diastole.models.kinds import KINDS, PER_CALL, Work
from diastole.models.training import TrainConfig

# Least squares on the logarithm of 100 measured step times (two to three blocks of CNN or ResNet on 8x8 to 32x32
# images, a 1-D CNN; widths 1, 0.5, 0.25; batches of 8 to 64; one x86 thread), in units of the speed that a device agent
# announced at the same time (`client/profile.py`). Nine in ten lie within 20 % of the formula. ResNets of 4 and 8
# channels were left out: they take up to twice as long. Multiply-accumulates alone would be off by up to a hundredfold,
# always in favour of small sub-models.
PER_MAC = 0.43
PER_BYTE = 16.0
PER_TENSOR = 2.4e6

Speeds = Mapping[str, float]
"""How much of each kind of work (`models/kinds.py`) a device does in a second."""


def training_seconds(cost: Cost, training: TrainConfig, examples: int, macs_per_second: float, speeds: Speeds) -> float:
    """Return the seconds that training takes on a device.

    A device that tells its speeds kind by kind is taken at its word. One that does not know a kind of which there is
    work, such as the agent of an older version, is judged by `macs_per_second` and `training_work`.

    Args:
        cost: of the sub-model, measured with `training`.
        training: how the sub-model is trained.
        examples: how many the device trains on.
        macs_per_second: in the benchmark step of device agents.
        speeds: of the device, by kind; none if it has not told them.

    """
    work = {kind: amount for kind, amount in cost.work.items() if amount}
    if not work or not all(kind in speeds for kind in work):
        return training_work(cost, training, examples) / macs_per_second
    batches = examples / training.batch_size
    steps = ceil(batches)
    return training.epochs * sum(
        amount * (steps if kind in PER_CALL else batches) / speeds[kind] for kind, amount in work.items()
    )


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
    moved = PER_BYTE * (cost.memory + cost.moved) * examples / training.batch_size
    return training.epochs * (arithmetic + moved + PER_TENSOR * cost.tensors * cost.calls * steps)


MOST_OFF = 30.0
"""How far a measured speed may be from its guess, in comparison with the others; our kernels make it up to 15."""


def explain(works: Sequence[Work], seconds: Sequence[float], guess: Speeds, rounds: int = 100) -> dict[str, float]:
    """Return the speeds, kind by kind, that explain best how long some steps took.

    The speeds start from a guess, of whose ratios alone much is kept: first all are scaled to the steps, then each is
    corrected, again and again, by how much too long or too short the steps are that it has a share in (the iteration of
    Richardson, 1972, and Lucy, 1974, on relative times). Speeds stay positive, and one that no step tells anything of
    keeps its guess. None becomes more than `MOST_OFF` times faster or slower than its scaled guess: what a disturbed
    measurement leaves over must not make a kind of work look free.

    Args:
        works: of each step.
        seconds: that each step took.
        guess: speeds of each kind of `KINDS`.
        rounds: of the iteration.

    """
    shares = [{kind: work.get(kind, 0.0) / took for kind in KINDS} for work, took in zip(works, seconds, strict=True)]
    slowness = {kind: 1 / guess[kind] for kind in KINDS}
    first = slowness
    for number in range(rounds):
        taken = [sum(share[kind] * slowness[kind] for kind in KINDS) for share in shares]
        if not number:
            scale = len(taken) / sum(taken)
            slowness = {kind: scale * value for kind, value in slowness.items()}
            first = dict(slowness)
            continue
        for kind in KINDS:
            total = sum(share[kind] for share in shares)
            if total:
                factor = sum(share[kind] / whole for share, whole in zip(shares, taken, strict=True)) / total
                least, most = first[kind] / MOST_OFF, first[kind] * MOST_OFF
                slowness[kind] = min(max(slowness[kind] * factor, least), most)
    return {kind: 1 / value for kind, value in slowness.items()}
