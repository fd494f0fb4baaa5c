"""Stitching layers and their least-squares start (SN-Net, Pan et al., CVPR 2023, section 3.3).

A stitch is the affine map that takes the activations X of one network closest to the activations Y of another. It
needs no more of the data than two sums, `G = Xa' Xa` and `R = Xa' Y` with `Xa = [X 1]`. They add over examples, so
devices can work them out on their own examples and send nothing else.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.crossing import fetch, number, send


@dataclass(frozen=True, slots=True)
class Sums:
    """What a least-squares fit needs of the data.

    Attributes:
        gram: `Xa' Xa`, float64 `[inside + 1, inside + 1]`.
        cross: `Xa' Y`, float64 `[inside + 1, outside]`.

    """

    gram: Tensor
    cross: Tensor

    @property
    def rows(self) -> float:
        """How many rows of X went in; 1 if the sums were made means."""
        return number(self.gram[-1, -1])

    @staticmethod
    def none(x: Tensor, y: Tensor) -> "Sums":
        """Return the sums over no rows like `x`, `[rows, inside]`, and `y`, `[rows, outside]`."""
        wide = x.shape[1] + 1
        return Sums(*(x.new_zeros(wide, size, dtype=torch.float64) for size in (wide, y.shape[1])))

    def add_(self, x: Tensor, y: Tensor) -> None:
        """Add rows of activations `x`, `[rows, inside]`, and what they shall become, `[rows, outside]`, in place."""
        wide = x.new_ones(len(x), x.shape[1] + 1, dtype=torch.float64)
        wide[:, :-1] = x
        self.gram.add_(wide.T @ wide)
        self.cross.add_(wide.T @ y.double())


def sums(x: Tensor, y: Tensor) -> Sums:
    """Return the sums over activations `x`, `[rows, inside]`, and what they shall become, `[rows, outside]`."""
    total = Sums.none(x, y)
    total.add_(x, y)
    return total


def merge(parts: Iterable[Sums]) -> Sums:
    """Return the sums over all rows of the parts, of which there is at least one."""
    first, *others = parts
    gram, cross = first.gram.clone(), first.cross.clone()
    for part in others:
        gram += part.gram
        cross += part.cross
    return Sums(gram, cross)


def solve(total: Sums, ridge: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Return the weight `[outside, inside]` and the bias `[outside]` that are closest to Y in the least squares.

    Sums and their multiples, such as means, give the same. `ridge` is a share of the mean square of X that is added
    to each channel's: it keeps channels that carry nothing at zero, and takes up what sums lost in float32. The
    smallest of several solutions is returned if there is no ridge.
    """
    # Cards have no solver for matrices of any rank; these are small, and solved once a run.
    device, (gram, cross) = total.gram.device, fetch([total.gram, total.cross])
    shift = ridge * gram.diagonal().mean()
    damped = gram + shift * torch.eye(len(gram), dtype=torch.float64)
    solution = torch.linalg.lstsq(damped, cross, driver="gelsd").solution.float()
    return send(solution[:-1].T.contiguous(), device), send(solution[-1].contiguous(), device)


def rows_of(x: Tensor, channels: int) -> Tensor:
    """Return activations as rows `[n * positions, channels]`; `channels` is the axis of the channels."""
    return x.movedim(channels, -1).flatten(0, -2)


class Stitch(nn.Linear):
    """An affine map of the channels, the same at every position: a 1x1 convolution, or a layer on tokens."""

    def __init__(self, inside: int, outside: int, channels: int) -> None:
        """`channels` is the axis of the channels."""
        super().__init__(inside, outside)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Return activations of `outside` channels, at the same positions."""
        return _back(F.linear(x.movedim(self.channels, -1), self.weight, self.bias), self.channels)


class LowRankStitch(Stitch):
    """A stitch whose weight stays as it is but for a low-rank change: `W0 + B A / rank` (SN-Netv2, section 3.3).

    A starts as linear layers do (Kaiming-uniform) and B at zero; A, B and the bias are trained. The paper's scale is
    alpha / rank with alpha 1.
    """

    def __init__(self, inside: int, outside: int, channels: int, rank: int) -> None:
        super().__init__(inside, outside, channels)
        self.rank = rank
        self.weight.requires_grad_(False)
        self.down = nn.Linear(inside, rank, bias=False)
        self.up = nn.Linear(rank, outside, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return activations of `outside` channels, at the same positions."""
        x = x.movedim(self.channels, -1)
        y: Tensor = F.linear(x, self.weight, self.bias) + self.up(self.down(x)) / self.rank
        return _back(y, self.channels)

    def plain_form(self) -> nn.Module:
        """Return a stitch with the change in its weight."""
        made = Stitch(self.in_features, self.out_features, self.channels)
        change = self.up.weight @ self.down.weight / self.rank
        made.weight, made.bias = nn.Parameter(self.weight.detach() + change.detach()), self.bias
        return made


def _back(rows: Tensor, channels: int) -> Tensor:
    """Return activations whose channels are last with them on an axis, laid out as all other layers lay them out.

    Channels last in memory would be handed on from layer to layer, and oneDNN's gradients of some convolutions of such
    maps (1x1, stride 2, 6 channels from 4) write past their buffers.
    """
    return rows.movedim(-1, channels).contiguous()
