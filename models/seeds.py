"""Every random draw comes from a named seed."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*names: str | int) -> int:
    """Return a 63-bit seed that depends on every name and on their order.

    Names are what the draw is for, from the outside in: run seed, round, device, purpose. Two draws with
    different names are independent; the same names give the same draw on every machine.
    """
    # A separator inside a name is doubled, so that no name can pass for two.
    text = "\x1f".join(f"{type(name).__name__}:{name}".replace("\x1f", "\x1f\x1f") for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*names: str | int) -> torch.Generator:
    """Return a CPU generator seeded by `derive_seed(*names)`."""
    return torch.Generator().manual_seed(derive_seed(*names))


@contextmanager
def reference_plan() -> Iterator[None]:
    """Run the block on one thread, so that sums are split the same way everywhere.

    Two runs on machines of one kind give the same bits only with the same number of threads. The earlier number is
    restored afterwards.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
