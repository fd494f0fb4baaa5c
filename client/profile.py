"""What this device is: cores, memory and training speed."""

import os
import time
from pathlib import Path

import torch
from torch import nn

from diastole.models.seeds import reference_plan
from diastole.proto.profile import Profile

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USED = Path("/sys/fs/cgroup/memory.current")
MEMINFO = Path("/proc/meminfo")
SPEED_STEPS = 5
KEEP_FREE = 0.25


def profile(tier: str, examples: int, memory: int | None = None) -> Profile:
    """Return this device's profile; `memory` is its training budget in bytes, by default what is free."""
    return Profile(
        tier=tier,
        examples=examples,
        memory=memory if memory is not None else free_memory(),
        macs_per_second=training_speed(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )


def free_memory() -> int | None:
    """Return the bytes this process may still take, a quarter kept free; None where the system does not say.

    Linux only: the smaller of what the machine has available and what its control group leaves.
    """
    found = []
    try:
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        limit = CGROUP_LIMIT.read_text().strip()
        if limit != "max":
            found.append(int(limit) - int(CGROUP_USED.read_text()))
    except (OSError, ValueError):
        pass
    return max(0, int(min(found) * (1 - KEEP_FREE))) if found else None


def training_speed() -> float:
    """Return multiply-accumulates a second of a small training step on one thread: the best of a few."""
    with reference_plan(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        batch = torch.randn(16, 8, 16, 16)
        macs = 16 * 16 * 16 * 9 * (8 * 16 * 2 + 16 * 16 * 3)
        best = float("inf")
        for _ in range(SPEED_STEPS):
            began = time.perf_counter()
            module(batch).square().sum().backward()
            best = min(best, time.perf_counter() - began)
    return macs / best
