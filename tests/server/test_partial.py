"""A round in which devices train parts: the aggregate is the mean over those that have trained a coordinate."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
from federations import federation

from diastole.client.training import train
from diastole.models.levers import Levers
from diastole.models.methods.bases.index import Indexed
from diastole.models.methods.registry import build
from diastole.models.parts import trained
from diastole.server.link import Failure
from diastole.server.opened import Opened
from diastole.server.round import Rounds
from diastole.server.settings import Settings
from diastole.simulations.devices import Federation
from diastole.simulations.engines.loop import LoopLink

PARTS = ("last-stages:1", "", "head", "norms-and-head")
NORMAL = ("width", "depthfl")
OTHERS = ("diastole", "fjord", "fedrolex", "splitmix", "scalefl", "nefl", "adaptivefl", "inclusivefl", "ofa")


def opened(method: str) -> tuple[Federation, Rounds, Opened]:
    """Return a federation's first round, in which devices train different parts."""
    # Of InclusiveFL, without lessons, which are not means over those that have trained a coordinate.
    options = {"inclusivefl": {"momentum": 0.0}, "ofa": {"pool": 2}}
    mine = {name: each for name, each in options.items() if name == method}
    model = {"name": "resnet", "widths": [8, 8], "blocks": [1, 1]}
    made = federation(method=method, methods=mine, data={"proxy": 700}, model=model)
    chosen = made.run.method()
    settings = Settings(made.model, made.simulation.training, made.simulation.rounds, 0)
    rounds = Rounds(settings, chosen, chosen.initial(3))
    rounds.prepare(1)
    first = rounds.open(1, {name: device.profile for name, device in made.devices.items()})
    tasks = [replace(task, levers=Levers(part=PARTS[k % len(PARTS)])) for k, task in enumerate(first.tasks)]
    return made, rounds, replace(first, tasks=tasks)


def refuse(failure: Failure) -> None:
    raise AssertionError(failure)


@pytest.mark.parametrize("name", [*NORMAL, *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)])
def test_a_coordinate_gets_the_mean_of_those_that_have_trained_it(name: str) -> None:
    made, rounds, first = opened(name)
    method = rounds.method
    assert isinstance(method, Indexed)
    before = {key: tensor.double() for key, tensor in rounds.state.items()}
    total = {key: torch.zeros_like(tensor) for key, tensor in before.items()}
    weight = {key: torch.zeros_like(tensor) for key, tensor in before.items()}
    parts = set[str]()
    for task in first.tasks:
        # Each device trains by itself, and every coordinate of what it has trained is added up on its own.
        parts.add(task.levers.part)
        examples = made.devices[task.device].examples
        state = train(made.model, task, first.states[task.spec], examples).state
        names = trained(build(made.model, task.spec), task.levers.part)
        assert state.keys() == names
        for key, slot in method.slots(task.spec).items():
            if key in names:
                slot.region.add_(total[slot.source], len(examples) * state[key].double())
                slot.region.add_(weight[slot.source], torch.tensor(float(len(examples)), dtype=torch.float64))
    assert parts == set(PARTS[: len(first.tasks)])
    with closing(LoopLink(made.model, made.devices).dispatch(first.tasks, first.states, None)) as outcomes:
        updates = list(rounds.admit(first, outcomes, refuse))
    ended = rounds.close(first, updates, lambda update: None, refuse)
    assert ended.updates == len(first.tasks)
    for key, tensor in rounds.state.items():
        expected = torch.where(weight[key] > 0, total[key] / weight[key].clamp(min=1), before[key])
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
