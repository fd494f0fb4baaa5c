"""The control groups of this process (Linux, version 2), and the processor's cores that it may use.

This module must not import torch: the number of its threads is settled before.
"""

import os
import re
from pathlib import Path

PROCESS = Path("/proc/self")
CGROUPS = Path("/sys/fs/cgroup")


def groups() -> list[Path]:
    """Return the folder of each control group above this process, its own first."""
    own = re.search(r"^0::(/.*)$", read(PROCESS / "cgroup"), re.MULTILINE)
    path = CGROUPS / own[1].lstrip("/") if own else CGROUPS
    # In a container the path may be the host's; what the container sees is then its own root.
    return [folder for folder in (path, *path.parents) if folder.is_relative_to(CGROUPS)]


def quota() -> float | None:
    """Return how many cores' time the control groups leave to this process; None for no limit."""
    limits = [re.fullmatch(r"(\d+) (\d+)", read(folder / "cpu.max").strip()) for folder in groups()]
    return min((int(found[1]) / int(found[2]) for found in limits if found and int(found[2])), default=None)


def cores() -> int:
    """Return the processor's cores that this process may use: whole ones of its quota, at least one.

    One thread more than that would have all of them stopped for a part of each tenth of a second.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = quota()
    return there if allowed is None else max(1, min(there, int(allowed)))


def read(path: Path) -> str:
    """Return the text of a file; empty if it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
