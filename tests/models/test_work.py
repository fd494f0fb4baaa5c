"""Work: what a task takes, beyond its multiply-accumulates."""

from dataclasses import replace

import pytest

from diastole.client.profile import SPEED_MODEL, SPEED_TRAINING
from diastole.models.cost import Cost
from diastole.models.methods.widths.width import width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.training import TrainConfig
from diastole.models.work import PER_BYTE, PER_MAC, PER_TENSOR, training_work

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
    cost = width_cost(SPEED_MODEL, 1.0, SPEED_TRAINING)
    work = training_work(cost, SPEED_TRAINING, SPEED_TRAINING.batch_size)
    assert work == pytest.approx(cost.training_macs * SPEED_TRAINING.batch_size, rel=0.2)


def test_a_small_sub_model_saves_less_than_its_arithmetic() -> None:
    model, training = ModelConfig("cnn", (1, 28, 28), 10, (16, 32)), TrainConfig()
    full, small = (width_cost(model, width, training) for width in (1.0, 0.25))
    work = [training_work(cost, training, 100) for cost in (full, small)]
    assert small.training_macs / full.training_macs < work[1] / work[0] < 1
