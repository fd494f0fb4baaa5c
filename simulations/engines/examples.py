"""The examples of all devices in files that several processes map."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diastole.client.sources.mapped import InputFile, Mapped
from diastole.models.seeds import reference_plan
from diastole.models.training import Examples
from diastole.simulations.devices import Device
from diastole.simulations.engines.slabs import Slab


@dataclass(frozen=True, slots=True)
class SharedExamples:
    """Where the examples of every device are, one device after another.

    Attributes:
        x: slab of all inputs; of their places in `file`, if there is one.
        y: slab of their targets.
        offsets: slab of where each device's begin, and where the last one's end. A list of thousands would make a
            worker's first line longer than a pipe holds, and its writer wait until the worker has imported torch.
        input_shape: of one example.
        target_shape: of the targets of one example; empty for a label.
        file: the data set's own file of inputs, if it has one, which every process maps.

    """

    x: Slab
    y: Slab
    offsets: Slab
    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...] = ()
    file: InputFile | None = None

    @staticmethod
    def sizes(devices: Mapping[str, Device]) -> list[int]:
        """Return the bytes of the files that `share` writes."""
        count = sum(device.profile.examples for device in devices.values())
        x, y = _one(devices)
        return [count * (8 if _file(devices) else x.nbytes), count * y.nbytes, 8 * (len(devices) + 1)]

    @staticmethod
    def share(folder: Path, devices: Mapping[str, Device]) -> "SharedExamples":
        """Write the examples of `devices`, in their order, into `folder`; one device's at a time are held."""
        held, (x, y), file = devices.values(), _one(devices), _file(devices)
        # Thousands of small gathers, which several threads only slow down.
        with reference_plan():
            return SharedExamples(
                Slab.join(folder / "x", torch.int64, (device.places for device in held))
                if file
                else Slab.join(folder / "x", x.dtype, (device.examples.x for device in held)),
                Slab.join(folder / "y", y.dtype, (device.targets for device in held)),
                Slab.create(folder / "offsets", torch.tensor([0, *(d.profile.examples for d in held)]).cumsum(0)),
                tuple(x.shape),
                tuple(y.shape),
                file,
            )

    def map(self) -> Callable[[int], Examples]:
        """Map the files and return what gives the examples of device `number`, counted from 0.

        Nothing is copied but what is in the data set's own file.
        """
        x, y = self.x.map(), self.y.map().view(-1, *self.target_shape)
        offsets, file = self.offsets.map().tolist(), self.file
        if file is None:
            x = x.view(-1, *self.input_shape)

        def of(number: int) -> Examples:
            part = slice(offsets[number], offsets[number + 1])
            return Examples(x[part] if file is None else file.take(x[part].numpy()), y[part])

        return of


def _one(devices: Mapping[str, Device]) -> tuple[Tensor, Tensor]:
    """Return any example and its targets."""
    found = next(iter(devices.values())).held.part(0, 1)
    return found.x[0], found.y[0]


def _file(devices: Mapping[str, Device]) -> InputFile | None:
    """Return the file that all devices have their inputs in, as they are there."""
    held = next(iter(devices.values())).held
    plain = all(device.held is held and device.shift is None for device in devices.values())
    return held.file if isinstance(held, Mapped) and plain else None
