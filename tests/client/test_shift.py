"""What an agent keeps of its task, and on which terms it trains it."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from agents import MODEL, examples, states, task

from diastole.client import shift
from diastole.client.budget import Budget, Watchman
from diastole.client.errors import BudgetError
from diastole.client.keeper import Keeper, key_of
from diastole.client.plans.plan import Plan
from diastole.client.shift import Shift
from diastole.client.statefolder import StateFolder
from diastole.client.training import train
from diastole.models.task import Report
from diastole.models.training import Examples, TrainConfig, fit
from diastole.models.trainstate import TrainState
from diastole.proto.payload import Payload, encode
from diastole.v1 import device_pb2 as pb

WORK = replace(task(1), training=TrainConfig(epochs=3, batch_size=2))
FREE = Watchman(Budget())
KEY = "a" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StateFolder]:
    with closing(StateFolder(tmp_path / "state")) as folder:
        yield folder


def test_an_agent_that_is_killed_between_any_two_steps_goes_on_to_the_same_bits(folder: StateFolder) -> None:
    expected = train(MODEL, WORK, states()[WORK.spec], examples())
    plan, trained, seconds = Plan(threads=1), 0, 0.0

    class KilledError(Exception):
        pass

    while True:
        keeper = Keeper(folder, every=0.0)
        step = keeper.begin(KEY)
        assert (step is None) == (trained == 0)
        if step:
            assert (step.plan, step.seconds > seconds) == (plan, True)
            seconds = step.seconds
        mine = Shift(keeper, plan, FREE, seconds=seconds)

        def between(state: TrainState, mine: Shift = mine) -> None:
            mine.between(state)
            if state.steps < 12:
                raise KilledError

        try:
            saved = step.tensors if step else None
            update = train(MODEL, WORK, states()[WORK.spec], examples(), plan, 1, mine.stopped, between, saved)
            break
        except KilledError:
            trained += 1
    assert trained == 11
    assert update.report.loss == expected.report.loss
    assert all(torch.equal(update.state[name], tensor) for name, tensor in expected.state.items())


def test_a_step_and_an_update_of_another_task_are_dropped(folder: StateFolder) -> None:
    saved = list[TrainState]()
    fit(torch.nn.Linear(64, 3), examples_of_vectors(), TrainConfig(), torch.Generator(), between=saved.append)
    keeper, payload = Keeper(folder), Payload.of(encode({"w": torch.ones(3)}))
    assert keeper.begin(KEY) is None
    assert not keeper.due()
    keeper.keep(saved[0], 1.5, Plan())
    assert Keeper(folder).begin(KEY) is not None
    keeper.finish(payload, Report(8, 0.25, 2.5))
    assert folder.names("step") == []
    again = Keeper(folder)
    assert again.begin(KEY) is None
    assert again.finished() == (payload, Report(8, 0.25, 2.5))
    assert folder.write(f"update-{KEY}", b"damaged")
    assert again.finished() is None
    keeper.finish(payload, Report(8, 0.25, 2.5))
    keeper.keep(saved[0], 1.5, Plan())
    assert Keeper(folder).begin("b" * 32) is None
    assert folder.names("step", "update") == []
    keeper.keep(saved[0], 1.5, Plan())
    keeper.forget()
    assert folder.names("step", "update") == []
    assert folder.write(f"step-{KEY}", b"damaged")
    assert Keeper(folder).begin(KEY) is None


def examples_of_vectors() -> Examples:
    found = examples()
    return replace(found, x=found.x.flatten(1))


def test_without_a_folder_nothing_is_kept() -> None:
    keeper = Keeper(None, every=0.0)
    assert keeper.begin(KEY) is keeper.finished() is None
    assert not keeper.due()
    keeper.finish(Payload.of(b"x"), Report(1, 0.0, 0.0))
    keeper.forget()


def test_a_task_is_known_by_all_that_its_bits_depend_on() -> None:
    wanted = pb.TrainTask(task_id="r1-one", seed=3, spec_json="{}", deadline_seconds=3)
    those = examples()
    key = key_of("run", wanted, those)
    later = pb.TrainTask()
    later.CopyFrom(wanted)
    later.deadline_seconds = 1.5
    assert key_of("run", later, those) == key
    later.model.sha256 = "0"
    x, y = those.x, those.y
    changed = [Examples(x, y.flip(0)), Examples(x.flip(0), y), those.part(0, 7)]
    others = [("other", wanted, those), ("run", later, those), *(("run", wanted, each) for each in changed)]
    assert len({key, *(key_of(*each) for each in others)}) == 6


def test_an_agent_rests_after_each_step_for_the_rest_of_its_share() -> None:
    mine = Shift(Keeper(None), Plan(), FREE, cpu=0.25)
    began, busy = time.monotonic(), 0.0
    for _ in range(3):
        start = time.monotonic()
        while time.monotonic() - start < 0.01:
            pass
        busy += 0.01
        assert not mine.stopped()
    assert time.monotonic() - began >= 4 * busy - shift.SHORTEST_REST
    # Rests are a part of how long the device takes.
    assert mine.seconds >= 4 * busy - shift.SHORTEST_REST
    given_up = Shift(Keeper(None), Plan(), FREE, cpu=0.0001, given_up=lambda: True)
    assert given_up.stopped()


def test_training_pauses_and_saves_while_the_owner_wants_it_to(
    folder: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shift, "LOOK_SECONDS", 0.01)
    pause, told, asked = tmp_path / "pause", list[str](), list[int]()

    def given_up() -> bool:
        asked.append(1)
        if len(asked) > 20:
            pause.unlink(missing_ok=True)
        return False

    keeper = Keeper(folder)
    assert keeper.begin(KEY) is None
    mine = Shift(keeper, Plan(), Watchman(Budget(pause_file=pause)), given_up=given_up, tell=told.append)

    def between(state: TrainState) -> None:
        mine.between(state)
        if state.steps == 2:
            pause.touch()
            monkeypatch.setattr(shift, "LOOK_SECONDS", 0.0)

    began = time.monotonic()
    update = train(MODEL, WORK, states()[WORK.spec], examples(), between=between, stopped=mine.stopped)
    assert told == [f"{pause} exists", ""]
    step = keeper.begin(KEY)
    assert step is not None
    assert int(step.tensors["count"][2]) == 2
    assert mine.seconds < time.monotonic() - began
    expected = train(MODEL, WORK, states()[WORK.spec], examples())
    assert all(torch.equal(update.state[name], tensor) for name, tensor in expected.state.items())


def test_a_step_that_takes_more_than_the_budget_ends_training_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shift, "UNSEEN", -1)
    mine = Shift(Keeper(None), Plan(), FREE, memory=0)
    with pytest.raises(BudgetError, match=r"a step takes \d+ bytes of memory; this device has 0 for training"):
        train(MODEL, WORK, states()[WORK.spec], examples(), between=mine.between, stopped=mine.stopped)
    monkeypatch.setattr(shift, "RESERVE", 1 << 60)
    mine = Shift(Keeper(None), Plan(), FREE)
    with pytest.raises(BudgetError, match="training has come within"):
        train(MODEL, WORK, states()[WORK.spec], examples(), between=mine.between, stopped=mine.stopped)
