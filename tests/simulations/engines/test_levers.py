"""Tasks with levers come to the same on every engine, and over gRPC."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
from federations import federation, tasks

from diastole.models.levers import Levers
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.simulations.devices import Federation
from diastole.simulations.engines.base import SimulatedLink
from diastole.simulations.engines.batched import BatchedLink
from diastole.simulations.engines.loop import LoopLink
from diastole.simulations.engines.processes import ProcessLink
from diastole.simulations.simulate import simulate

AIDED = Levers(recompute=True, micro_batch=5), Levers(half_state=True), Levers(part="last-stages:1")

# Without a tier in between, nobody could pay for the mask of any density of FIARSE but 1.
WIDTHS = {"large": 1.0, "medium": 0.25, "small": 0.125}

Given = tuple[Federation, list[Task], dict[SubModelSpec, State]]


@pytest.fixture(scope="module")
def given() -> Given:
    """A federation, and a round's tasks with three kinds of levers in turn."""
    made = federation()
    found, states = tasks(made)
    return made, [replace(task, levers=AIDED[k % 3]) for k, task in enumerate(found)], states


def trained(link: SimulatedLink, given: Given) -> dict[str, State]:
    with link, closing(link.dispatch(given[1], given[2], None)) as outcomes:
        found = list(outcomes)
    assert all(isinstance(outcome, Update) for outcome in found)
    return {outcome.device: outcome.state for outcome in found if isinstance(outcome, Update)}


@pytest.fixture(scope="module")
def expected(given: Given) -> dict[str, State]:
    return trained(LoopLink(given[0].model, given[0].devices), given)


@pytest.mark.slow
def test_processes_give_the_bits_of_the_loop(given: Given, expected: dict[str, State]) -> None:
    made = given[0]
    sizes, training = made.run.method().offers(), made.simulation.training
    found = trained(ProcessLink(made.model, made.devices, sizes, training, workers=1), given)
    assert found.keys() == expected.keys()
    for device, state in expected.items():
        assert found[device].keys() == state.keys()
        assert all(torch.equal(found[device][name], tensor) for name, tensor in state.items())


@pytest.mark.slow
def test_the_batched_engine_comes_to_the_same(given: Given, expected: dict[str, State]) -> None:
    found = trained(BatchedLink(given[0].model, given[0].devices, workers=1), given)
    for device, state in expected.items():
        assert found[device].keys() == state.keys()
        assert all(torch.allclose(found[device][name], tensor, 1e-3, 1e-5) for name, tensor in state.items())


def test_levers_are_heeded(given: Given, expected: dict[str, State]) -> None:
    made, found, states = given
    plain = trained(LoopLink(made.model, made.devices), (made, [replace(t, levers=Levers()) for t in found], states))
    close = {d: max(float((s[n] - plain[d][n]).abs().max()) for n in s) for d, s in expected.items()}
    assert all(close[task.device] < 1e-5 for task in found[::3])
    assert all(1e-5 < close[task.device] < 1e-2 for task in found[1::3])
    part = {name for name in plain[found[0].device] if name.startswith(("stages.1.", "classifier."))}
    assert all(expected[task.device].keys() == part for task in found[2::3])
    assert all(expected[task.device].keys() > part for task in found[:2])


@pytest.mark.parametrize(
    "method", ["depthfl", *(pytest.param(each, marks=pytest.mark.slow) for each in ("inclusivefl", "fiarse"))]
)
def test_methods_without_small_sizes_serve_a_tier_of_an_eighth_by_levers(method: str) -> None:
    def tiers(*levers: str) -> set[str]:
        made = federation(
            method=method,
            model={"name": "cnn", "widths": [32, 64]},
            limits=["memory"],
            tiers={name: {"devices": 1, "width": width} for name, width in WIDTHS.items()},
            training={"levers": list(levers)},
        )
        run = made.run
        planner = run.planner(run.method().offers(), None)
        return {profile.tier for name, profile in made.profiles.items() if planner.fit(name, profile)}

    assert tiers() == {"large"}
    assert tiers("recompute", "micro-batch") == set(WIDTHS)


@pytest.mark.slow
def test_a_run_gives_levers_to_devices_that_need_them() -> None:
    made = federation(
        method="inclusivefl",
        model={"name": "cnn", "widths": [32, 64]},
        limits=["memory"],
        rounds={"count": 1},
        tiers={"large": {"devices": 1, "width": 1.0}, "small": {"devices": 1, "width": 0.125}},
        training={"levers": ["recompute", "micro-batch"]},
    )
    result = simulate(made)
    assert result.rounds[0].updates == 2
