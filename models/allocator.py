"""The allocator of this process: how it keeps pages, what lies free in it, and giving that back."""

import ctypes
import sys
from functools import cache
from typing import Any

# From glibc's malloc.h. Activations of a few MiB would otherwise be mapped and unmapped at every step.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEEP_BYTES = 1 << 30

_kept = [0, 0]


def keep_pages(mapped: int = KEEP_BYTES, free: int = KEEP_BYTES) -> bool:
    """Tell glibc's allocator to keep freed memory; False where there is no glibc. For the whole process.

    Args:
        mapped: bytes from which on a piece of memory has pages of its own, which go back when it is freed.
        free: bytes that may be free at the end of a heap, of which each thread may have one.

    Of several calls the largest numbers count.

    """
    glibc = _glibc()
    if glibc is None:
        return False
    _kept[:] = max(_kept[0], mapped), max(_kept[1], free)
    return bool(glibc.mallopt(M_MMAP_THRESHOLD, _kept[0]) and glibc.mallopt(M_TRIM_THRESHOLD, _kept[1]))


def share_pages(heaps: int) -> bool:
    """Let all threads take memory from so many heaps, so that one finds what another has freed; False likewise.

    Heaps that are there already stay.
    """
    glibc = _glibc()
    return glibc is not None and bool(glibc.mallopt(M_ARENA_MAX, heaps))


def give_back() -> None:
    """Give the system the pages back that are free between pieces in use, which takes a few milliseconds."""
    glibc = _glibc()
    if glibc is not None:
        glibc.malloc_trim(0)


def free_bytes() -> int:
    """Return the bytes of heap that are free and not given back; zero where there is no glibc of 2.33 or later."""
    glibc = _glibc()
    if glibc is None or not hasattr(glibc, "mallinfo2"):
        return 0
    glibc.mallinfo2.restype = _Mallinfo2
    return int(glibc.mallinfo2().fordblks)


class _Mallinfo2(ctypes.Structure):
    """From glibc's malloc.h."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "top",
        )
    )


@cache
def _glibc() -> Any:
    """Return the C library if it is glibc, otherwise None."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        glibc = ctypes.CDLL("libc.so.6")
        _ = glibc.mallopt
        glibc.malloc_trim.argtypes = [ctypes.c_size_t]
    except (OSError, AttributeError):
        return None
    return glibc
