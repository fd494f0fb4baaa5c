"""Every device's examples, where any client process can find them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from diastole.models.training import Examples
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.engines.examples import SharedExamples
from diastole.simulations.simulation import Simulation


@dataclass(frozen=True, slots=True)
class Partitions:
    """Where the examples of all devices are; small, because Flower sends it with every task.

    On this machine they are mapped from files. A client process on another machine does not find the files; it loads
    the experiment's data itself, once, so `data.path` must lead to the same data there.

    Attributes:
        shared: the mapped files.
        experiment: the simulation, JSON.

    """

    shared: SharedExamples
    experiment: str

    @staticmethod
    def share(folder: Path, federation: Federation) -> "Partitions":
        """Write the examples of the federation's devices, in their order, into `folder`."""
        shared = SharedExamples.share(folder, federation.devices)
        return Partitions(shared, federation.simulation.model_dump_json())

    def of(self, number: int) -> Examples:
        """Return the examples of device `number`, counted from 0; mapped, not copied, on the machine with the files."""
        return _open(self)(number)


@lru_cache(maxsize=1)
def _open(where: Partitions) -> Callable[[int], Examples]:
    """Return what gives each device's examples; once a process."""
    if Path(where.shared.x.name).is_file():
        return where.shared.map()
    devices = list(make_federation(Simulation.parse(json.loads(where.experiment), "the experiment")).devices.values())
    return lambda number: devices[number].examples
