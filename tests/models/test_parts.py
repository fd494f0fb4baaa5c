"""Partial training: what is trained of a sub-model, what that costs, and that nothing else changes."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from diastole.models.cost import standing
from diastole.models.errors import SpecError
from diastole.models.levers import KNOWN, LEVERS, NO_LEVERS, Levers
from diastole.models.methods.registry import METHODS, build, cost_of, make_method
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.parts import is_part, train_only, trained
from diastole.models.seeds import generator
from diastole.models.state import tensor_bytes
from diastole.models.training import Examples, TrainConfig, fit
from diastole.models.ways import cost_by, ways_of
from diastole.proto.coding import Coding
from diastole.proto.payload import encode
from diastole.proto.profile import Profile
from diastole.server.planner import Limits, Planner

CNN = ModelConfig("cnn", (3, 8, 8), 4, (8, 8, 16))
RESNET = ModelConfig("resnet", (3, 8, 8), 4, (8, 16), (2, 1))
VIT = ModelConfig("vit", (3, 8, 8), 4, (8, 8), (1, 1))
TRAINING = TrainConfig(epochs=2, batch_size=4, learning_rate=0.1)
WHOLE = spec_of(1.0)


def names(module: nn.Module, part: str) -> set[str]:
    """Return what the names of the parameters of a part begin with, to the second dot."""
    return {".".join(name.split(".")[:2]) for name in trained(module, part)}


@pytest.mark.parametrize(
    ("model", "part", "expected"),
    [
        (CNN, "last-stages:1", {"stages.2", "classifier.weight", "classifier.bias"}),
        (CNN, "last-stages:2", {"stages.1", "stages.2", "classifier.weight", "classifier.bias"}),
        (CNN, "head", {"classifier.weight", "classifier.bias"}),
        (VIT, "last-stages:1", {"stages.1", "norm.weight", "norm.bias", "classifier.weight", "classifier.bias"}),
        (VIT, "head", {"norm.weight", "norm.bias", "classifier.weight", "classifier.bias"}),
        (CNN, "last-stages:4", set()),
    ],
)
def test_a_part_is_the_end_of_the_network(model: ModelConfig, part: str, expected: set[str]) -> None:
    assert names(build(model), part) == expected


def test_norms_are_those_of_every_stage() -> None:
    module = build(RESNET)
    found = trained(module, "norms-and-head") - trained(module, "head")
    assert found == {name for name, weight in module.named_parameters() if weight.ndim == 1} - {"classifier.bias"}


def test_a_part_is_a_part_of_each_network_and_exits_belong_to_it() -> None:
    both = make_method("splitmix", RESNET, [1.0, 0.5], TRAINING).offers()[-1].spec
    assert {name.split(".")[1] for name in trained(build(RESNET, both), "head")} == {"0", "1"}
    deep = make_method("depthfl", RESNET, [1.0, 0.5], TRAINING).offers()[-1].spec
    assert {name.split(".")[0] for name in trained(build(RESNET, deep), "head")} == {"trunk", "exits"}


def test_what_is_frozen_is_no_part() -> None:
    module = build(ModelConfig("cnn", (3, 8, 8), 4, (8, 8), frozen=("classifier.*",)))
    assert trained(module, "head") == frozenset()
    assert names(module, "last-stages:1") == {"stages.1"}
    with pytest.raises(SpecError, match="a CNN has no part 'head'"):
        train_only(module, "head")


def test_weights_that_share_a_tensor_are_no_part() -> None:
    thin = make_method("fiarse", RESNET, [1.0, 0.5], TRAINING).offers()[0].spec
    assert thin.options.density < 1
    assert trained(build(RESNET, thin), "last-stages:1") == frozenset()


# Training


def steps(module: nn.Module, examples: Examples, part: frozenset[str]) -> Iterator[None]:
    """Train by the gradients of all parameters, and move those of the part."""
    velocities: dict[str, Tensor] = {}
    draws = generator(7)
    for _ in range(TRAINING.epochs):
        for batch in torch.randperm(len(examples), generator=draws).split(TRAINING.batch_size):
            loss = nn.functional.cross_entropy(module(examples.x[batch]), examples.y[batch])
            weights = dict(module.named_parameters())
            found = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
            with torch.no_grad():
                for name in part:
                    velocities[name] = TRAINING.momentum * velocities.get(name, 0) + found[name]
                    weights[name] -= TRAINING.learning_rate * velocities[name]
            yield


@pytest.mark.parametrize("part", ["last-stages:1", "norms-and-head", "head"])
@pytest.mark.parametrize("levers", [NO_LEVERS, Levers(recompute=True, micro_batch=3)])
def test_a_part_is_trained_as_by_masked_gradients(part: str, levers: Levers) -> None:
    torch.manual_seed(0)
    mine, other, start = (build(RESNET).double() for _ in range(3))
    for module in (mine, other):
        module.load_state_dict(start.state_dict())
    train_only(mine, part)
    examples = Examples(torch.randn(10, 3, 8, 8, dtype=torch.float64), torch.arange(10) % 4)
    fit(mine, examples, TRAINING, generator(7), levers=levers)
    moved = trained(start, part)
    assert len(list(steps(other, examples, moved))) == 6
    first = dict(start.named_parameters())
    for (name, weight), (_, expected) in zip(mine.named_parameters(), other.named_parameters(), strict=True):
        assert torch.allclose(weight, expected, 1e-9, 1e-12), name
        assert torch.equal(weight, first[name]) == (name not in moved)


# Costs


def test_only_what_trains_has_gradients_and_state_and_is_sent_back() -> None:
    training = TrainConfig(batch_size=16)
    whole, part = (cost_by(CNN, WHOLE, training, each) for each in (NO_LEVERS, Levers(part="last-stages:1")))
    weights = dict(build(CNN).named_parameters())
    mine = {name: weights[name] for name in trained(build(CNN), "last-stages:1")}
    assert (part.down, part.moving, part.untrained) == (whole.down, whole.up, 0)
    assert part.up == len(encode(mine)) < whole.up
    assert part.bytes_up == tensor_bytes(mine)
    assert sorted(part.shapes) == sorted(tuple(weight.shape) for weight in mine.values())
    # Two stages take only their forward pass; behind the last one, weights and their inputs have gradients as before.
    first, second, third = 8 * 27 * 64, 8 * 72 * 16, 16 * 72 * 4
    assert whole.training_macs - part.training_macs == first + 2 * second + third
    assert part.forward_macs == whole.forward_macs
    spared = 2 * (whole.bytes_up - part.bytes_up)
    # What the second stage gives enters the third one and is saved for it.
    assert part.memory <= whole.memory - spared - 16 * 4 * (8 * 64 + 8 * 16)


def test_the_forward_pass_counts_where_little_is_saved() -> None:
    training = TrainConfig(batch_size=16)
    module = build(CNN)
    train_only(module, "head")
    head = cost_by(CNN, WHOLE, training, Levers(part="head"))
    # A convolution's map, what normalises it, and ReLU: two of them at least are there at once.
    maps = 16 * 4 * 8 * 64
    free = head.memory - standing(module, training) - 16 * 4 * 3 * 64
    assert 2 * maps <= free <= 4 * maps
    few = cost_by(CNN, WHOLE, training, Levers(part="head", micro_batch=4))
    assert few.memory - standing(module, training) - 16 * 4 * 3 * 64 == pytest.approx(free / 4, rel=0.01)


def test_parts_come_behind_all_ways_to_train_the_whole_in_their_own_order() -> None:
    training = TrainConfig(batch_size=16, levers=LEVERS, parts=("head", "last-stages:9", "last-stages:1"))
    ways = ways_of(RESNET, WHOLE, training)
    plain = ways_of(RESNET, WHOLE, TrainConfig(batch_size=16, levers=LEVERS))
    assert ways[: len(plain)] == plain
    parts = [way.levers.part for way in ways[len(plain) :]]
    assert list(dict.fromkeys(parts)) == ["head", "last-stages:1"]
    for part in set(parts):
        memory = [way.cost.memory for way in ways if way.levers.part == part]
        assert all(other < memory[0] for other in memory[1:])
    alone = ways_of(RESNET, WHOLE, TrainConfig(batch_size=16, parts=("head",)))
    assert [way.levers for way in alone] == [NO_LEVERS, Levers(part="head")]
    assert alone[0].cost == cost_of(RESNET, WHOLE, TrainConfig(batch_size=16))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ("deps", "superfednas", "snnet", "snnetv2") else name
        for name, row in METHODS.items()
        if not row.baseline
    ],
)
def test_methods_of_indices_take_parts(name: str) -> None:
    method = make_method(name, RESNET, [1.0, 0.5], TRAINING)
    assert method.partial == (name not in ("conv", "snnet", "snnetv2"))


def test_a_limit_on_bytes_counts_what_is_sent() -> None:
    training = TrainConfig(parts=("head",), parts_first=True)
    size = make_method("width", CNN, [1.0], training).offers()[-1]
    profile = Profile("tier", 10, levers=KNOWN)

    def given(up: str, down: str, payload: int) -> str | None:
        """Return the part that fits, empty for all of it; None if nothing does."""
        limits = {"tier": Limits(payload=payload)}
        coding = Coding.of(up, down)
        planner = Planner(
            [size], training, limits=limits, coding=coding, ways=lambda size: ways_of(CNN, WHOLE, training)
        )
        return planner.levers("d", profile, size).part if planner.fits("d", profile) else None

    exact, sent = size.cost.bytes_down, Coding.of("int8", "int8").bytes_up(size.cost.shapes, size.cost.up)
    assert sent < exact / 2
    assert [given("exact", "exact", most) for most in (exact, exact - 1)] == ["", None]
    assert [given("int8", "int8", most) for most in (sent, sent - 1)] == ["", None]
    # Sent back exactly, all of it is too much; its head is not.
    assert [given("exact", "int8", most) for most in (size.cost.up, sent, sent - 1)] == ["", "head", None]


# What is read


def test_parts_travel_with_the_levers_and_older_agents_never_see_them() -> None:
    levers = Levers(recompute=True, part="last-stages:2")
    assert Levers.from_json(levers.to_json()) == levers
    assert levers.used == ("recompute", "partial")
    assert set(levers.used) <= set(KNOWN)
    assert "part" not in Levers(recompute=True).to_json()


@pytest.mark.parametrize("part", ["last-stages", "last-stages:0", "last-stages:1000", "stages", "head ", "x" * 400])
def test_a_part_that_is_none_is_named(part: str) -> None:
    assert not is_part(part)
    with pytest.raises(ValueError, match=r"accepted: last-stages:N, norms-and-head, head|at most 64"):
        TrainConfig(parts=(part,))
    with pytest.raises(Exception, match="part"):
        Levers(part=part)


def test_a_loop_of_ones_own_trains_no_part() -> None:
    with pytest.raises(ValueError, match="leave out parts or fit"):
        TrainConfig(parts=("head",), fit="own_fits:fit")
