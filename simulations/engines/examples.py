"""The examples of all devices in files that several processes map."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from diastole.models.seeds import reference_plan
from diastole.models.training import Examples
from diastole.simulations.devices import Device
from diastole.simulations.engines.slabs import Slab


@dataclass(frozen=True, slots=True)
class SharedExamples:
    """Where the examples of every device are, one device after another.

    Attributes:
        x: slab of all inputs.
        y: slab of their labels.
        offsets: slab of where each device's begin, and where the last one's end. A list of thousands would make a
            worker's first line longer than a pipe holds, and its writer wait until the worker has imported torch.
        input_shape: of one example.

    """

    x: Slab
    y: Slab
    offsets: Slab
    input_shape: tuple[int, ...]

    @staticmethod
    def sizes(devices: Mapping[str, Device], input_shape: tuple[int, ...]) -> list[int]:
        """Return the bytes of the files that `share` writes."""
        count = sum(device.profile.examples for device in devices.values())
        return [4 * count * prod(input_shape), 8 * count, 8 * (len(devices) + 1)]

    @staticmethod
    def share(folder: Path, devices: Mapping[str, Device], input_shape: tuple[int, ...]) -> "SharedExamples":
        """Write the examples of `devices`, in their order, into `folder`; one device's at a time are held."""
        held = devices.values()
        # Thousands of small gathers, which several threads only slow down.
        with reference_plan():
            return SharedExamples(
                Slab.join(folder / "x", torch.float32, (device.examples.x for device in held)),
                Slab.join(folder / "y", torch.int64, (device.labels for device in held)),
                Slab.create(folder / "offsets", torch.tensor([0, *(d.profile.examples for d in held)]).cumsum(0)),
                input_shape,
            )

    def map(self) -> Callable[[int], Examples]:
        """Map the files and return what gives the examples of device `number`, counted from 0; nothing is copied."""
        x, y, offsets = self.x.map().view(-1, *self.input_shape), self.y.map(), self.offsets.map().tolist()

        def of(number: int) -> Examples:
            part = slice(offsets[number], offsets[number + 1])
            return Examples(x[part], y[part])

        return of
