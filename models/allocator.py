"""An allocator that keeps its pages."""

import ctypes
import sys

# From glibc's malloc.h. Activations of a few MiB would otherwise be mapped and unmapped at every step.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP_BYTES = 1 << 30

_kept = [0, 0]


def keep_pages(mapped: int = KEEP_BYTES, free: int = KEEP_BYTES) -> bool:
    """Tell glibc's allocator to keep freed memory; False where there is no glibc. For the whole process.

    Args:
        mapped: bytes from which on a piece of memory has pages of its own, which go back when it is freed.
        free: bytes that may be free at the end of a heap, of which each thread may have one.

    Of several calls the largest numbers count.

    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    _kept[:] = max(_kept[0], mapped), max(_kept[1], free)
    return bool(mallopt(M_MMAP_THRESHOLD, _kept[0]) and mallopt(M_TRIM_THRESHOLD, _kept[1]))
