"""Tensors that lie in files."""

import torch

from diastole.benchmarks.needsall import anonymous
from diastole.models.spilled import LEAST_BYTES, spilled


def test_a_large_tensor_is_none_of_the_processs_own_memory() -> None:
    count = LEAST_BYTES // 4
    before = anonymous()
    held = spilled((2, count // 2), torch.ones(1))
    held += torch.arange(2.0).unsqueeze(1)
    assert anonymous() - before < LEAST_BYTES / 4
    assert held.sum(1).tolist() == [0.0, count / 2]
    small = spilled((count - 1,), torch.ones(1, dtype=torch.float64).to(torch.float32))
    assert small.add_(1.0).sum() == count - 1
    assert anonymous() - before > LEAST_BYTES / 2
