"""Examples in batches and in slices."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from diastole.models.recalibrate import mixes_examples

if TYPE_CHECKING:
    from diastole.models.training import Examples


def batches(examples: "Examples", size: int, generator: torch.Generator, least: int = 1) -> Iterator["Examples"]:
    """Yield one epoch of shuffled batches of at most `size` examples; a last one below `least` joins the one before."""
    order = torch.randperm(len(examples), generator=generator)
    for cut in cuts(len(order), size, least):
        yield examples.subset(order[cut])


def slices(examples: "Examples", size: int = 512, least: int = 1) -> Iterator["Examples"]:
    """Yield the examples in order, at most `size` at a time; a last slice below `least` joins the one before."""
    for cut in cuts(len(examples), size, least):
        yield examples.part(cut.start, cut.stop)


def cuts(count: int, size: int, least: int) -> list[slice]:
    """Return the batches of `count` examples; a last one below `least` joins the one before."""
    starts = range(0, count, size)
    if len(starts) > 1 and count - starts[-1] < least:
        starts = starts[:-1]
    return [slice(start, count if start == starts[-1] else start + size) for start in starts]


def least_batch(module: nn.Module) -> int:
    """Return how many examples a batch of training needs: 2 if they see each other, else 1."""
    return 2 if mixes_examples(module) else 1
