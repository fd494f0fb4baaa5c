"""The examples of all devices in files that several processes map."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diastole.models.seeds import reference_plan
from diastole.models.training import Examples
from diastole.simulations.devices import Device
from diastole.simulations.engines.slabs import Slab


@dataclass(frozen=True, slots=True)
class SharedExamples:
    """Where the examples of every device are, one device after another.

    Attributes:
        x: slab of all inputs.
        y: slab of their targets.
        offsets: slab of where each device's begin, and where the last one's end. A list of thousands would make a
            worker's first line longer than a pipe holds, and its writer wait until the worker has imported torch.
        input_shape: of one example.
        target_shape: of the targets of one example; empty for a label.

    """

    x: Slab
    y: Slab
    offsets: Slab
    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...] = ()

    @staticmethod
    def sizes(devices: Mapping[str, Device]) -> list[int]:
        """Return the bytes of the files that `share` writes."""
        count = sum(device.profile.examples for device in devices.values())
        x, y = _one(devices)
        return [count * x.nbytes, count * y.nbytes, 8 * (len(devices) + 1)]

    @staticmethod
    def share(folder: Path, devices: Mapping[str, Device]) -> "SharedExamples":
        """Write the examples of `devices`, in their order, into `folder`; one device's at a time are held."""
        held, (x, y) = devices.values(), _one(devices)
        # Thousands of small gathers, which several threads only slow down.
        with reference_plan():
            return SharedExamples(
                Slab.join(folder / "x", x.dtype, (device.examples.x for device in held)),
                Slab.join(folder / "y", y.dtype, (device.targets for device in held)),
                Slab.create(folder / "offsets", torch.tensor([0, *(d.profile.examples for d in held)]).cumsum(0)),
                tuple(x.shape),
                tuple(y.shape),
            )

    def map(self) -> Callable[[int], Examples]:
        """Map the files and return what gives the examples of device `number`, counted from 0; nothing is copied."""
        x, y = self.x.map().view(-1, *self.input_shape), self.y.map().view(-1, *self.target_shape)
        offsets = self.offsets.map().tolist()

        def of(number: int) -> Examples:
            part = slice(offsets[number], offsets[number + 1])
            return Examples(x[part], y[part])

        return of


def _one(devices: Mapping[str, Device]) -> tuple[Tensor, Tensor]:
    """Return any example and its targets."""
    held = next(iter(devices.values())).held
    return held.x[0], held.y[0]
