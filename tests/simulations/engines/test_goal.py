"""Simulated rounds that close at a goal, without a clock."""

from collections import Counter
from contextlib import closing

import pytest
import torch
from federations import federation
from scripted import MODEL, TRAINING, ScriptedLink

from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.family import initial_state
from diastole.models.seeds import generator
from diastole.models.task import Task
from diastole.simulations.engines.goal import GoalLink
from diastole.simulations.simulate import simulate

SPEC, STATE = spec_of(1.0), initial_state(MODEL, 0)
NAMES = "abcdefg"


def tasks(number: int) -> list[Task]:
    return [Task(name, number, name, SPEC, TRAINING, 5) for name in NAMES]


def arrivals(number: int) -> list[str]:
    return [NAMES[k] for k in torch.randperm(7, generator=generator(11, number, "arrival")).tolist()]


@pytest.mark.parametrize("asked", [2, 3, 5, 7])
def test_devices_finish_in_an_order_of_the_round_and_no_more_train_than_are_asked_for(asked: int) -> None:
    for number in (1, 2):
        inner = ScriptedLink(NAMES)
        with closing(GoalLink(inner, MODEL, 3, 11).dispatch(tasks(number), {SPEC: STATE}, None)) as outcomes:
            found = [next(outcomes).device for _ in range(asked)]
        assert found == arrivals(number)[:asked]
        assert [task.device for task in inner.tasks] == arrivals(number)[: max(asked, 3)]
    assert arrivals(1) != arrivals(2)


def test_all_of_them_train_if_the_caller_asks_for_all() -> None:
    link = GoalLink(ScriptedLink(NAMES), MODEL, 3, 11)
    assert [outcome.device for outcome in link.dispatch(tasks(1), {SPEC: STATE}, None)] == arrivals(1)
    assert list(link.dispatch([], {}, None)) == []


def test_a_simulation_closes_its_rounds_at_the_goal_and_everyone_has_a_turn() -> None:
    made = federation(rounds={"count": 4, "goal": 2}, admission={"norm": 0.0})
    result = simulate(made)
    assert [closed.updates for closed in result.rounds] == [2] * 4
    served = Counter({name: account.accepted for name, account in result.accounts.items()})
    expected = Counter[str]()
    for number in range(1, 5):
        order = torch.randperm(6, generator=generator(4, number, "arrival")).tolist()
        expected.update(f"device-{k:02d}" for k in order[:2])
    assert +served == expected


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["", "mixed"])
def test_processes_give_the_bits_of_the_loop_with_a_goal_and_error_feedback(preset: str) -> None:
    more = {"rounds": {"count": 4, "goal": 3}, "codecs": {"up": "top-k:0.1"}}
    more |= {"population": {"preset": preset}} if preset else {}
    one, other = (simulate(federation(engine=engine, workers=2, **more)) for engine in ("loop", "processes"))
    assert all(torch.equal(tensor, other.state[name]) for name, tensor in one.state.items())
    assert {n: a.accepted for n, a in one.accounts.items()} == {n: a.accepted for n, a in other.accounts.items()}
    assert [closed.updates for closed in one.rounds] == [closed.updates for closed in other.rounds]
