"""How long training takes, which multiply-accumulates alone cannot tell."""

from collections.abc import Mapping, Sequence
from math import ceil

import torch

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


SPREAD = 0.4
"""By how much, in logarithms, the speed at one kind of work may be off its guess in comparison with the others: at
most 1.5 times in two cases of three, 2.2 times in one of twenty, and more where the steps leave no doubt."""

ROUNDS = 50
NOISE = 0.1
"""By how much, in logarithms, a measured step is off. One that is off by more than twice as much counts the less."""


def explain(works: Sequence[Work], seconds: Sequence[float], guess: Speeds, spread: float = SPREAD) -> dict[str, float]:
    """Return the speeds, kind by kind, that explain best how long some steps took.

    They are the most probable ones if each step is off by `NOISE`, and each speed by `spread` from its guess, of whose
    ratios alone something is kept: what a disturbed measurement leaves over does not make a kind of work look free, and
    a speed that no step tells anything of keeps its guess. Logarithms are fitted by Gauss and Newton's iteration with
    the weights of Huber (1964).

    Args:
        works: of each step.
        seconds: that each step took.
        guess: speeds of each kind of `KINDS`.
        spread: of the speeds' logarithms.

    """
    taken = torch.tensor([[work.get(kind, 0.0) / guess[kind] for kind in KINDS] for work in works], dtype=torch.float64)
    told = torch.tensor(seconds, dtype=torch.float64).log()
    # The last unknown is what all have in common.
    found = torch.zeros(len(KINDS) + 1, dtype=torch.float64)
    found[-1] = (told - taken.sum(1).log()).mean()
    prior = torch.full_like(found, (NOISE / spread) ** 2)
    prior[-1] = 0.0
    for _ in range(ROUNDS):
        parts = taken * (found[:-1] + found[-1]).exp()
        off = parts.sum(1).log() - told
        slopes = torch.cat([parts / parts.sum(1, keepdim=True), torch.ones(len(off), 1, dtype=torch.float64)], 1)
        weights = (2 * NOISE / off.abs()).clamp(max=1.0)
        normal = slopes.T @ (weights[:, None] * slopes) + prior.diag()
        found -= torch.linalg.solve(normal, slopes.T @ (weights * off) + prior * found).clamp(-1, 1)
    slowness = (found[:-1] + found[-1]).exp().tolist()
    return {kind: guess[kind] / slow for kind, slow in zip(KINDS, slowness, strict=True)}
