"""One worker of the processes engine: reads task numbers, trains, answers with a line (`python -m` this module)."""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch

from diastole.client.plan import Plan
from diastole.client.training import train
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.spec import SubModelSpec
from diastole.models.training import TrainConfig
from diastole.proto.errors import DiastoleError
from diastole.simulations.engines.dealt import Dealt
from diastole.simulations.engines.slabs import Layout, Slab


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is told once: models as JSON, and where to find the shared tensors.

    Attributes:
        model: the global model, JSON.
        training: how devices train, JSON.
        specs: the sub-models, JSON; a task names one by its position.
        layouts: of each sub-model's state: names, shapes and dtypes.
        sent: slab of each sub-model's state as sent out this round.
        returned: slabs that trained states are written to; a task names one by its position.
        data: where the examples of every device are; a task names a device by its position.
        plan: execution plan.

    """

    model: str
    training: str
    specs: list[str]
    layouts: list[tuple[list[str], list[list[int]], list[str]]]
    sent: list[Slab]
    returned: list[Slab]
    data: Dealt
    plan: Plan

    def to_line(self) -> bytes:
        """Return the set-up as one line of JSON."""
        return (json.dumps(asdict(self)) + "\n").encode()

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Parse what `to_line` wrote."""
        fields: dict[str, Any] = json.loads(line)
        data = fields["data"]
        slabs = {key: Slab(**data[key]) for key in ("x", "y", "offsets")}
        fields["data"] = Dealt(**slabs, input_shape=tuple(data["input_shape"]))
        for key in ("sent", "returned"):
            fields[key] = [Slab(**slab) for slab in fields[key]]
        return cls(**fields)


def main() -> None:
    """Serve tasks from standard input until it ends.

    It says with an empty line that it has mapped all that is shared, whose files may then go. A task is a line
    `number spec device slot seed progress`; the answer is a line of JSON with the number and either loss and seconds,
    or an error.
    """
    torch.set_num_threads(1)
    line = sys.stdin.readline()
    if not line:
        return  # whoever started it ended before it had anything to share
    setup = Setup.from_line(line)
    model, training = ModelConfig.from_json(setup.model), TrainConfig.from_json(setup.training)
    # The process that started this one is the user's own, and imports it too.
    custom.allow(model.factory)
    specs = [SubModelSpec.from_json(spec) for spec in setup.specs]
    layouts = [Layout(names, [tuple(shape) for shape in shapes], dtypes) for names, shapes, dtypes in setup.layouts]
    sent = [layout.views(slab.map()) for layout, slab in zip(layouts, setup.sent, strict=True)]
    returned = [slab.map() for slab in setup.returned]
    examples_of = setup.data.map()
    os.write(1, b"\n")
    for line in sys.stdin:
        *numbers, progress = line.split()
        number, spec, device, slot, seed = map(int, numbers)
        began = time.perf_counter()
        try:
            trained = train(
                model, specs[spec], sent[spec], training, seed, examples_of(device), setup.plan, float(progress)
            )
            layouts[spec].write(trained.state, returned[slot])
            seconds = time.perf_counter() - began
            answer: dict[str, float | str] = {"number": number, "loss": trained.loss, "seconds": seconds}
        except DiastoleError as error:
            answer = {"number": number, "error": str(error)}
        try:
            os.write(1, (json.dumps(answer) + "\n").encode())
        except BrokenPipeError:
            return  # whoever asked was killed


if __name__ == "__main__":
    main()
