"""The groups of benchmarks by name."""

from collections.abc import Callable
from functools import partial

import torch

from diastole.benchmarks import (
    agent,
    codecs,
    device,
    devices,
    fedconv,
    fold,
    gpu,
    infer,
    kernels,
    memory,
    mixers,
    planning,
    simulation,
    start,
    transport,
)
from diastole.benchmarks import round as round_
from diastole.benchmarks.errors import GroupError
from diastole.benchmarks.row import Row

GROUPS: dict[str, Callable[[], list[Row]]] = {
    "fedconv": fedconv.rows,
    "transport": transport.rows,
    "round": round_.rows,
    "fold": fold.rows,
    "codecs": codecs.rows,
    "simulation": simulation.rows,
    "start": start.rows,
    "agent": agent.rows,
    "infer": infer.rows,
    "device": device.rows,
    "planning": planning.rows,
    "mixers": mixers.rows,
    "kernels": kernels.rows,
}

SCALED: dict[str, Callable[[float], list[Row]]] = {
    "memory": memory.rows,
    "devices": devices.rows,
}
"""Groups that take minutes at the scale of their bars."""

CARDS: dict[str, Callable[[], list[Row]]] = {"gpu": gpu.rows}
"""Groups that need a GPU; without one they are measured only if they are asked for, and refused in one line."""


def run(group: str | None, progress: Callable[[str], None], scale: float = 0.1) -> list[Row]:
    """Measure one group, or all of them, and return the rows.

    `scale` is how many devices `SCALED` groups take, 1 for those of their bars.
    `progress` is told of each group before it starts, and of the notes of its rows.

    Raises `GroupError` for a group that does not exist, `BenchmarkError` for a measurement that means nothing.
    """
    scaled = {name: partial(rows, scale) for name, rows in SCALED.items()}
    groups = GROUPS | scaled | (CARDS if group is not None or torch.cuda.is_available() else {})
    if group is not None and group not in groups:
        raise GroupError(f"no group {group!r}; the groups are {', '.join(groups)}")
    found = []
    for name in groups if group is None else [group]:
        progress(f"measuring {name}")
        for row in groups[name]():
            found.append(row)
            for note in row.notes:
                progress(f"{row.name}: {note}")
    return found
