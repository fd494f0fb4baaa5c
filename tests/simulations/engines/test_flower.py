"""Flower as an engine gives the bits of the loop."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

# Ray starts its workers with the lowest priority unless told not to, and beside other work they then starve.
os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
pytest.importorskip("flwr")
pytest.importorskip("ray")

import torch
from federations import federation, tasks
from flwr.app import Message, RecordDict

from diastole.experiments.result import Result as RunResult
from diastole.experiments.result import result_of
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.task import Task, Update
from diastole.models.training import TrainConfig
from diastole.proto.profile import Profile
from diastole.server.link import Failure, Link
from diastole.simulations.devices import Federation
from diastole.simulations.engines.flower import partitions
from diastole.simulations.engines.flower.errors import FlowerError, require
from diastole.simulations.engines.flower.partitions import Partitions
from diastole.simulations.engines.flower.records import Order, arrays_of, profile_of, profile_record, state_of
from diastole.simulations.simulate import engine, simulate

# Ray leaves a socket or two to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

MODEL = ModelConfig("cnn", (1, 8, 8), 10, (8, 16))
TRAINING = TrainConfig(batch_size=8)


# What takes the time is that Ray starts a process for each actor, which then imports torch and Flower: so
# one test lets the engine start two, and the others share one. All of them are slow.


def assert_same(found: RunResult, expected: RunResult) -> None:
    assert all(torch.equal(found.state[name], expected.state[name]) for name in expected.state)
    for one, other in zip(found.rounds, expected.rounds, strict=True):
        assert (one.updates, one.scores, one.tier_scores) == (other.updates, other.scores, other.tier_scores)
        assert (one.bytes_down, one.bytes_up) == (other.bytes_down, other.bytes_up)


@pytest.mark.slow
def test_two_workers_give_the_bits_of_the_loop() -> None:
    level, path = logging.getLogger("flwr").level, os.environ.get("PYTHONPATH")
    assert_same(simulate(federation(engine="flower", workers=2)), simulate(federation()))
    assert (logging.getLogger("flwr").level, os.environ.get("PYTHONPATH")) == (level, path)


@pytest.mark.slow
def test_a_simulation_that_cannot_start_is_one_line() -> None:
    made = federation(engine="flower", workers=1, flower={"gpus": 1.0})
    with pytest.raises(FlowerError, match="ActorPool is empty"):
        simulate(made)


@pytest.fixture(scope="module")
def parts() -> Iterator[tuple[Federation, Link]]:
    made = federation(engine="flower", workers=1)
    with engine(made, made.run.method().offers()) as link:
        yield made, link


@pytest.mark.slow
@pytest.mark.parametrize("method", ["width", "conv"])
def test_methods_that_fold_and_that_need_all_updates_give_the_bits_of_the_loop(
    method: str, parts: tuple[Federation, Link]
) -> None:
    run = federation(method=method).run
    coordinator = run.coordinator(parts[1])
    coordinator.run()
    assert_same(result_of(run, coordinator), simulate(federation(method=method)))


@pytest.mark.slow
def test_a_client_that_raises_is_a_failure_of_its_device_alone(
    parts: tuple[Federation, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, link = parts
    given, states = tasks(made)
    one, two, *others = given
    # The sub-model of another width than the one that is sent with it.
    broken = Task(one.task_id, 1, one.device, spec_of(0.5), one.training, 1)
    states[broken.spec] = states[one.spec]
    # An IndexError in the client's code, which is no error of ours.
    monkeypatch.setitem(link._numbers, two.device, 99)  # type: ignore[attr-defined]
    outcomes = list(link.dispatch([broken, two, *others], states, None))
    failures = {found.device: found for found in outcomes if isinstance(found, Failure)}
    assert set(failures) == {one.device, two.device}
    assert all(failure.faulty and "\n" not in failure.reason for failure in failures.values())
    assert "expected torch.float32" in failures[one.device].reason
    assert "index out of range" in failures[two.device].reason
    assert {found.task.device for found in outcomes if isinstance(found, Update)} == {t.device for t in others}


@pytest.mark.slow
def test_closing_a_dispatch_early_leaves_the_next_one_alone(parts: tuple[Federation, Link]) -> None:
    made, link = parts
    first = link.dispatch(*tasks(made), None)
    assert isinstance(next(first), Update)
    first.close()
    found = list(link.dispatch(*tasks(made), None))
    assert sorted(o.task.device for o in found if isinstance(o, Update)) == sorted(made.devices)


@pytest.mark.slow
def test_a_second_simulation_leaves_the_first_alone(parts: tuple[Federation, Link]) -> None:
    with pytest.raises(FlowerError, match="another simulation of engine flower"):
        simulate(parts[0])
    found = list(parts[1].dispatch(*tasks(parts[0]), None))
    assert sorted(o.task.device for o in found if isinstance(o, Update)) == sorted(parts[0].devices)


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diastole.simulations.engines.flower.errors.find_spec", lambda name: None)
    with pytest.raises(FlowerError, match=r"flwr is not installed; pip install 'diastole\[flower\]'"):
        require()


def test_another_machine_finds_the_same_examples(tmp_path: Path) -> None:
    made = federation()
    there = Partitions.share(tmp_path, made)
    for here in (True, False):
        partitions._open.cache_clear()
        if not here:
            shutil.rmtree(tmp_path)
        for number, device in enumerate(made.devices.values()):
            found = there.of(number)
            assert torch.equal(found.x, device.examples.x)
            assert torch.equal(found.y, device.examples.y)


# What travels


def test_states_and_profiles_survive_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    # Outside of a run Flower does not know whose messages these are.
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(f"flwr.supercore.task_identity.TaskIdentity.{name}", 1)
    state = initial_state(MODEL, 0)
    back = state_of(arrays_of(state))
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    order = Order(MODEL, Task("r3-one", 3, "one", spec_of(0.5), TRAINING, 2**63 - 1, 0.25), 7)
    assert Order.read(order.record()) == order
    question = Message(RecordDict(), 1, "query")
    profile = Profile("phone", 12, memory=5, down=1.5, speeds={"dense": 2e9, "calls": 1e4}, simd_block=8, levers=("x",))
    assert profile_of(Message(profile_record(profile), reply_to=question)) == profile
    assert profile_of(Message(RecordDict(), reply_to=question)) is None
