"""Augmentation of devices that train together: each device's batch is changed by the draws that it has in the loop."""

from collections.abc import Sequence

from torch import Tensor

from diastole.models.augment import changed
from diastole.models.seeds import generator
from diastole.models.training import Examples, TrainConfig


class Altered:
    """Changes the batches of a chunk's devices, step by step, by augmentations that mix no targets.

    A change is a few operators for each device, so on a card it is made before the step that is replayed.
    """

    def __init__(self, training: TrainConfig, seeds: Sequence[int]) -> None:
        """Begin the draws of tasks of these seeds."""
        self._training = training
        self._draws = [generator(seed, "augment") for seed in seeds]

    def batch(self, pool: Examples, index: Tensor, counts: Sequence[int]) -> Examples:
        """Return what devices train on at a step, `[batch, devices, ...]`.

        Args:
            pool: the examples of all devices.
            index: rows of it `[batch, devices]`.
            counts: how many of them each device has; none beyond the end of the list.

        """
        x, y, training = pool.x[index], pool.y[index], self._training
        for k, (count, draws) in enumerate(zip(counts, self._draws, strict=False)):
            if count:
                found = changed(training.augment, x[:count, k], y[:count, k], training.criterion, draws)
                x[:count, k], y[:count, k] = found[:2]
        return Examples(x, y)
