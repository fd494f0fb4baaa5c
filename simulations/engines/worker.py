"""One worker of the processes engine: reads tasks, trains, answers with a line (`python -m` this module)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch

from diastole.client.plans.plan import Plan
from diastole.client.sources.mapped import InputFile
from diastole.client.training import train
from diastole.models.levers import Levers
from diastole.models.methods.registry import read_spec
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.task import Task
from diastole.models.training import TrainConfig
from diastole.proto.errors import DiastoleError
from diastole.simulations.engines.children import Parent
from diastole.simulations.engines.examples import SharedExamples
from diastole.simulations.engines.slabs import Slab, StateLayout


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is told once: models as JSON, and where to find the shared tensors.

    Attributes:
        model: the global model, JSON.
        training: how devices train, JSON.
        specs: the sub-models, JSON; a task names one by its position.
        layouts: of each sub-model's state: names, shapes and dtypes.
        trained: of what a device sends back of it.
        sent: slab of each sub-model's state as sent out this round.
        returned: slabs that trained states are written to; a task names one by its position.
        data: where the examples of every device are; a task names a device by its position.
        plans: how each sub-model is trained, JSON.

    """

    model: str
    training: str
    specs: list[str]
    layouts: list[StateLayout]
    trained: list[StateLayout]
    sent: list[Slab]
    returned: list[Slab]
    data: SharedExamples
    plans: list[str]

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """Read what `asdict` made and JSON carried."""
        fields, data = dict(document), document["data"]
        x, y, offsets = (Slab(**data[key]) for key in ("x", "y", "offsets"))
        file = data["file"] and InputFile(**data["file"])
        fields["data"] = SharedExamples(x, y, offsets, tuple(data["input_shape"]), tuple(data["target_shape"]), file)
        for key in ("layouts", "trained"):
            fields[key] = [
                StateLayout(it["names"], [tuple(shape) for shape in it["shapes"]], it["dtypes"]) for it in fields[key]
            ]
        for key in ("sent", "returned"):
            fields[key] = [Slab(**slab) for slab in fields[key]]
        return cls(**fields)


def main() -> None:
    """Serve tasks until whoever sends them is gone.

    The first line is the set-up. The worker says null when it has mapped all that is shared, whose files may then go.
    A task is a list: its number, and those of its sub-model, device and slot, its seed, its progress and its levers.
    The answer has the number and either a report or an error.
    """
    torch.set_num_threads(1)
    parent = Parent()
    lines = parent.lines()
    document = next(lines, None)
    if document is None:
        return  # whoever started it ended before it had anything to share
    setup = Setup.read(document)
    model, training = ModelConfig.from_json(setup.model), TrainConfig.from_json(setup.training)
    # The process that started this one is the user's own, and imports them too.
    for name in (model.factory, *training.functions):
        custom.allow(name)
    specs = [read_spec(spec) for spec in setup.specs]
    plans = [Plan.from_json(plan) for plan in setup.plans]
    sent = [layout.views(slab.map()) for layout, slab in zip(setup.layouts, setup.sent, strict=True)]
    returned = [slab.map() for slab in setup.returned]
    examples_of = setup.data.map()
    parent.say(None)
    for number, spec, device, slot, seed, progress, levers in lines:
        task = Task(str(number), 0, str(device), specs[spec], training, seed, progress, Levers.from_json(levers))
        try:
            update = train(model, task, sent[spec], examples_of(device), plans[spec])
            layout = StateLayout.of(update.state) if task.levers.part else setup.trained[spec]
            layout.write(update.state, returned[slot])
            answer: dict[str, Any] = {"number": number, "report": asdict(update.report)}
        except DiastoleError as error:
            answer = {"number": number, "error": str(error)}
        parent.say(answer)


if __name__ == "__main__":
    main()
