"""Channel pruning by LASSO and least squares (He et al., ICCV 2017, section 3.1).

A layer reads channels. Those are kept that LASSO keeps when it explains the layer's outputs by a factor for each
channel; the layer's weights are then solved anew for the channels that are left. Both look at inputs alone, no labels.
"""

import math

import torch
from torch import Tensor

ROUNDS = 200
RIDGE = 1e-5


def lasso(gram: Tensor, cross: Tensor, penalty: float, start: Tensor, close: float = 1e-8) -> Tensor:
    """Return the factors that minimise `b' gram b / 2 - cross' b + penalty |b|`, by coordinate descent.

    Args:
        gram: `[units, units]`, float64.
        cross: `[units]`.
        penalty: of a factor's size.
        start: factors to start from, `[units]`.
        close: how much factors change at most in the last turn.

    """
    # Numbers one at a time, which NumPy is quicker at.
    matrix, goal, factors = gram.numpy(), cross.numpy(), start.clone().numpy()
    for _ in range(ROUNDS):
        moved = 0.0
        for k, power in enumerate(matrix.diagonal()):
            before = factors[k]
            rest = goal[k] - matrix[k] @ factors + power * before
            size = abs(rest) - penalty
            factors[k] = math.copysign(size, rest) / power if size > 0 and power > 0 else 0.0
            moved = max(moved, abs(factors[k] - before))
        if moved < close:
            break
    return torch.from_numpy(factors)


def chosen(rows: Tensor, weight: Tensor, wanted: Tensor, keep: int) -> Tensor:
    """Return the units that explain outputs best, int64 `[keep]`, ascending.

    Args:
        rows: inputs of a layer by unit, `[rows, units, values]`.
        weight: of the layer, `[out, units, values]`.
        wanted: its outputs without the bias, `[rows, out]`.
        keep: how many units.

    """
    # What each unit brings to each output.
    brought = torch.einsum("ruv,ouv->uro", rows.double(), weight.double()).flatten(1)
    gram, cross = brought @ brought.T, brought @ wanted.double().flatten()
    scale = float(cross.abs().max().clamp(min=1e-30))
    factors, penalty = torch.ones(len(gram), dtype=torch.float64), 1e-3 * scale
    while int((factors != 0).sum()) > keep and penalty < 2 * scale:
        last, factors = factors, lasso(gram, cross, penalty, factors, 1e-4)
        penalty *= 1.5
        if int((factors != 0).sum()) < keep:
            # The step was too long: of those that it put out, the largest of the step before come back.
            factors = last
            break
    # Of equal factors those that bring more.
    rank = factors.abs() * gram.diagonal().clamp(min=0).sqrt()
    return rank.argsort(descending=True, stable=True)[:keep].sort().values


def solved(rows: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight `[out, values]` and the bias `[out]` that take rows closest to outputs (least squares).

    Args:
        rows: `[rows, values]`.
        wanted: `[rows, out]`, with the bias.

    """
    wide = torch.cat([rows.double(), rows.new_ones(len(rows), 1, dtype=torch.float64)], 1)
    gram = wide.T @ wide
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    solution = torch.linalg.solve(gram, wide.T @ wanted.double()).float()
    return solution[:-1].T.contiguous(), solution[-1].contiguous()
