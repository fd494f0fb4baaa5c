"""Tensors that lie in files."""

from pathlib import Path

import torch
from torch import Tensor

from diastole.models.spilled import LEAST_BYTES, spilled


def mapped(tensor: Tensor) -> tuple[int, int]:
    """Return the inode of the file that a tensor lies in, 0 for none, and the bytes of its mapping that are no file's.

    The second are the process's own copies of pages, which a private mapping makes as they are written to.
    """
    (first, last), found = (tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes), None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            start, end = (int(each, 16) for each in name.split("-"))
            found = int(rest[3]) if start <= first and last <= end else None
        elif found is not None and name == "Anonymous:":
            return found, int(rest[0]) * 1024
    raise AssertionError(f"no mapping holds {first:x}-{last:x}")


def test_a_large_tensor_is_none_of_the_processs_own_memory() -> None:
    count = LEAST_BYTES // 4
    held = spilled((2, count // 2), torch.ones(1))
    held += torch.arange(2.0).unsqueeze(1)
    inode, own = mapped(held)
    assert inode
    assert own == 0
    assert held.sum(1).tolist() == [0.0, count / 2]
    small = spilled((count - 1,), torch.ones(1, dtype=torch.float64).to(torch.float32))
    assert small.add_(1.0).sum() == count - 1
    inode, own = mapped(small)
    assert not inode
    assert own > small.nbytes / 2
