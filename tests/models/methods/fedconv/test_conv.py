"""FedConv: what its contract does not say. Losses are measured by `evaluate`, apart from the code under test."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, replace

import pytest
import torch
from fedconv import MODEL, STILL, TRAINING, WIDTHS, World, make_world, same, trained
from torch.func import functional_call
from torch.nn import functional as F

from diastole.models.compressor import Offer, Proxy, Return
from diastole.models.errors import SpecError
from diastole.models.methods.fedconv.conv import ConvCompressor, ConvConfig
from diastole.models.methods.registry import build
from diastole.models.moment import Moment
from diastole.models.seeds import derive_seed, generator
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.training import Examples, batches, evaluate

LEARNING = ConvConfig(epochs=3, learning_rate=0.003, weight_epochs=8, weight_learning_rate=0.1, batch_size=16)

# What float32 sums over 48 examples may differ by when they are added in another order.
ROUNDING = 1e-6
OFFERS = ConvCompressor(MODEL, WIDTHS, TRAINING).specs()


@pytest.fixture(scope="module")
def world(separable) -> World:
    return make_world(separable)


def fresh(world: World, config: ConvConfig = LEARNING, proxy: Proxy | None = None, seed: int = 1) -> ConvCompressor:
    compressor = ConvCompressor(MODEL, WIDTHS, TRAINING, config)
    compressor.prepare(world.state, proxy or world.proxy, Moment(seed=seed))
    return compressor


def prepared(world: World, config: ConvConfig = LEARNING) -> ConvCompressor:
    """Return a copy of `fresh`, which takes a tenth of the time."""
    if config not in world.prepared:
        world.prepared[config] = fresh(world, config)
    return deepcopy(world.prepared[config])


def small(compressor: ConvCompressor) -> list[Offer]:
    """The sizes that are learned: all but the whole model."""
    return compressor.specs()[:-1]


def loss_of(state: State, spec: SubModelSpec | None, examples: Examples) -> float:
    module = build(MODEL, spec)
    module.load_state_dict(state)
    return evaluate(module, examples).loss


def poisoned(compressor: ConvCompressor, spec: SubModelSpec, examples: int, seed: int) -> Return:
    draws = torch.Generator().manual_seed(seed)
    sent = compressor.compress(spec)
    return Return(spec, {n: t + torch.randn(t.shape, generator=draws) for n, t in sent.items()}, examples)


def aggregate(compressor: ConvCompressor, world: World, returns: Sequence[Return], seed: int = 2) -> State:
    """Return the global state after a round that ends with these updates, under FedAvg."""
    weights = compressor.reconcile(returns, seed)
    result = {name: tensor.double() for name, tensor in world.state.items()}
    for item, weight in zip(returns, weights, strict=True):
        for name, patch in compressor.dilate(item.state, item.spec).items():
            result[name] += weight / sum(weights) * (patch.values.double() - world.state[name].double())
    return {name: tensor.float() for name, tensor in result.items()}


def sliced_average(compressor: ConvCompressor, world: World, returns: Sequence[Return]) -> State:
    """Return where reconciling begins: FedAvg of changes that go back into the prefix they were cut from."""
    result = {name: tensor.clone() for name, tensor in world.state.items()}
    examples = sum(item.examples for item in returns)
    for item in returns:
        for name, sent in compressor.compress(item.spec).items():
            prefix = tuple(slice(0, size) for size in sent.shape)
            result[name][prefix] += item.examples / examples * (item.state[name] - sent)
    return result


# The maps start as a slice


def test_without_training_a_sub_model_is_the_prefix_and_a_change_goes_back_into_it(world: World) -> None:
    compressor = prepared(world, STILL)
    for offer in compressor.specs():
        sent = compressor.compress(offer.spec)
        back = {name: tensor + 1.0 for name, tensor in sent.items()}
        contribution = compressor.dilate(back, offer.spec)
        for name, tensor in world.state.items():
            prefix = tuple(slice(0, size) for size in sent[name].shape)
            expected = tensor.clone()
            expected[prefix] += 1.0
            # Large kernels go through an FFT, which rounds in units of the largest value, of order one.
            torch.testing.assert_close(sent[name], tensor[prefix], rtol=0, atol=1e-6)
            torch.testing.assert_close(contribution[name].values, expected, rtol=0, atol=1e-6)


# The maps are trained, and only for the better


def test_preparing_lowers_the_validation_loss_and_never_raises_it(world: World) -> None:
    still = prepared(world, STILL)
    for seed in range(4):
        learned = fresh(world, seed=seed)
        for offer in learned.specs():
            before = loss_of(still.compress(offer.spec), offer.spec, world.proxy.validation)
            after = loss_of(learned.compress(offer.spec), offer.spec, world.proxy.validation)
            assert after <= before * (1 + ROUNDING)
            if offer in small(learned):
                assert after < before
            else:
                assert same(learned.compress(offer.spec), world.state)


def test_a_step_too_large_to_help_is_undone(world: World) -> None:
    wild = prepared(world, ConvConfig(epochs=2, learning_rate=1e3))
    still = prepared(world, STILL)
    assert all(same(wild.compress(offer.spec), still.compress(offer.spec)) for offer in wild.specs())


def test_a_second_round_starts_from_the_maps_of_the_first(world: World) -> None:
    compressor = prepared(world)
    first = {o.spec: loss_of(compressor.compress(o.spec), o.spec, world.proxy.validation) for o in small(compressor)}
    compressor.prepare(world.state, world.proxy, Moment(seed=7))
    for spec, before in first.items():
        assert loss_of(compressor.compress(spec), spec, world.proxy.validation) <= before * (1 + ROUNDING)


@pytest.mark.parametrize("size", range(3))
def test_reconciling_lowers_the_aggregates_validation_loss(world: World, size: int) -> None:
    compressor = prepared(world)
    spec = compressor.specs()[size].spec
    returns = [trained(compressor, spec, world.examples(16 * (k + 1), 10 + k)) for k in range(3)]
    before = loss_of(sliced_average(compressor, world, returns), None, world.proxy.validation)
    assert loss_of(aggregate(compressor, world, returns), None, world.proxy.validation) < before


def test_reconciling_that_would_raise_the_loss_is_undone(world: World) -> None:
    wild = prepared(world, ConvConfig(epochs=2, learning_rate=1e3, weight_epochs=2, weight_learning_rate=1e3))
    spec = wild.specs()[1].spec
    returns = [trained(wild, spec, world.examples(16 * (k + 1), 10 + k)) for k in range(3)]
    before = sliced_average(wild, world, returns)
    after = aggregate(wild, world, returns)
    validation = world.proxy.validation
    assert loss_of(after, None, validation) <= loss_of(before, None, validation) * (1 + ROUNDING)


def test_only_validation_decides_what_is_kept(world: World) -> None:
    def wrong(examples: Examples) -> Examples:
        return Examples(examples.x, (examples.y + 1) % MODEL.classes)

    training, validation = world.proxy.training, world.proxy.validation
    still = prepared(world, STILL)
    spec = still.specs()[1].spec
    right = fresh(world, proxy=Proxy(training, validation))
    turned = fresh(world, proxy=Proxy(training, wrong(validation)))
    both = fresh(world, proxy=Proxy(wrong(training), wrong(validation)))
    assert not same(right.compress(spec), turned.compress(spec))
    for compressor, judge in ((turned, wrong(validation)), (both, wrong(validation)), (right, validation)):
        before = loss_of(still.compress(spec), spec, judge)
        assert loss_of(compressor.compress(spec), spec, judge) <= before * (1 + ROUNDING)


def test_a_proxy_set_holds_nothing_but_training_and_validation() -> None:
    assert [part.name for part in fields(Proxy)] == ["training", "validation"]


@pytest.mark.parametrize("lacking", ["everything", "training", "validation"])
def test_a_proxy_set_without_both_parts_is_refused(world: World, lacking: str) -> None:
    proxy = None if lacking == "everything" else replace(world.proxy, **{lacking: Examples.empty()})
    with pytest.raises(SpecError, match="validation part"):
        ConvCompressor(MODEL, WIDTHS, TRAINING).prepare(world.state, proxy, Moment(seed=1))


def test_one_example_in_each_part_is_enough(world: World) -> None:
    first = torch.tensor([0])
    proxy = Proxy(world.proxy.training.subset(first), world.proxy.validation.subset(first))
    compressor = fresh(world, proxy=proxy)
    returns = [trained(compressor, compressor.specs()[0].spec, world.examples(8, 5))]
    assert compressor.reconcile(returns, 1) == pytest.approx([8.0], rel=ROUNDING)


# Weights of devices


def test_weights_add_up_to_the_examples_and_start_as_fedavgs(world: World) -> None:
    compressor = prepared(world, STILL)
    returns = [trained(compressor, offer.spec, world.examples(8 * (k + 1), k)) for k, offer in enumerate(OFFERS)]
    assert compressor.reconcile(returns, 1) == pytest.approx([8, 16, 24], rel=ROUNDING)
    compressor = prepared(world)
    weights = compressor.reconcile(returns, 1)
    assert sum(weights) == pytest.approx(48, rel=ROUNDING)
    assert weights != pytest.approx([8, 16, 24], rel=1e-3)


def test_devices_that_learned_nothing_keep_fedavgs_weights(world: World) -> None:
    compressor = prepared(world)
    returns = [Return(o.spec, compressor.compress(o.spec), 8 * (k + 1)) for k, o in enumerate(OFFERS)]
    assert compressor.reconcile(returns, 1) == pytest.approx([8, 16, 24], rel=ROUNDING)


def test_weights_are_those_that_adam_finds_for_the_dilated_changes(world: World) -> None:
    compressor = prepared(world, replace(LEARNING, epochs=0, weight_epochs=2))
    returns = [trained(compressor, offer.spec, world.examples(16 + 8 * k, 20 + k)) for k, offer in enumerate(OFFERS)]
    weights = compressor.reconcile(returns, 9)

    contributions = [compressor.dilate(item.state, item.spec) for item in returns]
    module = build(MODEL)

    def loss(logits: torch.Tensor, examples: Examples) -> torch.Tensor:
        state = dict(world.state)
        for share, contribution in zip(logits.softmax(0), contributions, strict=True):
            for name, patch in contribution.items():
                state[name] = state[name] + share * (patch.values - world.state[name])
        return F.cross_entropy(functional_call(module, state, (examples.x,)), examples.y)

    shares = torch.tensor([16.0, 24.0, 32.0]) / 72
    logits = shares.log().requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=LEARNING.weight_learning_rate)
    draws = generator(derive_seed(9, "weights"))
    kept = [logits.detach().clone()]
    for _ in range(2):
        for batch in batches(world.proxy.training, LEARNING.batch_size, draws):
            optimiser.zero_grad()
            loss(logits, batch).backward()
            optimiser.step()
        kept.append(logits.detach().clone())
    best = min(kept, key=lambda each: loss(each, world.proxy.validation).item())
    assert weights == pytest.approx((best.softmax(0) * 72).tolist(), rel=1e-3)
    assert weights != pytest.approx([16, 24, 32], rel=1e-2)


def test_one_device_alone_has_all_the_weight(world: World) -> None:
    compressor = prepared(world)
    returns = [trained(compressor, compressor.specs()[1].spec, world.examples(24, 5))]
    assert compressor.reconcile(returns, 1) == pytest.approx([24.0], rel=ROUNDING)


def test_a_weight_never_falls_below_what_can_be_folded(world: World) -> None:
    compressor = prepared(world, replace(LEARNING, weight_learning_rate=2.0))
    honest = [trained(compressor, OFFERS[k].spec, world.examples(32, 20 + k)) for k in range(3)]
    weights = compressor.reconcile([*honest, poisoned(compressor, OFFERS[2].spec, 32, 0)], 3)
    # The accumulator refuses less, and the coordinator would then blame the device.
    assert min(weights) >= 2**-20


@pytest.mark.parametrize("size", range(3))
@pytest.mark.parametrize("seed", range(3))
def test_weights_move_away_from_a_poisoned_device(world: World, size: int, seed: int) -> None:
    compressor = prepared(world, replace(LEARNING, learning_rate=ConvConfig().learning_rate))
    honest = [trained(compressor, OFFERS[k].spec, world.examples(32, 20 + k)) for k in range(3)]
    weights = compressor.reconcile([*honest, poisoned(compressor, OFFERS[size].spec, 32, seed)], 3)
    assert weights[3] < 32 / 2
    assert weights[3] == min(weights)


# What comes back


def test_devices_that_learned_nothing_leave_the_global_model_to_the_bit(world: World) -> None:
    compressor = prepared(world)
    returns = [Return(offer.spec, compressor.compress(offer.spec), 10) for offer in compressor.specs()]
    assert same(aggregate(compressor, world, returns), world.state)


def test_reconciling_depends_on_nothing_but_updates_their_order_and_the_seed(world: World) -> None:
    results = []
    for noise_seed in (1, 2):
        torch.manual_seed(noise_seed)
        compressor = fresh(world)
        specs = [offer.spec for offer in compressor.specs()]
        returns = [trained(compressor, specs[k % 3], world.examples(16 + 8 * k, k)) for k in range(4)]
        before = [{name: tensor.clone() for name, tensor in item.state.items()} for item in returns]
        results.append((compressor.reconcile(returns, 3), aggregate(compressor, world, returns)))
        assert all(same(item.state, kept) for item, kept in zip(returns, before, strict=True))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


def test_nothing_that_leaves_the_compressor_carries_a_gradient(world: World) -> None:
    compressor = prepared(world)
    for offer in compressor.specs():
        item = trained(compressor, offer.spec, world.examples(16, 1))
        compressor.reconcile([item], 1)
        assert not any(tensor.requires_grad for tensor in compressor.compress(offer.spec).values())
        contribution = compressor.dilate(item.state, offer.spec)
        assert not any(patch.values.requires_grad for patch in contribution.values())
