"""FedConv's options: activations of the maps, weights for each tensor, and a proxy set without labels."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from fedconv import MODEL, STILL, TRAINING, World, make_world, same, trained, weights_of
from torch.func import functional_call
from torch.nn import functional as F
from updates import update

from diastole.models.accumulator import Accumulator
from diastole.models.batches import batches
from diastole.models.errors import SpecError
from diastole.models.method import Weight
from diastole.models.methods.fedconv.conv import ConvConfig, ConvMethod
from diastole.models.methods.registry import METHODS, Conditions, build, parse_options
from diastole.models.moment import Moment
from diastole.models.proxy import Proxy
from diastole.models.seeds import derive_seed, generator
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Update
from diastole.models.training import Examples

LEARNING = ConvConfig(epochs=2, learning_rate=0.003, weight_epochs=2, weight_learning_rate=0.1, batch_size=32)

SLOPES = {"none": (1.0, 1.0), "signed": (0.85, 0.85), "paper": (0.85, 0.001)}
# Any two options meet in one of those that are not slow.
OPTIONS = [
    pytest.param(
        {"activation": activation, "activations": times, "weights": weights, "labels": labels},
        marks=[] if ((k % 2 == 0) == (weights == "device")) == labels else pytest.mark.slow,
        id=f"{activation}-{times}-{weights}-{labels}",
    )
    for (k, (activation, times)), weights, labels in itertools.product(
        enumerate([("none", 1), ("signed", 1), ("paper", 1), ("paper", 2)]), ["device", "tensor"], [True, False]
    )
]


@pytest.fixture(scope="module")
def world(separable) -> World:
    return make_world(separable)


def fresh(world: World, config: ConvConfig, proxy: Proxy | None = None) -> ConvMethod:
    method = ConvMethod(MODEL, (1.0, 0.5, 0.25), TRAINING, config)
    method.prepare(world.state, proxy or world.proxy, Moment(seed=1))
    return method


def one_a_size(method: ConvMethod, world: World) -> list[Update]:
    """Return what one device of each size brings back."""
    return [trained(method, o.spec, world.examples(16 + 8 * k, 20 + k)) for k, o in enumerate(method.offers())]


def round_of(method: ConvMethod, world: World) -> tuple[Sequence[Weight], State]:
    """Return the weights, and the mean changes, of a round with one device a size."""
    updates = one_a_size(method, world)
    weights = weights_of(method, updates, 9)
    accumulator = Accumulator(world.state)
    for item, weight in zip(updates, weights, strict=True):
        accumulator.fold(method.dilate(item.state, item.spec), weight)
    return weights, accumulator.mean()[0]


# Activations


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_devices_that_learned_nothing_leave_the_global_model_to_the_bit(world: World, options: dict[str, Any]) -> None:
    method = fresh(world, replace(LEARNING, **options))
    updates = [update(size.spec, method.compress(size.spec), 10) for size in method.offers()]
    accumulator = Accumulator(world.state)
    for item, weight in zip(updates, weights_of(method, updates, 2), strict=True):
        contribution = method.dilate(item.state, item.spec)
        assert same({name: patch.values for name, patch in contribution.items()}, world.state)
        accumulator.fold(contribution, weight)
    assert not any(delta.any() for delta in accumulator.mean()[0].values())


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", SLOPES)
def test_without_training_maps_are_slices_under_the_activation(world: World, name: str, times: int) -> None:
    above, below = (slope**times for slope in SLOPES[name])

    def active(value: float) -> float:
        return value * (above if value > 0 else below)

    method = fresh(world, replace(STILL, activation=name, activations=times))
    draws = torch.Generator().manual_seed(0)
    for size in method.offers():
        sent = method.compress(size.spec)
        back = {key: tensor + torch.randn(tensor.shape, generator=draws) for key, tensor in sent.items()}
        contribution = method.dilate(back, size.spec)
        for key, tensor in world.state.items():
            if sent[key].shape == tensor.shape:
                assert torch.equal(sent[key], tensor)
                torch.testing.assert_close(contribution[key].values, tensor + (back[key] - sent[key]))
                continue
            expected = tensor.clone()
            for index in itertools.product(*map(range, sent[key].shape)):
                assert sent[key][index].item() == pytest.approx(active(tensor[index].item()), abs=1e-6)
                # What is dilated are weights; for a linear activation this is the dilated change.
                expected[index] += active(back[key][index].item()) - active(sent[key][index].item())
            torch.testing.assert_close(contribution[key].values, expected, rtol=0, atol=2e-6)


def test_the_papers_activation_leaves_hardly_a_negative_weight(world: World) -> None:
    def smallest(name: str) -> float:
        method = fresh(world, replace(STILL, activation=name, activations=2))
        return min(tensor.min().item() for tensor in method.compress(method.offers()[0].spec).values())

    whole = world.state["classifier.bias"].min().item()
    assert smallest("paper") == pytest.approx(whole, abs=1e-5)
    assert smallest("signed") < whole


# Weights of devices and tensors


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["none", "paper"])
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("weights", ["device", "tensor"])
def test_weights_are_those_that_adam_finds_for_the_dilated_changes(
    world: World, weights: str, labels: bool, activation: str
) -> None:
    config = replace(LEARNING, epochs=0, weights=weights, labels=labels, activation=activation)
    method = fresh(world, config)
    updates = one_a_size(method, world)
    found = weights_of(method, updates, 9)

    contributions = [method.dilate(item.state, item.spec) for item in updates]
    module, names = build(MODEL), list(world.state)
    module.load_state_dict(world.state)

    def loss(logits: torch.Tensor, examples: Examples) -> torch.Tensor:
        state = dict(world.state)
        for share, contribution in zip(logits.softmax(0), contributions, strict=True):
            for k, name in enumerate(names):
                mine = share[k] if weights == "tensor" else share
                state[name] = state[name] + mine * (contribution[name].values - world.state[name])
        scores = functional_call(module, state, (examples.x,))
        if labels:
            return F.cross_entropy(scores, examples.y)
        taught = module(examples.x).detach().softmax(1)
        return (taught * (taught.log() - scores.log_softmax(1))).sum(1).mean()

    shares = torch.tensor([16.0, 24.0, 32.0]) / 72
    logits = shares.log() if weights == "device" else shares.log().unsqueeze(1).repeat(1, len(names))
    logits.requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=LEARNING.weight_learning_rate)
    draws = generator(derive_seed(9, "weights"))
    kept = [logits.detach().clone()]
    for _ in range(2):
        for batch in batches(world.proxy.training, LEARNING.batch_size, draws):
            optimiser.zero_grad()
            loss(logits, batch).backward()
            optimiser.step()
        kept.append(logits.detach().clone())
    best = min(kept, key=lambda each: loss(each, world.proxy.validation).item()).softmax(0) * 72
    if weights == "device":
        assert found == pytest.approx(best.tolist(), rel=1e-3)
        return
    for row, expected in zip(found, best.tolist(), strict=True):
        assert isinstance(row, Mapping)
        assert list(row) == names
        assert list(row.values()) == pytest.approx(expected, rel=1e-3)
    for name in names:
        assert sum(row[name] for row in found) == pytest.approx(72, rel=1e-5)
    assert len({round(value, 3) for value in found[0].values()}) > 1


def test_a_weight_for_each_tensor_counts_in_that_tensor_alone(world: World) -> None:
    method = fresh(world, replace(LEARNING, weights="tensor"))
    weights, mean = round_of(method, world)
    updates = one_a_size(method, world)
    for name, tensor in world.state.items():
        terms = [
            weight[name] * (method.dilate(item.state, item.spec)[name].values.double() - tensor.double())
            for item, weight in zip(updates, weights, strict=True)
        ]
        torch.testing.assert_close(mean[name], sum(terms) / sum(weight[name] for weight in weights))


# A proxy set without labels


@pytest.mark.parametrize(
    ("weights", "activation"),
    [
        ("device", "none"),
        ("tensor", "paper"),
        pytest.param("device", "paper", marks=pytest.mark.slow),
        pytest.param("tensor", "none", marks=pytest.mark.slow),
    ],
)
def test_without_labels_scrambled_labels_change_nothing(world: World, weights: str, activation: str) -> None:
    def wrong(examples: Examples) -> Examples:
        # No class at all: whoever reads these fails.
        return Examples(examples.x, torch.full_like(examples.y, -(10**6)))

    config = replace(LEARNING, labels=False, activation=activation, weights=weights)
    scrambled = Proxy(wrong(world.proxy.training), wrong(world.proxy.validation))
    one, other = fresh(world, config), fresh(world, config, scrambled)
    sent = {size.spec: one.compress(size.spec) for size in one.offers()}
    assert all(same(state, other.compress(spec)) for spec, state in sent.items())
    assert same(one.memory(), other.memory())
    kept = {name: tensor.clone() for name, tensor in one.memory().items()}
    (found, mean), (expected, expected_mean) = round_of(one, world), round_of(other, world)
    assert found == expected
    assert same(mean, expected_mean)
    assert same(one.memory(), other.memory())
    resumed = ConvMethod(MODEL, (1.0, 0.5, 0.25), TRAINING, config)
    resumed.resume(world.state, scrambled, Moment(), kept)
    assert all(same(resumed.compress(spec), state) for spec, state in sent.items())


def test_without_labels_sub_models_come_to_agree_with_the_global_model(world: World) -> None:
    def divergence(method: ConvMethod, spec: SubModelSpec) -> float:
        module, whole = build(MODEL, spec), build(MODEL)
        module.load_state_dict(method.compress(spec))
        whole.load_state_dict(world.state)
        x = world.proxy.validation.x
        with torch.no_grad():
            taught = whole(x).softmax(1)
            return (taught * (taught.log() - module(x).log_softmax(1))).sum(1).mean().item()

    still, learned = fresh(world, STILL), fresh(world, replace(LEARNING, labels=False))
    for size in still.offers()[:-1]:
        assert divergence(learned, size.spec) < divergence(still, size.spec)


def test_without_labels_the_server_cannot_train_on_them(world: World) -> None:
    method = fresh(world, replace(STILL, labels=False))
    with pytest.raises(SpecError, match="labels = false"):
        method.learn(world.state, world.proxy, TRAINING, Moment())
    row = METHODS["conv"]
    assert row.unlabelled(ConvConfig(labels=False))
    assert not row.unlabelled(ConvConfig())
    conditions = Conditions(TRAINING, proxy=64, labels=False, server_epochs=0, optimiser="fedavg")
    row.check(ConvConfig(labels=False), conditions)
    row.check(ConvConfig(), replace(conditions, server_epochs=3))
    with pytest.raises(SpecError, match=r"methods.conv.labels = false: proxy.epochs must be 0, not 3"):
        row.check(ConvConfig(labels=False), replace(conditions, server_epochs=3))


@pytest.mark.parametrize("wrong", [{"activation": "relu"}, {"activations": 3}, {"weights": "scalar"}])
def test_an_unknown_option_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=next(iter(wrong))):
        parse_options("conv", wrong)
