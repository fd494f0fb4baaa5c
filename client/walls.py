"""How far this process is from the walls of memory: the machine's, its control groups' and its own limits (Linux)."""

import re
import resource
from contextlib import suppress
from pathlib import Path

from diastole.client import groups as process
from diastole.client.groups import groups, read
from diastole.models.allocator import free_bytes, give_back

MEMINFO = Path("/proc/meminfo")
OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|bad_alloc|out of memory|can't start new thread|could not create a (memory|primitive)"
)
UNSEEN = 16 << 20
"""Bytes by which a process may grow beyond what training counts: pages of libraries that a first step reads, generated
code, and workspaces of kernels. In the first steps of 11 networks, that was 12 MB at most."""

LITTLE = 8
"""Free heap is little if there is so many times more room."""


def room() -> int | None:
    """Return the bytes that this process may still take before it meets a wall; None where no wall is known.

    The smallest of what the machine has available, what is left in each control group (version 2) above this process,
    and what its limits of data and of address space leave. Heap that is free is given back first, unless that would
    make little difference: training would have to take it anew, page by page.
    """
    found = _walls()
    if found and min(found) < LITTLE * free_bytes():
        give_back()
        found = _walls()
    return max(0, min(found)) if found else None


def _walls() -> list[int]:
    free = free_bytes()
    return [*_machine(), *_control_groups(), *(left + free for left in _limits())]


def growth(memory: int | None) -> int | None:
    """Return the bytes by which this process may grow where training may count `memory`; None for no limit."""
    limits = [None if memory is None else memory + UNSEEN, room()]
    return min((limit for limit in limits if limit is not None), default=None)


def near(reserve: int) -> bool:
    """Return whether less than `reserve` bytes are left before a wall, as the heap stands."""
    return any(left < reserve for left in (*_machine(), *_control_groups(), *_limits()))


def resident() -> int | None:
    """Return the bytes of memory that this process has; None where the system does not say."""
    return _status().get("VmRSS")


class Peak:
    """The most memory that this process has had since the block began."""

    def __init__(self) -> None:
        """Begin."""
        with suppress(OSError):
            # Lets Linux forget the peak so far.
            (process.PROCESS / "clear_refs").write_text("5")
        self._before = resident()

    def grown(self) -> int:
        """Return by how many bytes it has grown at most; 0 where the system does not say."""
        peak = _status().get("VmHWM")
        return 0 if peak is None or self._before is None else max(0, peak - self._before)


def out_of_memory(error: BaseException | None) -> str:
    """Return what an error, or one behind it, says that there was no memory for; empty if it says no such thing."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
            size = re.search(r"tried to allocate (\S+ ?\w*)", str(error))
            return f"another {size[1]}" if size else "more"
        error = error.__cause__ or error.__context__
    return ""


def _machine() -> list[int]:
    found = re.search(r"^MemAvailable: *(\d+) kB$", read(MEMINFO), re.MULTILINE)
    return [int(found[1]) * 1024] if found else []


def _control_groups() -> list[int]:
    found = []
    for folder in groups():
        limit, used = read(folder / "memory.max").strip(), read(folder / "memory.current").strip()
        if limit.isdecimal() and used.isdecimal():
            cached = re.search(r"^inactive_file (\d+)$", read(folder / "memory.stat"), re.MULTILINE)
            found.append(int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return found


def _limits() -> list[int]:
    status, found = _status(), []
    for limit, field in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY and field in status:
            found.append(most - status[field])
    return found


def _status() -> dict[str, int]:
    """Return the bytes in this process's status by field."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB$", read(process.PROCESS / "status"), re.MULTILINE)
    return {name: int(kilobytes) * 1024 for name, kilobytes in lines}
