"""The engines by name: the ways of simulating devices. A package of one's own adds to them by an entry point."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diastole.experiments.errors import ExperimentError
from diastole.models.method import Size
from diastole.proto.registry import Registry
from diastole.server.link import Link

if TYPE_CHECKING:
    from diastole.simulations.devices import Federation


MANY = 1 << 10


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One way of simulating devices, as the registry knows it.

    Attributes:
        open: starts the engine for a federation whose method offers these sizes, as a link to its devices; leaving
            the context releases what it took.
        cards: the most cards, torch devices other than the CPU, that it can train on; `MANY` for any number.
        alone: it takes every core for one run.
        separate: devices train in processes of their own, which must be able to import the model.

    """

    open: "Callable[[Federation, Sequence[Size]], AbstractContextManager[Link]]"
    cards: int = 0
    alone: bool = False
    separate: bool = False


_HERE = "diastole.simulations.engines"
ENGINES: Registry[EngineRow] = Registry(
    "engine",
    {
        "loop": f"{_HERE}.loop:ROW",
        "processes": f"{_HERE}.processes:ROW",
        "batched": f"{_HERE}.batched:ROW",
        "auto": f"{_HERE}.auto:ROW",
        "flower": f"{_HERE}.flower:ROW",
    },
    EngineRow,
    ExperimentError,
)
