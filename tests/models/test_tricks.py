"""Tricks that any method can have, each against plain loops: the balanced softmax, clipping, schedules."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.allowed import give
from diastole.models.augment import changed
from diastole.models.balance import LEAST
from diastole.models.clipping import clipped
from diastole.models.errors import ModelError
from diastole.models.levers import Levers
from diastole.models.losses import check_targets
from diastole.models.methods.registry import build
from diastole.models.methods.widths.width import spec_of, width_cost
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.training import Examples, TrainConfig, fit

MODEL = ModelConfig("cnn", (1, 8, 8), classes=5, widths=(8, 8), group=2)


def balanced_loss(logits: list[list[float]], y: list[int], labels: list[int], strength: float) -> float:
    """The balanced softmax by its definition: each logit and the logarithm of its class's share."""
    total = 0.0
    for row, label in zip(logits, y, strict=True):
        raised = [z + strength * math.log((labels.count(c) + LEAST) / len(labels)) for c, z in enumerate(row)]
        total += math.log(sum(map(math.exp, raised))) - raised[label]
    return total / len(y)


def drawn(seed: int, count: int = 21) -> Examples:
    draws = torch.Generator().manual_seed(seed)
    # Skewed: classes 3 and 4 are rare, or not there.
    y = (torch.rand(count, generator=draws).square() * 5).long()
    return Examples(torch.randn(count, *MODEL.input_shape, generator=draws), y)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_a_balanced_loss_is_that_of_plain_loops(seed: int, strength: float) -> None:
    draws = torch.Generator().manual_seed(seed)
    outputs, labels = torch.randn(7, 5, generator=draws), drawn(seed).y
    y = labels[:7]
    criterion = TrainConfig(balance=strength).criterion.balanced(labels)
    expected = balanced_loss(outputs.tolist(), y.tolist(), labels.tolist(), strength)
    assert criterion.mean(outputs, y).item() == pytest.approx(expected, rel=1e-5)
    assert criterion.each(outputs, y).mean().item() == pytest.approx(expected, rel=1e-5)
    # What a model says is not changed by how it was trained, nor what it learns from another.
    plain = TrainConfig().criterion
    assert torch.equal(criterion.predict(outputs), plain.predict(outputs))
    assert torch.equal(criterion.towards(outputs, outputs.softmax(1)), plain.towards(outputs, outputs.softmax(1)))
    weighed = TrainConfig(balance=strength, class_weights=(1, 2, 3, 4, 5)).criterion.balanced(labels)
    each = [
        (1 + c) * balanced_loss([z], [c], labels.tolist(), strength)
        for z, c in zip(outputs.tolist(), y.tolist(), strict=True)
    ]
    torch.testing.assert_close(weighed.each(outputs, y), torch.tensor(each))


def by_hand(state: dict[str, Tensor], examples: Examples, training: TrainConfig, seed: int) -> list[Tensor]:
    """Train by torch's own SGD on the balanced loss, batch by batch."""
    module = build(MODEL, spec_of(1.0))
    module.load_state_dict(state)
    module.train()
    draws = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(module.parameters(), lr=training.learning_rate, momentum=training.momentum)
    share = (torch.bincount(examples.y, minlength=5) + LEAST) / len(examples)
    for _ in range(training.epochs):
        for rows in torch.randperm(len(examples), generator=draws).split(training.batch_size):
            optimiser.zero_grad()
            raised = module(examples.x[rows]) + (training.balance or 0.0) * share.log()
            F.cross_entropy(raised, examples.y[rows]).backward()
            if training.clip:
                nn.utils.clip_grad_norm_(module.parameters(), training.clip)
            optimiser.step()
    return [parameter.detach() for parameter in module.parameters()]


def trained(state: dict[str, Tensor], examples: Examples, training: TrainConfig, seed: int) -> list[Tensor]:
    module = build(MODEL, spec_of(1.0))
    module.load_state_dict(state)
    fit(module, examples, training, torch.Generator().manual_seed(seed))
    return [parameter.detach() for parameter in module.parameters()]


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_a_device_trains_on_the_balanced_loss_of_all_its_labels(balance: float) -> None:
    state = dict(build(MODEL, spec_of(1.0)).state_dict())
    training = TrainConfig(epochs=2, batch_size=6, balance=balance)
    found, expected = (train(state, drawn(4), training, 9) for train in (trained, by_hand))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_mixed_examples_and_a_loss_of_ones_own_are_balanced_too() -> None:
    training = TrainConfig(balance=1.0)
    examples, draws = drawn(1), torch.Generator().manual_seed(2)
    outputs = torch.randn(len(examples), 5, generator=draws)
    criterion = training.criterion.balanced(examples.y)
    _, y, mixed = changed(["mixup:1"], examples.x, examples.y, criterion, draws)
    mixed = mixed.balanced(examples.y)
    ((share, other),) = mixed.others  # type: ignore[attr-defined]
    expected = (1 - share) * criterion.mean(outputs, y) + share * criterion.mean(outputs, other)
    torch.testing.assert_close(mixed.mean(outputs, y), expected)
    assert not torch.allclose(mixed.mean(outputs, y), TrainConfig().criterion.mean(outputs, y))

    own = TrainConfig(balance=1.0, loss=give(F.cross_entropy)).criterion.balanced(examples.y)
    torch.testing.assert_close(own.mean(outputs, y), criterion.mean(outputs, y))
    with pytest.raises(ModelError, match=r"training.balance: outputs are \[21\]; logits \[n, classes\] are accepted"):
        own.mean(outputs[:, 0], y)


@pytest.mark.parametrize("loss", ["mse", "multi-label", "next-token"])
def test_balance_is_for_one_class_an_example(loss: str) -> None:
    with pytest.raises(ValueError, match=f"balance: loss {loss} does not read it; cross-entropy do"):
        TrainConfig(loss=loss, balance=0.5)
    assert TrainConfig(loss=loss, balance=0.0).balance == 0.0
    criterion = TrainConfig(balance=0.5).criterion
    with pytest.raises(ModelError, match=r"train: targets are int64 \[3, 8, 8\]; training.balance needs one class an"):
        check_targets("train", criterion, torch.zeros(3, 8, 8, dtype=torch.int64), (5, 8, 8), 5)
    check_targets("train", criterion, torch.zeros(3, dtype=torch.int64), (5,), 5)


@pytest.mark.parametrize(
    "text", ['{"balance":-1}', '{"balance":1e300}', '{"balance":"much"}', '{"clip":-1}', '{"clip":1e300}']
)
def test_what_comes_from_outside_is_bounded(text: str) -> None:
    with pytest.raises(ModelError, match=r"balance|clip"):
        TrainConfig.from_json(text)


def shortened(gradients: list[list[float]], most: float) -> list[list[float]]:
    """Clipping by its definition."""
    norm = math.sqrt(sum(value * value for each in gradients for value in each))
    return [[value * min(1.0, most / norm) for value in each] for each in gradients]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most", [0.5, 3.0, 1e6])
def test_a_gradient_is_as_long_as_it_may_be_at_most(seed: int, most: float) -> None:
    draws, shapes = torch.Generator().manual_seed(seed), [(3, 4), (2,), (), (2, 1, 3, 3)]
    gradients = [torch.randn(shape, generator=draws) for shape in shapes]
    before = [each.clone() for each in gradients]
    expected = shortened([each.flatten().tolist() for each in gradients], most)
    found = clipped(gradients, most)
    for mine, theirs, given, was in zip(found, expected, gradients, before, strict=True):
        torch.testing.assert_close(mine.flatten(), torch.tensor(theirs), rtol=1e-5, atol=1e-6)
        # Two weights may share one.
        assert torch.equal(given, was)
    # Each of many devices by its own norm.
    scales = torch.tensor([0.1, 1.0, 10.0])
    stack = [torch.stack([scale * each for scale in scales]) for each in gradients]
    for k, mine in enumerate(zip(*clipped(stack, most, stacked=True), strict=True)):
        for one, other in zip(mine, clipped([each[k] for each in stack], most), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert clipped([], most) == []


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("clip", [0.05, 0.5, 1e6])
def test_a_device_clips_the_gradient_of_each_step(clip: float, momentum: float) -> None:
    state = dict(build(MODEL, spec_of(1.0)).state_dict())
    training = TrainConfig(epochs=2, batch_size=6, balance=0.5, clip=clip, momentum=momentum)
    found, expected = (train(state, drawn(4), training, 9) for train in (trained, by_hand))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_whole_step_is_clipped_not_those_of_its_parts() -> None:
    state, training = dict(build(MODEL, spec_of(1.0)).state_dict()), TrainConfig(batch_size=7, clip=0.05)

    def with_levers(levers: Levers) -> list[Tensor]:
        module = build(MODEL, spec_of(1.0))
        module.load_state_dict(state)
        fit(module, drawn(4), training, torch.Generator().manual_seed(9), levers=levers)
        return [parameter.detach() for parameter in module.parameters()]

    plain = with_levers(Levers())
    for ours, theirs in zip(with_levers(Levers(micro_batch=2)), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(with_levers(Levers(half_state=True)), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)


def test_a_clipped_gradient_needs_room_beside_the_one_that_it_is_made_of() -> None:
    wide = ModelConfig("cnn", (1, 8, 8), classes=5, widths=(64, 128), group=8)
    for batch, more in ((1, True), (256, False)):
        plain, clipping = (width_cost(wide, 1.0, TrainConfig(batch_size=batch, clip=clip)) for clip in (0.0, 1.0))
        weights = plain.bytes_up
        assert clipping.memory == max(plain.memory, 4 * weights + batch * 4 * 64)
        assert (clipping.memory > plain.memory) == more


def test_a_clipped_step_leaves_nothing_to_a_layer_that_would_add_its_gradient_late() -> None:
    plain = TrainConfig(momentum=0.0)
    assert plain.plain
    assert not TrainConfig(momentum=0.0, clip=1.0).plain
    assert TrainConfig(momentum=0.0, clip=0.0).plain


def falling(schedule: str, number: int, rounds: int) -> float:
    """The share of the learning rate in round `number` of `rounds`, counted from 1, by definition."""
    kind, _, text = schedule.partition(":")
    over = number - 1
    if kind == "cosine":
        return 0.5 + 0.5 * math.cos(math.pi * over / rounds)
    if kind == "step":
        shares, _, divisor = text.partition("/")
        share = 1.0
        for each in shares.split(","):
            # Rounded to whole thousandths, so that 0.3 of ten rounds is three of them.
            if 1000 * over >= round(1000 * float(each)) * rounds:
                share /= float(divisor or 10)
        return share
    return float(text) ** (over / rounds) if kind == "exponential" else 1.0


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step:0.5", "step:0.3,0.6,0.9/4", "exponential:0.135"])
@pytest.mark.parametrize("rounds", [1, 7, 10, 400])
def test_each_round_has_the_rate_of_its_schedule(schedule: str, rounds: int) -> None:
    training, last = TrainConfig(learning_rate=0.3, schedule=schedule), math.inf
    for number in range(1, rounds + 1):
        told = training.at(Moment(number, rounds).progress)
        assert told.learning_rate == pytest.approx(0.3 * falling(schedule, number, rounds), rel=1e-9)
        assert not told.scheduled
        assert told.at(0.9) is told
        assert 0 < told.learning_rate <= last
        last = told.learning_rate
    # A round behind the last one, of which a device may be told, is no reason to stop.
    assert training.at(1.0).learning_rate > 0
    assert training.scheduled == (schedule != "constant")


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_device_trains_at_the_rate_of_its_round(momentum: float) -> None:
    state = dict(build(MODEL, spec_of(1.0)).state_dict())
    training = TrainConfig(epochs=2, batch_size=6, momentum=momentum, schedule="step:0.25,0.5")

    def at(progress: float, training: TrainConfig) -> list[Tensor]:
        module = build(MODEL, spec_of(1.0))
        module.load_state_dict(state)
        fit(module, drawn(4), training, torch.Generator().manual_seed(9), progress)
        return [parameter.detach() for parameter in module.parameters()]

    for progress, rate in ((0.2, 0.05), (0.25, 0.05 / 10), (0.7, 0.05 / 10**2)):
        expected = at(progress, replace(training, schedule=None, learning_rate=rate))
        found = at(progress, training)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "linear",
        "cosine:2",
        "step",
        "step:",
        "step:0.5,0.25",
        "step:0",
        "step:1",
        "step:nan",
        "step:0.5/1",
        "step:0.5/inf",
        "step:0.5/",
        "step:" + ",".join(f"{k / 100:g}" for k in range(1, 18)),
        "exponential:0",
        "exponential:1.5",
        "exponential:nan",
        "x" * 1000,
    ],
)
def test_a_text_that_is_no_schedule_is_one_line(text: str) -> None:
    with pytest.raises(ModelError, match="schedule") as caught:
        TrainConfig.from_json(json.dumps({"schedule": text}))
    assert len(str(caught.value).splitlines()) == 1
    assert TrainConfig.from_json('{"schedule":"step:0.5,0.75/4"}').schedule == "step:0.5,0.75/4"
