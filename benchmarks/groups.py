"""The groups of benchmarks by name."""

from collections.abc import Callable

from diastole.benchmarks import (
    agent,
    codecs,
    device,
    fedconv,
    fold,
    infer,
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
}


def run(group: str | None, progress: Callable[[str], None]) -> list[Row]:
    """Measure one group, or all of them, and return the rows.

    `progress` is told of each group before it starts, and of the notes of its rows.

    Raises `GroupError` for a group that does not exist, `BenchmarkError` for a measurement that means nothing.
    """
    if group is not None and group not in GROUPS:
        raise GroupError(f"no group {group!r}; the groups are {', '.join(GROUPS)}")
    rows = []
    for name in GROUPS if group is None else [group]:
        progress(f"measuring {name}")
        for row in GROUPS[name]():
            rows.append(row)
            for note in row.notes:
                progress(f"{row.name}: {note}")
    return rows
