"""What this device is: cores, memory and training speed."""

import platform

import torch

from diastole.client.choices import ExecutionPlan
from diastole.client.groups import cores
from diastole.client.speeds import at_once
from diastole.client.walls import room
from diastole.models.levers import KNOWN
from diastole.proto.profile import Profile

KEEP_FREE = 0.25


def profile(
    tier: str,
    examples: int,
    memory: int | None = None,
    plan: ExecutionPlan = "reference",
    place: str = "cpu",
    threads: int | None = None,
) -> Profile:
    """Return this device's profile, whose speeds are guessed at the first start (`client/speeds.py`).

    Args:
        tier: that it asks for.
        examples: that it can train on.
        memory: its training budget in bytes, by default what is free.
        plan: how it will train.
        place: the type of the torch device that trains.
        threads: that training may have, by default one for each core.

    """
    found = at_once(plan, threads or cores(), place)
    return Profile(
        tier=tier,
        examples=examples,
        memory=memory if memory is not None else free_memory(),
        macs_per_second=found.macs_per_second,
        cores=cores(),
        speeds=found.speeds,
        simd_block=simd_block(),
        levers=KNOWN,
        memory_free=memory is None and place == "cpu",
    )


def free_memory() -> int | None:
    """Return the bytes this process may still take, a quarter kept free; None where the system does not say.

    What is left before the nearest wall (`client/walls.py`).
    """
    left = room()
    return None if left is None else int(left * (1 - KEEP_FREE))


def simd_block() -> int:
    """Return how many floats a vector of the processor has; 0 if torch does not say."""
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() in ("aarch64", "arm64"):
        return 4
    return {"AVX512": 16, "AVX2": 8}.get(capability, 0)
