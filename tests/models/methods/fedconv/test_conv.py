"""FedConv: what its contract does not say. Losses are measured by `evaluate`, apart from the code under test."""

import itertools
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, replace

import pytest
import torch
from fedconv import MODEL, STILL, TRAINING, WIDTHS, World, make_world, same, trained, weights_of
from torch.func import functional_call
from torch.nn import functional as F
from updates import update

from diastole.models import spilled
from diastole.models.batches import batches
from diastole.models.errors import SpecError
from diastole.models.method import Size, Weight
from diastole.models.methods.fedconv.conv import ConvConfig, ConvMethod
from diastole.models.methods.registry import build
from diastole.models.moment import Moment
from diastole.models.proxy import Proxy
from diastole.models.scoring import evaluate
from diastole.models.seeds import derive_seed, generator
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Update
from diastole.models.training import Examples

LEARNING = ConvConfig(epochs=3, learning_rate=0.003, weight_epochs=8, weight_learning_rate=0.1, batch_size=32)

# What float32 sums over 48 examples may differ by when they are added in another order.
ROUNDING = 1e-6
SIZES = ConvMethod(MODEL, WIDTHS, TRAINING).offers()


@pytest.fixture(scope="module")
def world(separable) -> World:
    return make_world(separable)


def fresh(world: World, config: ConvConfig = LEARNING, proxy: Proxy | None = None, seed: int = 1) -> ConvMethod:
    method = ConvMethod(MODEL, WIDTHS, TRAINING, config)
    method.prepare(world.state, proxy or world.proxy, Moment(seed=seed))
    return method


def prepared(world: World, config: ConvConfig = LEARNING) -> ConvMethod:
    """Return a copy of `fresh`, which takes a tenth of the time."""
    if config not in world.prepared:
        world.prepared[config] = fresh(world, config)
    return deepcopy(world.prepared[config])


def small(method: ConvMethod) -> Sequence[Size]:
    """The sizes that are learned: all but the whole model."""
    return method.offers()[:-1]


def loss_of(state: State, spec: SubModelSpec | None, examples: Examples) -> float:
    module = build(MODEL, spec)
    module.load_state_dict(state)
    return evaluate(module, examples).loss


def poisoned(method: ConvMethod, spec: SubModelSpec, examples: int, seed: int) -> Update:
    draws = torch.Generator().manual_seed(seed)
    sent = method.compress(spec)
    return update(spec, {n: t + torch.randn(t.shape, generator=draws) for n, t in sent.items()}, examples)


def aggregate(method: ConvMethod, world: World, updates: Sequence[Update], weights: Sequence[Weight] = ()) -> State:
    """Return the global state after a round that ends with these updates, under FedAvg."""
    weights = weights or weights_of(method, updates, 2)
    result = {name: tensor.double() for name, tensor in world.state.items()}
    for item, weight in zip(updates, weights, strict=True):
        for name, patch in method.dilate(item.state, item.spec).items():
            result[name] += weight / sum(weights) * (patch.values.double() - world.state[name].double())
    return {name: tensor.float() for name, tensor in result.items()}


def sliced_average(method: ConvMethod, world: World, updates: Sequence[Update]) -> State:
    """Return where weighing begins: FedAvg of changes that go back into the prefix they were cut from."""
    result = {name: tensor.clone() for name, tensor in world.state.items()}
    examples = sum(item.examples for item in updates)
    for item in updates:
        for name, sent in method.compress(item.spec).items():
            prefix = tuple(slice(0, size) for size in sent.shape)
            result[name][prefix] += item.examples / examples * (item.state[name] - sent)
    return result


# The maps start as a slice


def test_without_training_a_sub_model_is_the_prefix_and_a_change_goes_back_into_it(world: World) -> None:
    method = prepared(world, STILL)
    for size in method.offers():
        sent = method.compress(size.spec)
        back = {name: tensor + 1.0 for name, tensor in sent.items()}
        contribution = method.dilate(back, size.spec)
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
    for seed in range(2):
        learned = fresh(world, seed=seed)
        for size in learned.offers():
            before = loss_of(still.compress(size.spec), size.spec, world.proxy.validation)
            after = loss_of(learned.compress(size.spec), size.spec, world.proxy.validation)
            assert after <= before * (1 + ROUNDING)
            if size in small(learned):
                assert after < before
            else:
                assert same(learned.compress(size.spec), world.state)


def test_a_step_too_large_to_help_is_undone(world: World) -> None:
    wild = prepared(world, ConvConfig(epochs=2, learning_rate=1e3))
    still = prepared(world, STILL)
    assert all(same(wild.compress(size.spec), still.compress(size.spec)) for size in wild.offers())


def test_a_second_round_starts_from_the_maps_of_the_first(world: World) -> None:
    method = prepared(world)
    first = {o.spec: loss_of(method.compress(o.spec), o.spec, world.proxy.validation) for o in small(method)}
    method.prepare(world.state, world.proxy, Moment(seed=7))
    for spec, before in first.items():
        assert loss_of(method.compress(spec), spec, world.proxy.validation) <= before * (1 + ROUNDING)


@pytest.mark.parametrize("size", range(3))
def test_weighing_lowers_the_aggregates_validation_loss(world: World, size: int) -> None:
    method = prepared(world)
    spec = method.offers()[size].spec
    updates = [trained(method, spec, world.examples(16 * (k + 1), 10 + k)) for k in range(3)]
    before = loss_of(sliced_average(method, world, updates), None, world.proxy.validation)
    assert loss_of(aggregate(method, world, updates), None, world.proxy.validation) < before


def test_weighing_that_would_raise_the_loss_is_undone(world: World) -> None:
    wild = prepared(world, ConvConfig(epochs=2, learning_rate=1e3, weight_epochs=2, weight_learning_rate=1e3))
    spec = wild.offers()[1].spec
    updates = [trained(wild, spec, world.examples(16 * (k + 1), 10 + k)) for k in range(3)]
    before = sliced_average(wild, world, updates)
    after = aggregate(wild, world, updates)
    validation = world.proxy.validation
    assert loss_of(after, None, validation) <= loss_of(before, None, validation) * (1 + ROUNDING)


def test_only_validation_decides_what_is_kept(world: World) -> None:
    def wrong(examples: Examples) -> Examples:
        return Examples(examples.x, (examples.y + 1) % MODEL.classes)

    training, validation = world.proxy.training, world.proxy.validation
    still = prepared(world, STILL)
    spec = still.offers()[1].spec
    right = fresh(world, proxy=Proxy(training, validation))
    turned = fresh(world, proxy=Proxy(training, wrong(validation)))
    both = fresh(world, proxy=Proxy(wrong(training), wrong(validation)))
    assert not same(right.compress(spec), turned.compress(spec))
    for method, judge in ((turned, wrong(validation)), (both, wrong(validation)), (right, validation)):
        before = loss_of(still.compress(spec), spec, judge)
        assert loss_of(method.compress(spec), spec, judge) <= before * (1 + ROUNDING)


def test_a_proxy_set_holds_nothing_but_training_and_validation() -> None:
    assert [part.name for part in fields(Proxy)] == ["training", "validation"]


@pytest.mark.parametrize("lacking", ["everything", "training", "validation"])
def test_a_proxy_set_without_both_parts_is_refused(world: World, lacking: str) -> None:
    proxy = None if lacking == "everything" else replace(world.proxy, **{lacking: Examples.empty()})
    with pytest.raises(SpecError, match="validation part"):
        ConvMethod(MODEL, WIDTHS, TRAINING).prepare(world.state, proxy, Moment(seed=1))


def test_one_example_in_each_part_is_enough(world: World) -> None:
    first = torch.tensor([0])
    proxy = Proxy(world.proxy.training.subset(first), world.proxy.validation.subset(first))
    method = fresh(world, proxy=proxy)
    updates = [trained(method, method.offers()[0].spec, world.examples(8, 5))]
    assert weights_of(method, updates, 1) == pytest.approx([8.0], rel=ROUNDING)


# Weights of devices


def test_weights_add_up_to_the_examples_and_start_as_fedavgs(world: World) -> None:
    method = prepared(world, STILL)
    updates = [trained(method, size.spec, world.examples(8 * (k + 1), k)) for k, size in enumerate(SIZES)]
    assert weights_of(method, updates, 1) == pytest.approx([8, 16, 24], rel=ROUNDING)
    method = prepared(world)
    weights = weights_of(method, updates, 1)
    assert sum(weights) == pytest.approx(48, rel=ROUNDING)
    assert weights != pytest.approx([8, 16, 24], rel=1e-3)


def test_devices_that_learned_nothing_keep_fedavgs_weights(world: World) -> None:
    method = prepared(world)
    updates = [update(o.spec, method.compress(o.spec), 8 * (k + 1)) for k, o in enumerate(SIZES)]
    assert weights_of(method, updates, 1) == pytest.approx([8, 16, 24], rel=ROUNDING)


def test_weights_are_those_that_adam_finds_for_the_dilated_changes(world: World) -> None:
    method = prepared(world, replace(LEARNING, epochs=0, weight_epochs=2))
    updates = [trained(method, size.spec, world.examples(16 + 8 * k, 20 + k)) for k, size in enumerate(SIZES)]
    weights = weights_of(method, updates, 9)

    contributions = [method.dilate(item.state, item.spec) for item in updates]
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
    method = prepared(world)
    updates = [trained(method, method.offers()[1].spec, world.examples(24, 5))]
    assert weights_of(method, updates, 1) == pytest.approx([24.0], rel=ROUNDING)


def test_a_weight_never_falls_below_what_can_be_folded(world: World) -> None:
    method = prepared(world, replace(LEARNING, weight_learning_rate=2.0))
    honest = [trained(method, SIZES[k].spec, world.examples(32, 20 + k)) for k in range(3)]
    weights = weights_of(method, [*honest, poisoned(method, SIZES[2].spec, 32, 0)], 3)
    # The accumulator refuses less, and the coordinator would then blame the device.
    assert min(weights) >= 2**-20


@pytest.mark.parametrize(
    ("size", "seed"),
    [pytest.param(s, k, marks=[] if s == k else pytest.mark.slow) for s, k in itertools.product(range(3), range(3))],
)
def test_weights_move_away_from_a_poisoned_device(world: World, size: int, seed: int) -> None:
    method = prepared(world, replace(LEARNING, learning_rate=ConvConfig().learning_rate))
    honest = [trained(method, SIZES[k].spec, world.examples(32, 20 + k)) for k in range(3)]
    weights = weights_of(method, [*honest, poisoned(method, SIZES[size].spec, 32, seed)], 3)
    assert weights[3] < 32 / 2
    assert weights[3] == min(weights)


# What comes back


def test_devices_that_learned_nothing_leave_the_global_model_to_the_bit(world: World) -> None:
    method = prepared(world)
    updates = [update(size.spec, method.compress(size.spec), 10) for size in method.offers()]
    assert same(aggregate(method, world, updates), world.state)


def test_weighing_depends_on_nothing_but_updates_their_order_and_the_seed(world: World) -> None:
    results = []
    for noise_seed in (1, 2):
        torch.manual_seed(noise_seed)
        method = fresh(world)
        specs = [size.spec for size in method.offers()]
        updates = [trained(method, specs[k % 3], world.examples(16 + 8 * k, k)) for k in range(4)]
        before = [{name: tensor.clone() for name, tensor in item.state.items()} for item in updates]
        weights = weights_of(method, updates, 3)
        results.append((weights, aggregate(method, world, updates, weights)))
        assert all(same(item.state, kept) for item, kept in zip(updates, before, strict=True))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


def test_changes_in_files_give_the_same_weights(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for least in (1 << 40, 0):
        monkeypatch.setattr(spilled, "LEAST_BYTES", least)
        method = prepared(world)
        specs = [size.spec for size in method.offers()]
        found.append(weights_of(method, [poisoned(method, specs[k % 3], 8 + k, k) for k in range(4)], 3))
    assert found[0] == found[1]


def test_nothing_that_leaves_the_compressor_carries_a_gradient(world: World) -> None:
    method = prepared(world)
    for size in method.offers():
        item = trained(method, size.spec, world.examples(16, 1))
        weights_of(method, [item], 1)
        assert not any(tensor.requires_grad for tensor in method.compress(size.spec).values())
        contribution = method.dilate(item.state, size.spec)
        assert not any(patch.values.requires_grad for patch in contribution.values())
