"""Work: what a task takes, beyond its multiply-accumulates."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.client.probes import PROBES
from diastole.models.cost import Cost
from diastole.models.kinds import KINDS
from diastole.models.methods.widths.width import width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.training import TrainConfig
from diastole.models.work import PER_BYTE, PER_MAC, PER_TENSOR, explain, training_seconds, training_work

COST = Cost(
    parameters=100, forward_macs=1000, training_macs=3000, memory=64_000, bytes_down=400, bytes_up=400, tensors=5
)


def test_work_is_arithmetic_bytes_and_calls() -> None:
    one = training_work(COST, TrainConfig(batch_size=32), 64)
    assert one == pytest.approx(PER_MAC * 3000 * 64 + PER_BYTE * 64_000 * 2 + PER_TENSOR * 5 * 2)
    assert training_work(COST, TrainConfig(batch_size=32, epochs=3), 64) == pytest.approx(3 * one)


def test_a_begun_batch_is_a_step() -> None:
    cost, training = replace(COST, tensors=1000), TrainConfig(batch_size=32)
    steps = [training_work(cost, training, n) / (PER_TENSOR * 1000) for n in (32, 33, 64, 65)]
    assert steps == pytest.approx([1, 2, 2, 3], rel=0.01)


def test_the_step_that_agents_time_has_about_as_much_work_as_arithmetic() -> None:
    training = TrainConfig(batch_size=PROBES[0].batch)
    cost = width_cost(PROBES[0].model, 1.0, training)
    work = training_work(cost, training, training.batch_size)
    assert work == pytest.approx(cost.training_macs * training.batch_size, rel=0.2)


def test_a_small_sub_model_saves_less_than_its_arithmetic() -> None:
    model, training = ModelConfig("cnn", (1, 28, 28), 10, (16, 32)), TrainConfig()
    full, small = (width_cost(model, width, training) for width in (1.0, 0.25))
    work = [training_work(cost, training, 100) for cost in (full, small)]
    assert small.training_macs / full.training_macs < work[1] / work[0] < 1


def test_seconds_are_those_of_every_kind_of_work() -> None:
    cost = replace(COST, work={"dense": 1e9, "memory": 1e8, "calls": 50.0, "ragged": 0.0})
    speeds = {"dense": 1e10, "memory": 1e9, "calls": 1e4}
    training = TrainConfig(batch_size=32, epochs=2)
    # Of the second batch only half is there, but its calls are as many.
    assert training_seconds(cost, training, 48, 1.0, speeds) == pytest.approx(2 * (1.5 * 0.2 + 2 * 0.005))


@pytest.mark.parametrize("speeds", [{}, {"dense": 1e10}])
def test_a_device_that_does_not_know_a_kind_is_judged_by_its_one_speed(speeds: dict[str, float]) -> None:
    cost, training = replace(COST, work={"dense": 1e9, "calls": 50.0}), TrainConfig()
    assert training_seconds(cost, training, 64, 2e9, speeds) == training_work(cost, training, 64) / 2e9


positive = st.floats(0.1, 10)
GUESS = dict.fromkeys(KINDS, 1.0)
SOME = sorted(KINDS)[:8]


@settings(max_examples=15)
@given(
    st.lists(st.dictionaries(st.sampled_from(SOME), positive, min_size=1), min_size=len(SOME), max_size=20),
    st.lists(positive, min_size=len(SOME), max_size=len(SOME)),
)
def test_speeds_explain_the_steps_they_were_found_from(works: list[dict[str, float]], speeds: list[float]) -> None:
    true = dict(zip(SOME, speeds, strict=True))
    seconds = [sum(amount / true[kind] for kind, amount in work.items()) for work in works]
    found = explain(works, seconds, GUESS, spread=30.0)
    again = [sum(amount / found[kind] for kind, amount in work.items()) for work in works]
    assert again == pytest.approx(seconds, rel=0.01)


def test_what_measurements_say_plainly_outweighs_the_guess() -> None:
    works = [{"dense": 1.0}, {"dense": 1.0, "memory": 1.0}, {"memory": 1.0}, {"depthwise7": 1.0, "dense": 1.0}]
    found = explain(works, [1.0, 2.0, 1.0, 9.0], GUESS)
    assert found["dense"] / found["depthwise7"] > 4


def test_a_kind_that_no_step_has_keeps_its_ratio_to_the_others() -> None:
    found = explain([{"dense": 4.0}], [1.0], GUESS)
    assert found["dense"] == pytest.approx(4)
    assert found["matrix"] == pytest.approx(4)


def test_a_disturbed_measurement_makes_no_kind_of_work_look_free() -> None:
    most = dict.fromkeys(KINDS, 1000000000.0)
    without = {kind: work for kind, work in most.items() if kind != "depthwise7"}
    # The step with that kind of work took less time than the one without.
    found = explain([most, without], [1.0, 2.0], GUESS)
    assert found["depthwise7"] < 3 * found["dense"]


def test_one_step_that_was_disturbed_hardly_changes_what_the_others_say() -> None:
    works = [{"dense": 1.0 + number, "calls": 3.0} for number in range(6)]
    seconds = [4.0 + number for number in range(6)]
    disturbed = explain(works, [*seconds[:-1], 5 * seconds[-1]], GUESS)
    assert disturbed["dense"] == pytest.approx(1, rel=0.3)
