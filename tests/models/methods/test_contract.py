"""The contract of `Compressor`, run against every method; a new method is one more row of METHODS."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from diastole.models.accumulator import Accumulator
from diastole.models.compressor import Compressor, Contribution, IndexCompressor, Offer, Proxy, Return, covered
from diastole.models.errors import SpecError
from diastole.models.methods.registry import METHODS as REGISTERED
from diastole.models.methods.registry import build, make_compressor
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.mobilenet import DepthWise
from diastole.models.networks.transformer import Mix
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, check_state, tensor_bytes
from diastole.models.training import Objective, TrainConfig, evaluate, fit
from diastole.proto.payload import encode
from diastole.server.optimisers import ServerOptimiser, ServerOptimiserConfig

TRAINING = TrainConfig(epochs=4, batch_size=16, learning_rate=0.02)
WIDTHS = (1.0, 0.5, 0.25)
ANY = ("cnn-2d", "cnn-1d", "resnet", "custom")


@dataclass(frozen=True)
class Method:
    """What is particular to one method.

    Attributes:
        options: of the registry's method, for a test that has no time.
        models: it can be used with, by name.
        weighs: each update by its examples.
        widths: it offers a size for each width, and no other.
        indexed: its sub-models are selections of global coordinates.
        own: options on one model alone, by its name.
        slow: models that `make test` leaves out; others take the same ways through the method.

    """

    options: dict[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ("cnn-2d", "cnn-1d", "resnet")
    weighs: bool = True
    widths: bool = False
    indexed: bool = True
    own: dict[str, dict[str, Any]] = field(default_factory=dict)
    slow: tuple[str, ...] = ()


METHODS = {
    "diastole": Method(
        models=(*ANY, "simple-cnn", "mobilenet", "vit", "transformer"), widths=True, slow=("simple-cnn", "transformer")
    ),
    "width": Method(
        models=(*ANY, "simple-cnn", "mobilenet", "vit", "transformer"), widths=True, slow=("simple-cnn", "vit")
    ),
    "conv": Method(
        {"epochs": 2, "weight_epochs": 2}, models=ANY, weighs=False, widths=True, indexed=False, slow=("cnn-1d",)
    ),
    "fjord": Method(models=ANY, widths=True, slow=("cnn-1d",)),
    "fedrolex": Method(models=(*ANY, "vit", "transformer"), widths=True, slow=("cnn-1d", "vit")),
    "splitmix": Method(models=("cnn-2d", "cnn-1d", "resnet", "transformer")),
    "snnet": Method(
        {"initialise": "none", "warmup": 0},
        ("cnn-1d", "vit", "transformer", "resnet-deep"),
        own={"resnet-deep": {"depths": [[1, 1], [1, 2], [2, 2]]}},
        slow=("transformer",),
    ),
    "snnetv2": Method(
        {"initialise": "none", "warmup": 0, "rank": 2}, ("resnet", "vit", "transformer"), slow=("transformer",)
    ),
    "fiarse": Method(models=(*ANY, "mobilenet"), slow=("cnn-1d",)),
    "depthfl": Method(models=("cnn-2d", "cnn-1d", "resnet", "transformer", "custom-deep"), slow=("cnn-1d",)),
    "inclusivefl": Method(
        models=("cnn-2d", "cnn-1d", "resnet", "resnet-deep", "custom-deep"), slow=("cnn-1d", "resnet")
    ),
    "scalefl": Method(
        models=("cnn-2d", "cnn-1d", "resnet", "vit", "transformer", "custom-deep"), slow=("cnn-1d", "vit")
    ),
    "nefl": Method(
        models=("cnn-2d", "cnn-1d", "resnet", "resnet-deep", "vit", "mobilenet", "custom-deep"),
        slow=("cnn-1d", "resnet"),
    ),
    "adaptivefl": Method(slow=("cnn-1d",)),
    "ofa": Method({"pool": 4}, models=("cnn-1d", "resnet", "mobilenet")),
    "superfednas": Method({"pool": 4}, models=("cnn-2d", "mobilenet"), weighs=False),
    "deps": Method({"pool": 4}, models=("resnet", "mobilenet", "transformer")),
}

MODELS = {
    "cnn-2d": ModelConfig("cnn", (1, 8, 8), classes=4, widths=(8, 16), group=2),
    "cnn-1d": ModelConfig("cnn", (3, 16), classes=3, widths=(8, 12), group=2),
    "simple-cnn": ModelConfig("simple-cnn", (1, 8, 8), classes=4, widths=(8, 8, 16), group=2),
    "resnet": ModelConfig("resnet", (3, 8, 8), classes=4, widths=(8, 16), blocks=(1, 1), group=2),
    "vit": ModelConfig("vit", (1, 8, 8), classes=4, widths=(16,), blocks=(2,), group=4),
    "transformer": ModelConfig("transformer", (3, 8), classes=3, widths=(16, 16), blocks=(1, 1), group=4),
    "custom": ModelConfig("custom", (3, 8, 8), classes=4, group=2, factory="brought:Dense"),
    "custom-deep": ModelConfig(
        "custom",
        (3, 8, 8),
        classes=4,
        group=2,
        factory="brought:Joined",
        stages=(("blocks.join1", "blocks.refine1"), ("blocks.join2", "blocks.refine2")),
    ),
    "resnet-deep": ModelConfig("resnet", (3, 8, 8), classes=4, widths=(8, 16), blocks=(2, 2), group=2),
    "mobilenet": ModelConfig(
        "mobilenet", (3, 8, 8), classes=4, widths=(8, 16), blocks=(2, 1), group=2, kernel=7, expand=2.0
    ),
}

CASES = [
    pytest.param((method, model), id=f"{method}-{model}", marks=[pytest.mark.slow] if model in row.slow else [])
    for method, row in METHODS.items()
    for model in row.models
]


def make(method: str, model: ModelConfig, widths: Sequence[float] = WIDTHS) -> Compressor:
    row = METHODS[method]
    own = next((options for name, options in row.own.items() if MODELS[name] == model), {})
    return make_compressor(method, model, widths, TRAINING, {**row.options, **own})


@dataclass(frozen=True)
class Case:
    """One method on one model, with a compressor that has been prepared."""

    method: str
    model: ModelConfig
    state: State
    proxy: Proxy
    compressor: Compressor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "compressor", self.fresh())

    @property
    def indexed(self) -> bool:
        return METHODS[self.method].indexed

    @property
    def offers(self) -> list[Offer]:
        """Up to five of the sizes, the smallest and the largest among them."""
        offers = self.compressor.specs()
        return [offers[k * (len(offers) - 1) // (min(5, len(offers)) - 1)] for k in range(min(5, len(offers)))]

    def fresh(self, state: State | None = None, seed: int = 5) -> Compressor:
        compressor = make(self.method, self.model)
        compressor.prepare(self.state if state is None else state, self.proxy, Moment(seed=seed))
        return compressor

    def trained(self, spec: SubModelSpec, seed: int, scale: float = 0.1) -> State:
        """Return what a device might send back: the sub-model it got, and random changes of this size."""
        draws, weights = torch.Generator().manual_seed(seed), self.weights(spec)
        return {
            name: tensor + scale * torch.randn(tensor.shape, generator=draws) if name in weights else tensor
            for name, tensor in self.compressor.compress(spec).items()
        }

    def weights(self, spec: SubModelSpec) -> set[str]:
        """Return the names of what a device trains or holds of the global model; a mask, say, is neither."""
        module, held = build(self.model, spec), set[str]()
        if isinstance(self.compressor, IndexCompressor):
            held = set(self.compressor.slots(spec))
        return {name for name, parameter in module.named_parameters() if parameter.requires_grad or name in held}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, separable) -> Case:
    method, name = request.param
    model = MODELS[name]
    return Case(method, model, perturbed(method, model, 0), Proxy(separable(model, 32, 1), separable(model, 16, 2)))


def perturbed(method: str, model: ModelConfig, seed: int) -> State:
    """Return a global state in which no tensor is constant, as biases and scales are at first."""
    draws = torch.Generator().manual_seed(seed)
    initial = make(method, model).initial(seed)
    return {name: tensor + 0.05 * torch.randn(tensor.shape, generator=draws) for name, tensor in initial.items()}


def clone(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_every_registered_method_is_under_contract() -> None:
    assert set(METHODS) == set(REGISTERED)


def test_a_method_is_indexed_if_its_row_says_so(case: Case) -> None:
    assert isinstance(case.compressor, IndexCompressor) == case.indexed


# Sizes and their cost


def test_specs_ascend_by_cost_and_end_with_the_whole_model(case: Case) -> None:
    costs = [(offer.cost.training_macs, offer.cost.memory) for offer in case.offers]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]
    assert {offer.spec.method for offer in case.offers} == {case.method}
    if METHODS[case.method].widths:
        assert len(set(costs)) == len(WIDTHS)
        assert [offer.spec.width for offer in case.offers] == sorted(WIDTHS)
        whole = case.compressor.compress(case.compressor.whole)
        assert {n: t.shape for n, t in whole.items()} == {n: t.shape for n, t in case.state.items()}


def test_some_sizes_are_exported_and_no_two_have_one_label(case: Case) -> None:
    offers = case.compressor.specs()
    exported = [offer for offer in offers if offer.exported]
    assert 2 <= len(exported) <= 12
    assert len({offer.spec.label for offer in offers}) == len({offer.spec for offer in offers}) == len(offers)


def test_each_device_is_given_a_size_that_fits_it(case: Case) -> None:
    offers = case.compressor.specs()
    fits = {"a": offers[:1], "b": offers, "c": offers[: len(offers) // 2 + 1]}
    compressor = case.fresh()
    for number in range(1, 6):
        given = compressor.assign(fits, Moment(number, 5, number))
        assert given.keys() == fits.keys()
        assert all(given[device] in fits[device] for device in fits)


def test_costs_are_those_of_the_module_that_is_built(case: Case) -> None:
    for offer in case.offers:
        module = build(case.model, offer.spec)
        macs: list[int] = []
        frozen: list[int] = []
        made: list[int] = []

        def count(
            layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, macs=macs, frozen=frozen, made=made
        ) -> None:
            if isinstance(layer, Mix):
                # Queries with keys, then weights with values: each channel of a query meets every token twice.
                macs.append(2 * inputs[0][0].numel() * inputs[1].shape[-2])
                return
            # Each number that a convolution or a product gives takes one MAC for each weight of its row.
            weight = layer.taps() if isinstance(layer, DepthWise) else layer.weight
            macs.append(output[0].numel() * weight[0].numel())
            if not layer.weight.requires_grad:
                frozen.append(macs[-1])
            if isinstance(layer, DepthWise):
                # Once a batch, matrices make the kernel of each channel from a larger one.
                matrices = sum(matrix.numel() for name, matrix in layer.named_parameters() if name != "weight")
                made.append(layer.weight.shape[0] * matrices)

        for layer in module.modules():
            if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear, Mix, DepthWise)):
                layer.register_forward_hook(count)
        module.eval()(torch.zeros(2, *case.model.input_shape))
        kernels = sum(made)
        state = case.compressor.compress(offer.spec)
        assert offer.cost.parameters == sum(parameter.numel() for parameter in module.parameters())
        assert offer.cost.bytes_down == tensor_bytes(state)
        assert offer.cost.bytes_up == tensor_bytes(state)
        assert offer.cost.down == offer.cost.up == len(encode(state))
        assert offer.cost.forward_macs == sum(macs) + kernels // TRAINING.batch_size
        if "draws" in vars(module):
            # Some of the sizes that its objective draws are smaller than the one it deploys.
            assert offer.cost.training_macs > sum(macs)
            continue
        if isinstance(module, Objective):
            assert offer.cost.training_macs >= 2 * sum(macs)
            continue
        # Backwards: one product for weights that are trained, and one for the input unless it is the example itself.
        assert offer.cost.training_macs == 3 * sum(macs) - macs[0] - sum(frozen) + 3 * kernels // TRAINING.batch_size


# Compress


def test_a_compressed_state_is_that_of_the_module_and_trains(case: Case, separable) -> None:
    examples = separable(case.model, 64, 3)
    for offer in case.offers:
        state = case.compressor.compress(offer.spec)
        module = build(case.model, offer.spec)
        check_state(state, dict(module.named_parameters()))
        module.load_state_dict(state)
        before = evaluate(module, examples).loss
        fit(module, examples, TRAINING, torch.Generator().manual_seed(0))
        assert evaluate(module, examples).loss < before


@pytest.mark.parametrize("case", [case for case in CASES if METHODS[case.values[0][0]].indexed], indirect=True)
def test_a_selection_takes_each_covered_coordinate_once(case: Case) -> None:
    counted, first = {}, 0
    for name, tensor in case.state.items():
        counted[name] = torch.arange(first, first + tensor.numel(), dtype=torch.float32).reshape(tensor.shape)
        first += tensor.numel()
    compressor = case.fresh(counted)
    for offer in case.offers:
        small = compressor.compress(offer.spec)
        masks = covered(compressor.dilate(small, offer.spec), counted)
        taken = torch.cat([small[name].flatten() for name in sorted(case.weights(offer.spec))])
        there = torch.cat([counted[name][masks[name]] for name in counted])
        assert taken.sort().values.tolist() == there.sort().values.tolist()


def test_a_trained_copy_shares_nothing_with_what_the_server_holds(case: Case) -> None:
    compressor, before = case.fresh(), clone(case.state)
    for offer in case.offers:
        sent = compressor.compress(offer.spec)
        kept = clone(sent)
        held = {tensor.untyped_storage().data_ptr() for tensor in case.state.values()}
        assert not held & {tensor.untyped_storage().data_ptr() for tensor in sent.values()}
        for tensor in clone(sent).values():
            tensor.fill_(7.0)
        assert same(compressor.compress(offer.spec), kept)
    assert same(case.state, before)


def test_training_a_module_that_loaded_a_state_leaves_the_state_alone(case: Case, separable) -> None:
    spec = case.offers[0].spec
    sent = case.compressor.compress(spec)
    kept = clone(sent)
    module = build(case.model, spec)
    module.load_state_dict(sent)
    fit(module, separable(case.model, 32, 3), TRAINING, torch.Generator().manual_seed(0))
    assert same(sent, kept)
    assert same(case.compressor.compress(spec), kept)


# Dilate and coverage


def test_what_comes_back_untrained_is_the_global_state(case: Case, densify) -> None:
    for offer in case.offers:
        contribution = case.compressor.dilate(case.compressor.compress(offer.spec), offer.spec)
        dense = densify(contribution, case.state)
        masks = covered(contribution, case.state)
        for name, tensor in case.state.items():
            assert np.array_equal(dense[name][masks[name]], tensor.double().numpy()[masks[name]])


def test_coverage_is_the_sub_models_coordinates_or_everything(case: Case, densify) -> None:
    for offer in case.offers:
        small = case.trained(offer.spec, 1)
        contribution = case.compressor.dilate(small, offer.spec)
        masks, dense = covered(contribution, case.state), densify(contribution, case.state)
        for name, mask in masks.items():
            assert np.array_equal(mask.numpy(), ~np.isnan(dense[name]))
            if not case.indexed:
                assert mask.all()
        if case.indexed:
            weights = sum(small[name].numel() for name in case.weights(offer.spec))
            assert sum(int(mask.sum()) for mask in masks.values()) == weights


def test_a_change_on_a_device_changes_the_global_model(case: Case, densify) -> None:
    for offer in case.offers:
        contribution = case.compressor.dilate(case.trained(offer.spec, 1), offer.spec)
        dense = densify(contribution, case.state)
        for name in contribution:
            assert np.nanmax(np.abs(dense[name] - case.state[name].double().numpy())) > 0


# Aggregation

device = st.tuples(
    st.integers(0, 4), st.floats(2**-20, 500), st.sampled_from([1e-6, 0.1, 100.0]), st.integers(0, 2**32)
)


@given(cohort=st.lists(device, min_size=1, max_size=5))
@settings(deadline=None, max_examples=8)
def test_the_aggregate_is_the_mean_over_those_who_cover_each_coordinate(case: Case, densify, cohort) -> None:
    accumulator, dense, weights = Accumulator(case.state), [], []
    for size, weight, scale, seed in cohort:
        spec = case.offers[size % len(case.offers)].spec
        contribution = case.compressor.dilate(case.trained(spec, seed, scale), spec)
        accumulator.fold(contribution, weight)
        dense.append(densify(contribution, case.state))
        weights.append(round(weight * 2**20) / 2**20)
    deltas, masks = accumulator.mean()
    for name, tensor in case.state.items():
        reference = tensor.double().numpy()
        for index in np.ndindex(*tensor.shape):
            total, size, over = 0.0, 0.0, 0.0
            for values, weight in zip(dense, weights, strict=True):
                if not math.isnan(values[name][index]):
                    term = weight * (values[name][index] - reference[index])
                    total, size, over = total + term, size + abs(term), over + weight
            assert bool(masks[name][index]) == (over > 0)
            mean = total / over if over else 0.0
            # Each term loses at most 2^-61 in fixed point, and each float64 operation half a unit in the last place.
            loss = (len(cohort) * 2**-61 + (len(cohort) + 2) * 2**-52 * size) / over if over else 0.0
            assert abs(deltas[name][index].item() - mean) <= loss


def contributions(case: Case, sizes: Sequence[int]) -> list[Contribution]:
    specs = [case.offers[size % len(case.offers)].spec for size in sizes]
    return [case.compressor.dilate(case.trained(spec, k), spec) for k, spec in enumerate(specs)]


def test_the_aggregate_has_the_same_bits_for_every_order_of_arrival(case: Case) -> None:
    weighted = list(zip(contributions(case, (0, 2, 1, 0)), (3.0, 0.1, 17.7, 1e5), strict=True))
    results = []
    for order in itertools.permutations(weighted):
        accumulator = Accumulator(case.state)
        for contribution, weight in order:
            accumulator.fold(contribution, weight)
        results.append(accumulator.mean())
    for deltas, masks in results[1:]:
        assert same(deltas, results[0][0])
        assert same(masks, results[0][1])


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
def test_a_coordinate_that_nobody_covers_keeps_its_value_to_the_bit(case: Case, name: str) -> None:
    optimiser = ServerOptimiser(ServerOptimiserConfig(name=name, learning_rate=0.5))
    # The first step moves everything, so that the moments of what is then left alone are not zero.
    state = case.state
    for sizes in ((2, 0), (0,), (0, 0)):
        accumulator = Accumulator(case.state)
        for contribution in contributions(case, sizes):
            accumulator.fold(contribution, 2.0)
        deltas, masks = accumulator.mean()
        after = optimiser.step(state, deltas, masks)
        for tensor, old, mask in zip(after.values(), state.values(), masks.values(), strict=True):
            assert torch.equal(tensor.view(torch.int32)[~mask], old.view(torch.int32)[~mask])
            assert not mask.any() or (tensor[mask] != old[mask]).any()
        state = after
    if case.indexed:
        assert not all(bool(mask.all()) for mask in masks.values())


def test_reconcile_gives_each_update_a_weight_and_all_of_them_the_examples(case: Case) -> None:
    compressor = case.fresh()
    specs = [case.offers[size % len(case.offers)].spec for size in (0, 1, 2, 1)]
    returns = [
        Return(spec, case.trained(spec, k, 0.01), examples)
        for k, (spec, examples) in enumerate(zip(specs, (10, 20, 5, 40), strict=True))
    ]
    weights = compressor.reconcile(returns, 1)
    assert len(weights) == 4
    assert all(weight > 0 and math.isfinite(weight) for weight in weights)
    if METHODS[case.method].weighs:
        assert weights == [10.0, 20.0, 5.0, 40.0]
    if not compressor.reconciles:
        assert [compressor.reconcile([item], 9)[0] for item in returns] == weights
    assert compressor.reconcile([], 1) == []


# Repeatable


def test_prepare_depends_on_nothing_but_state_proxy_and_seed(case: Case) -> None:
    before = clone(case.state)
    torch.manual_seed(1)
    one = case.fresh()
    torch.manual_seed(2)
    other = case.fresh()
    for offer in case.offers:
        assert same(one.compress(offer.spec), other.compress(offer.spec))
        assert same(one.compress(offer.spec), one.compress(offer.spec))
        back = case.trained(offer.spec, 3)
        left, right = one.dilate(back, offer.spec), other.dilate(back, offer.spec)
        assert same({n: p.values for n, p in left.items()}, {n: p.values for n, p in right.items()})
    assert same(case.state, before)
    assert not any(tensor.requires_grad for tensor in case.state.values())


def test_a_resumed_method_goes_on_with_the_same_bits(case: Case) -> None:
    def round_of(compressor: Compressor) -> tuple[list[float], State]:
        returns = [Return(o.spec, case.trained(o.spec, k), 10 + k) for k, o in enumerate(case.offers)]
        weights = compressor.reconcile(returns, 3)
        accumulator = Accumulator(case.state)
        for item, weight in zip(returns, weights, strict=True):
            accumulator.fold(compressor.dilate(item.state, item.spec), weight)
        compressor.prepare(case.state, case.proxy, Moment(seed=4))
        return weights, accumulator.mean()[0]

    first = case.fresh()
    memory = {name: tensor.clone() for name, tensor in first.memory().items()}
    resumed = make(case.method, case.model)
    resumed.resume(case.state, case.proxy, Moment(), memory)
    for offer in case.offers:
        assert same(resumed.compress(offer.spec), first.compress(offer.spec))
    (weights, mean), (expected_weights, expected_mean) = round_of(resumed), round_of(first)
    assert weights == expected_weights
    assert same(mean, expected_mean)
    assert same(resumed.memory(), first.memory())


def test_prepare_replaces_the_state_of_the_round_before(case: Case) -> None:
    compressor, later = case.fresh(), perturbed(case.method, case.model, 8)
    before = [clone(compressor.compress(offer.spec)) for offer in case.offers]
    compressor.prepare(later, case.proxy, Moment(seed=6))
    other = case.fresh(later, 6)
    for offer, old in zip(case.offers, before, strict=True):
        assert not same(compressor.compress(offer.spec), old)
        # What a method has learned in earlier rounds may show.
        assert compressor.memory() or same(compressor.compress(offer.spec), other.compress(offer.spec))


# The server's own part


def test_the_initial_state_depends_on_the_seed_alone_and_disturbs_no_other_draw(case: Case) -> None:
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    one = make(case.method, case.model).initial(3)
    assert torch.equal(torch.randn(3), expected)
    assert same(one, make(case.method, case.model).initial(3))
    assert not same(one, make(case.method, case.model).initial(4))


def test_the_whole_model_is_that_of_its_module_and_gives_logits(case: Case) -> None:
    module = build(case.model, case.compressor.whole)
    module.load_state_dict(case.compressor.compress(case.compressor.whole))
    logits = module.eval()(torch.zeros(3, *case.model.input_shape))
    assert logits.shape == (3, case.model.classes)


def test_the_server_learns_from_its_proxy_set(case: Case) -> None:
    def loss(state: State) -> float:
        compressor = case.fresh(state)
        module = build(case.model, compressor.whole)
        module.load_state_dict(compressor.compress(compressor.whole))
        return evaluate(module, case.proxy.training).loss

    before, training = clone(case.state), TrainConfig(epochs=5, batch_size=8, learning_rate=0.05)
    torch.manual_seed(1)
    after = case.fresh().learn(case.state, case.proxy, training, Moment(1, 2, 9))
    torch.manual_seed(2)
    assert same(after, case.fresh().learn(case.state, case.proxy, training, Moment(1, 2, 9)))
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in case.state.items()}
    assert same(case.state, before)
    assert loss(after) < loss(before)


def test_a_proxy_set_without_labels_is_refused_or_learned_from(case: Case) -> None:
    bare, training = case.proxy.without_labels(), TrainConfig(epochs=1, batch_size=8)
    if REGISTERED[case.method].unlabelled:
        compressor = make(case.method, case.model)
        compressor.prepare(case.state, bare, Moment(seed=5))
        returns = [Return(o.spec, case.trained(o.spec, k), 10 + k) for k, o in enumerate(case.offers)]
        compressor.reconcile(returns, 1)
        learned = compressor.learn(case.state, bare, training, Moment(1, 2, 9))
        assert not same(learned, case.state)
        return
    with pytest.raises(SpecError, match="label"):
        case.fresh().learn(case.state, bare, training, Moment())
    if REGISTERED[case.method].proxy:
        with pytest.raises(SpecError, match="label"):
            make(case.method, case.model).prepare(case.state, bare, Moment())


# Specs


def test_a_spec_survives_json(case: Case) -> None:
    for offer in case.offers:
        assert SubModelSpec.from_json(offer.spec.to_json()) == offer.spec


@pytest.mark.parametrize("verb", ["compress", "dilate"])
def test_a_spec_that_is_not_on_offer_is_named(case: Case, verb: str) -> None:
    state = case.compressor.compress(case.offers[0].spec)
    for spec in (SubModelSpec(case.method, 0.37), SubModelSpec("nonsense", 0.5)):
        with pytest.raises(SpecError, match=spec.label) as caught:
            case.compressor.compress(spec) if verb == "compress" else case.compressor.dilate(state, spec)
        for offer in case.offers:
            assert offer.spec.label in str(caught.value)


@pytest.mark.parametrize("width", [0.0, -0.5, 1.25, math.nan, math.inf, 0.01])
def test_a_width_that_cannot_be_is_named(case: Case, width: float) -> None:
    with pytest.raises(SpecError, match=str(width)):
        make(case.method, case.model, (1.0, width))


def test_a_method_needs_a_width(case: Case) -> None:
    with pytest.raises(SpecError, match="at least one"):
        make(case.method, case.model, ())


def test_a_method_that_nobody_knows_is_named() -> None:
    with pytest.raises(SpecError, match=r"'nonsense'.*width, conv"):
        make_compressor("nonsense", MODELS["cnn-2d"], WIDTHS, TRAINING)


def test_wrong_options_are_named() -> None:
    with pytest.raises(SpecError, match=r"method fiarse has no options, not depth"):
        make_compressor("fiarse", MODELS["cnn-2d"], WIDTHS, TRAINING, {"depth": 2})
    with pytest.raises(SpecError, match=r"method conv: epochs: .*not -1"):
        make_compressor("conv", MODELS["cnn-2d"], WIDTHS, TRAINING, {"epochs": -1})
