"""What this device is: cores, memory and training speed."""

import os
import time

import torch

from diastole.client.walls import room
from diastole.models.methods.widths.width import width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import network
from diastole.models.seeds import reference_plan
from diastole.models.training import Examples, TrainConfig, fit
from diastole.proto.profile import Profile

KEEP_FREE = 0.25
SPEED_SECONDS = 0.3
SPEED_MODEL = ModelConfig("cnn", (3, 32, 32), 10, (32, 64))
SPEED_TRAINING = TrainConfig(batch_size=16)


def profile(tier: str, examples: int, memory: int | None = None) -> Profile:
    """Return this device's profile; `memory` is its training budget in bytes, by default what is free."""
    return Profile(
        tier=tier,
        examples=examples,
        memory=memory if memory is not None else free_memory(),
        macs_per_second=training_speed(),
        cores=cores(),
    )


def cores() -> int:
    """Return the processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int | None:
    """Return the bytes this process may still take, a quarter kept free; None where the system does not say.

    What is left before the nearest wall (`client/walls.py`).
    """
    left = room()
    return None if left is None else int(left * (1 - KEEP_FREE))


def training_speed() -> float:
    """Return multiply-accumulates a second of training a small CNN on one thread, as tasks are trained.

    The mean over at least `SPEED_SECONDS`, not the best step: a CPU quota or a hot chip stops a device for tens of
    milliseconds at a time, and tasks wait for that as well.
    """
    with reference_plan(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        module, draws = network(SPEED_MODEL), torch.Generator()
        batch = Examples(torch.randn(16, *SPEED_MODEL.input_shape), torch.arange(16) % SPEED_MODEL.classes)
        # Not timed: it loads what the first task would otherwise load, a second or two.
        fit(module, batch, SPEED_TRAINING, draws)
        macs = width_cost(SPEED_MODEL, 1.0, SPEED_TRAINING).training_macs
        trained, began, seconds = 0, time.perf_counter(), 0.0
        while seconds < SPEED_SECONDS:
            fit(module, batch, SPEED_TRAINING, draws)
            trained, seconds = trained + len(batch), time.perf_counter() - began
    return macs * trained / seconds
