"""A network with exits that leaves by the first one that is sure enough."""

from collections.abc import Sequence
from itertools import product, zip_longest

import torch
from torch import Tensor, nn

from diastole.models.errors import ModelError
from diastole.models.export.counting import forward_macs
from diastole.models.methods.depths.depthfl import DepthFL
from diastole.models.methods.depths.exits import Exited
from diastole.models.networks.family import parts

MOST = 20_000
"""Combinations of thresholds that are tried."""

NEVER = 2.0
"""A threshold that no probability reaches."""


class Section(nn.Module):
    """What runs from one exit to the next: a stage and its exit.

    Takes what the section before it gives, `h` and the sum of the outputs of the exits before; gives the same for the
    next one, and the answer `[n, classes]` by which the network may leave here: this exit's, or the mean of all so far
    where the network was trained for that (DepthFL).
    """

    def __init__(self, stage: nn.Module, leave: nn.Module, number: int, mean: bool) -> None:
        super().__init__()
        self.stage, self.leave, self.number, self.mean = stage, leave, number, mean

    def forward(self, h: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the next section takes, and the answer."""
        h = self.stage(h)
        answer: Tensor = self.leave(h)
        total = total + answer
        return h, total, total / self.number if self.mean else answer


class _Enter(nn.Module):
    """The first stage, with what comes before it."""

    def __init__(self, trunk: nn.Module, stage: nn.Module) -> None:
        super().__init__()
        self.trunk, self.stage = trunk, stage

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.stage(parts(self.trunk).enter(x))
        return h


class _Leave(nn.Module):
    """The network's own classifier."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, h: Tensor) -> Tensor:
        return parts(self.trunk).leave(h)


class Cascade(nn.Module):
    """Sections, and how sure the answer of each but the last must be: its largest probability.

    Takes `[n, *input_shape]`, gives `[n, classes]`: for each example the answer of the first exit that is sure enough.
    """

    def __init__(self, sections: Sequence[Section], thresholds: Sequence[float], classes: int) -> None:
        super().__init__()
        self.sections, self.thresholds, self.classes = nn.ModuleList(sections), tuple(thresholds), classes

    def answers(self, x: Tensor) -> list[Tensor]:
        """Return the answer of every exit, `[n, classes]` each."""
        found, total = [], x.new_zeros(x.shape[0], self.classes)
        for section in self.sections:
            x, total, answer = section(x, total)
            found.append(answer)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return the answers by which the network leaves; all exits are worked out, for a comparison."""
        answers = self.answers(x)
        return torch.stack(answers)[leaving(answers, self.thresholds), torch.arange(len(x))]


def sections_of(module: nn.Module) -> list[Section]:
    """Return the sections of a trained network with exits. Raises `ModelError` for any other module."""
    if not isinstance(module, Exited) or len(module.gives) != 1:
        raise ModelError("the model has no exits that give classes; methods depthfl and scalefl train such exits")
    trunk, mean = parts(module.trunk), isinstance(module, DepthFL)
    found = []
    for number, (stage, leave) in enumerate(zip_longest(trunk.stages, module.exits, fillvalue=None), 1):
        if stage is None:
            break
        whole = _Enter(module.trunk, stage) if number == 1 else stage
        found.append(Section(whole, _Leave(module.trunk) if leave is None else leave, number, mean).eval())
    return found


def leaving(answers: Sequence[Tensor], thresholds: Sequence[float]) -> Tensor:
    """Return the number of the exit, from 0, by which each example leaves, int64 `[n]`."""
    sure = torch.stack([answer.softmax(1).amax(1) for answer in answers[:-1]] or [answers[0].new_zeros(0)])
    if len(answers) == 1:
        return torch.zeros(len(answers[0]), dtype=torch.int64)
    enough = sure >= torch.tensor(thresholds)[:, None]
    return torch.where(enough.any(0), enough.int().argmax(0), len(answers) - 1)


def section_macs(sections: Sequence[Section], x: Tensor, classes: int) -> list[int]:
    """Return the multiply-accumulates of one example `x`, `[1, *input_shape]`, up to and with each exit."""
    found, total = list[int](), x.new_zeros(1, classes)
    for section in sections:
        found.append(_macs(section, x, total) + (found[-1] if found else 0))
        with torch.no_grad():
            x, total, _ = section(x, total)
    return found


def _macs(section: Section, h: Tensor, total: Tensor) -> int:
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return section(x, total)[2]  # type: ignore[no-any-return]

    return forward_macs(One(), h)


def calibrated(answers: Sequence[Tensor], y: Tensor, macs: Sequence[int], drop: float) -> tuple[float, ...]:
    """Return the thresholds with the least work for which accuracy falls by at most `drop` from the last exit's.

    Args:
        answers: of each exit, `[n, classes]`, for examples that nothing was trained on.
        y: labels `[n]`.
        macs: work up to each exit.
        drop: in [0, 1].

    Thresholds are sought among quantiles of how sure each exit is; every combination is tried. Of equal work the more
    accurate one is taken.

    """
    if len(answers) == 1:
        return ()
    many = len(answers) - 1
    levels = max(2, int(MOST ** (1 / many)) - 1)
    sure = [answer.softmax(1).amax(1) for answer in answers[:-1]]
    grid = [
        [*torch.quantile(each, torch.linspace(0, 1, min(levels, len(each)))).unique().tolist(), NEVER]  # type: ignore[no-untyped-call]
        for each in sure
    ]
    right = torch.stack([answer.argmax(1) == y for answer in answers])
    every = torch.arange(len(y))
    least = float(right[-1].double().mean()) - drop - 1e-9
    work = torch.tensor(macs, dtype=torch.float64)
    best, found = (float("inf"), 0.0), (NEVER,) * many
    for thresholds in product(*grid):
        exits = leaving(answers, thresholds)
        accuracy = float(right[exits, every].double().mean())
        if accuracy >= least:
            best, found = min((best, found), ((float(work[exits].mean()), -accuracy), thresholds))
    return found


def shares(exits: Tensor, count: int) -> list[float]:
    """Return the share of examples that leave by each of `count` exits."""
    return (torch.bincount(exits, minlength=count).double() / max(1, len(exits))).tolist()
