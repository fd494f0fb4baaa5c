"""Memory for whole objects."""

import mmap
from contextlib import suppress

SMALL_BYTES = 4 << 20
"""Smaller pieces come from the allocator, which may have pages that were used before."""


def room(size: int) -> memoryview:
    """Return `size` bytes of zeros, in huge pages where Linux has them.

    A page is taken when it is written first, which costs the kernel as much as four copies if it is a small one. Raises
    `MemoryError`.
    """
    if size < SMALL_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(bytearray(size))
    try:
        held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        raise MemoryError(f"tried to allocate {size} bytes") from None
    # A kernel may be without them.
    with suppress(OSError):
        held.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(held)
