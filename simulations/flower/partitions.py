"""Every device's examples, where any client process can find them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from diastole.models.training import Examples
from diastole.simulations.experiment import Experiment, parse
from diastole.simulations.federation import Device, make_federation
from diastole.simulations.slabs import Slab


@dataclass(frozen=True, slots=True)
class Partitions:
    """Where the examples of all devices are; small, because Flower sends it with every task.

    On this machine they are mapped from files. A client process on another machine does not find the files; it loads
    the experiment's data itself, once, so `data.path` must lead to the same data there.

    Attributes:
        folder: of the mapped files.
        devices: how many hold examples.
        examples: of all of them together.
        input_shape: of one example.
        experiment: JSON.

    """

    folder: str
    devices: int
    examples: int
    input_shape: tuple[int, ...]
    experiment: str

    @staticmethod
    def share(folder: Path, devices: Mapping[str, Device], experiment: Experiment) -> "Partitions":
        """Write the examples of `devices`, in their order, into `folder`."""
        held = [device.examples for device in devices.values()]
        ends = torch.tensor([0, *map(len, held)]).cumsum(0)
        x = torch.cat([examples.x for examples in held])
        Slab.create(folder / "x", x)
        Slab.create(folder / "y", torch.cat([examples.y for examples in held]))
        Slab.create(folder / "ends", ends)
        return Partitions(str(folder), len(held), len(x), tuple(x.shape[1:]), experiment.model_dump_json())

    def of(self, number: int) -> Examples:
        """Return the examples of device `number`, counted from 0; mapped, not copied."""
        x, y, ends = _open(self)
        part = slice(int(ends[number]), int(ends[number + 1]))
        return Examples(x[part], y[part])


@lru_cache(maxsize=1)
def _open(where: Partitions) -> tuple[Tensor, Tensor, Tensor]:
    """Return all inputs, all labels, and where each device's begin and end; once a process."""
    folder = Path(where.folder)
    if folder.is_dir():
        flat = Slab(str(folder / "x"), "float32", where.examples * _values(where.input_shape)).map()
        y = Slab(str(folder / "y"), "int64", where.examples).map()
        ends = Slab(str(folder / "ends"), "int64", where.devices + 1).map()
        return flat.view(-1, *where.input_shape), y, ends
    federation = make_federation(parse(json.loads(where.experiment), "the experiment"))
    held = [device.examples for device in federation.devices.values()]
    ends = torch.tensor([0, *map(len, held)]).cumsum(0)
    return torch.cat([examples.x for examples in held]), torch.cat([examples.y for examples in held]), ends


def _values(shape: tuple[int, ...]) -> int:
    return int(torch.tensor(shape).prod())
