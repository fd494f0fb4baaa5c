"""The contract of `Method`, run against every method; a new method is one more row of `contract.ROWS`."""

from collections.abc import Iterator

import pytest
import torch
from contract import CASES, MODELS, MOMENT, ROWS, TRAINING, WIDTHS, Case, case_of, clone, make, mean, perturbed, same
from torch import Tensor, nn

from diastole.models.coordinates import Contribution, covered
from diastole.models.errors import SpecError
from diastole.models.method import Method, Weight
from diastole.models.methods.bases.index import Indexed
from diastole.models.methods.registry import METHODS, build, make_method, parse_options, read_spec
from diastole.models.moment import Moment
from diastole.models.networks.mobilenet import DepthWise
from diastole.models.networks.transformer import FusedMix, Mix
from diastole.models.scoring import evaluate
from diastole.models.spec import SubModelSpec
from diastole.models.start import plain_shapes
from diastole.models.state import State, check_state, tensor_bytes
from diastole.models.task import Update
from diastole.models.training import Objective, TrainConfig, fit
from diastole.proto.payload import encode


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, separable) -> Case:
    return case_of(*request.param, separable)


def values(contribution: Contribution) -> State:
    return {name: patch.values for name, patch in contribution.items()}


def test_every_registered_method_is_under_contract() -> None:
    assert set(ROWS) == {name for name, row in METHODS.items() if not row.baseline}


def test_a_method_is_indexed_if_its_row_says_so(case: Case) -> None:
    assert isinstance(case.method, Indexed) == case.row.indexed


# Sizes and their cost


def test_sizes_ascend_by_cost_and_end_with_the_whole_model(case: Case) -> None:
    costs = [(size.cost.training_macs, size.cost.memory) for size in case.method.offers()]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]
    if case.row.widths:
        assert len(set(costs)) == len(WIDTHS)
        assert [size.spec.options.width for size in case.sizes] == sorted(WIDTHS)
        whole = case.method.module(case.method.whole)
        whole.load_state_dict(case.method.compress(case.method.whole))
        assert {n: t.shape for n, t in whole.state_dict().items()} == {n: t.shape for n, t in case.state.items()}


def test_some_sizes_are_exported_and_each_has_a_spec_of_its_own_that_survives_json(case: Case) -> None:
    sizes = case.method.offers()
    assert 2 <= len([size for size in sizes if size.exported]) <= 12
    specs = {size.spec for size in sizes}
    assert len({spec.label for spec in specs}) == len(specs) == len(sizes)
    assert {spec.method for spec in (*specs, case.method.whole)} == {case.name}
    assert all(read_spec(spec.to_json()) == spec for spec in (*specs, case.method.whole))
    assert [size.spec for size in case.new().offers()] == [size.spec for size in sizes]


def test_each_device_is_given_a_size_that_fits_it(case: Case) -> None:
    sizes, method = case.method.offers(), case.again()
    fits = {"a": sizes[:1], "b": sizes, "c": sizes[: len(sizes) // 2 + 1]}
    for number in range(1, 6):
        given = method.assign(fits, Moment(number, 5, number))
        assert given.keys() == fits.keys()
        assert all(given[device] in fits[device] for device in fits)


def test_costs_are_those_of_the_module_that_is_built(case: Case) -> None:
    for size in case.sizes:
        module = case.method.module(size.spec)
        macs: list[int] = []
        frozen: list[int] = []
        made: list[int] = []
        again: list[int] = []

        def count(
            layer: nn.Module,
            inputs: tuple[Tensor, ...],
            output: Tensor,
            macs=macs,
            frozen=frozen,
            made=made,
            again=again,
        ) -> None:
            if isinstance(layer, Mix):
                # Queries with keys, then weights with values: each channel of a query meets every token twice.
                macs.append(2 * inputs[0][0].numel() * inputs[1].shape[-2])
                if isinstance(layer, FusedMix):
                    # It keeps no products of queries and keys, and makes them again backwards.
                    again.append(macs[-1] // 2)
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
        state = case.method.compress(size.spec)
        assert size.cost.parameters == sum(parameter.numel() for parameter in module.parameters())
        assert size.cost.bytes_down == tensor_bytes(state)
        trained = {name: state[name] for name, weight in module.named_parameters() if weight.requires_grad}
        assert size.cost.bytes_up == tensor_bytes(trained)
        still = {name: tensor for name, tensor in state.items() if name not in trained}
        assert size.cost.untrained == (len(encode(still)) if still else 0)
        assert (size.cost.down, size.cost.up) == (len(encode(trained)) + size.cost.untrained, len(encode(trained)))
        assert size.cost.forward_macs == sum(macs) + kernels // TRAINING.batch_size
        if "draws" in vars(module):
            # Some of the sizes that its objective draws are smaller than the one it deploys.
            assert size.cost.training_macs > sum(macs)
            continue
        if isinstance(module, Objective):
            assert size.cost.training_macs >= 2 * sum(macs)
            continue
        # Backwards: one product for weights that are trained, and one for the input unless it is the example itself.
        backwards = 2 * sum(macs) + sum(again) - macs[0] - sum(frozen)
        assert size.cost.training_macs == sum(macs) + backwards + 3 * kernels // TRAINING.batch_size


# Compress


def test_what_is_sent_is_the_modules_and_trains_and_stays_as_it_is(case: Case, separable) -> None:
    examples = separable(case.model, 32, 3)
    for size in case.sizes[:: max(1, len(case.sizes) - 1)]:
        sent = case.method.compress(size.spec)
        kept, module = clone(sent), case.method.module(size.spec)
        check_state(sent, dict(module.named_parameters()))
        assert [type(layer) for layer in module.modules()] == [
            type(layer) for layer in build(case.model, size.spec).modules()
        ]
        module.load_state_dict(sent)
        before = evaluate(module, examples).loss
        fit(module, examples, TRAINING, torch.Generator().manual_seed(0))
        assert evaluate(module, examples).loss < before
        assert same(sent, kept)
        assert same(case.method.compress(size.spec), kept)


def test_every_size_has_the_names_and_shapes_of_its_module_and_the_whole_gives_logits(case: Case) -> None:
    for spec in (*(size.spec for size in case.sizes), case.method.whole):
        module = case.method.module(spec)
        check_state(case.method.compress(spec), dict(module.named_parameters()))
    module.load_state_dict(case.method.compress(case.method.whole))
    assert module.eval()(torch.zeros(3, *case.model.input_shape)).shape == (3, case.model.classes)


def test_a_selection_takes_each_covered_coordinate_once(case: Case) -> None:
    if not case.row.indexed:
        pytest.skip("not a selection")
    counted, first = {}, 0
    for name, tensor in case.state.items():
        counted[name] = torch.arange(first, first + tensor.numel(), dtype=torch.float32).reshape(tensor.shape)
        first += tensor.numel()
    method = case.again()
    method.resume(counted, case.proxy, MOMENT, clone(method.memory()))
    for size in case.sizes:
        small = method.compress(size.spec)
        masks = covered(method.dilate(small, size.spec), counted)
        taken = torch.cat([small[name].flatten() for name in sorted(case.weights(size.spec))])
        there = torch.cat([counted[name][masks[name]] for name in counted])
        assert torch.equal(taken.sort().values, there.sort().values)


def test_a_trained_copy_shares_nothing_with_what_the_server_holds(case: Case) -> None:
    held = {tensor.untyped_storage().data_ptr() for tensor in case.state.values()}
    for size in case.sizes:
        sent = case.method.compress(size.spec)
        assert not held & {tensor.untyped_storage().data_ptr() for tensor in sent.values()}


# Dilate and coverage


def test_what_comes_back_untrained_is_the_global_state(case: Case) -> None:
    for size in case.sizes:
        for name, patch in case.method.dilate(case.method.compress(size.spec), size.spec).items():
            assert torch.equal(patch.values, patch.region.view(case.state[name]))


def test_a_change_arrives_where_the_sub_model_lies_or_everywhere(case: Case) -> None:
    for size in case.sizes:
        small = case.trained(size.spec, 1)
        contribution = case.method.dilate(small, size.spec)
        masks = covered(contribution, case.state)
        for name, patch in contribution.items():
            assert (patch.values != patch.region.view(case.state[name])).any()
            assert patch.values.numel() == masks[name].sum()
        if case.row.indexed:
            weights = sum(small[name].numel() for name in case.weights(size.spec))
            assert sum(int(mask.sum()) for mask in masks.values()) == weights
        else:
            assert all(mask.all() for mask in masks.values())


# Weights


def test_each_update_comes_back_once_with_a_weight_that_can_be_folded(case: Case) -> None:
    updates, method = case.updates(0.01), case.again()
    weighed = list(method.weigh(updates, Moment(seed=1)))
    assert [item.device for item, _ in weighed] == [item.device for item in updates]
    assert all(found is item for (found, _), item in zip(weighed, updates, strict=True))
    weights = [weight for _, weight in weighed]
    assert all(2**-20 <= weight < 2**30 for weight in weights)
    if case.row.weighs:
        assert weights == [10.0, 20.0, 5.0, 40.0]
    assert list(case.again().weigh([], Moment(seed=1))) == []


def test_updates_are_weighed_as_they_come_in_any_order_unless_all_are_needed(case: Case) -> None:
    updates, seen, method = case.updates(0.01), list[Update](), case.again()

    def arriving() -> Iterator[Update]:
        for item in reversed(updates):
            seen.append(item)
            yield item

    weighed = list(case.again().weigh(updates, MOMENT))
    expected = mean(case.method, case.state, weighed)
    if method.needs_all(MOMENT):
        # What it fits to all of them goes into how each is dilated.
        method = case.again()
        weighed = list(method.weigh(updates, MOMENT))
        backwards, forwards = (mean(method, case.state, each) for each in (weighed[::-1], weighed))
        assert same(backwards, forwards)
        return
    backwards = []
    for number, pair in enumerate(method.weigh(arriving(), MOMENT), 1):
        assert len(seen) == number
        backwards.append(pair)
    assert [item for item, _ in backwards] == seen
    assert {item.device: weight for item, weight in backwards} == {item.device: weight for item, weight in weighed}
    assert same(mean(method, case.state, backwards), expected)


# Repeatable


def test_prepare_returns_the_state_and_depends_on_nothing_but_state_proxy_and_seed(case: Case) -> None:
    before = clone(case.before)
    torch.manual_seed(1)
    other = make(case.name, case.network)
    prepared = other.prepare(case.before, case.proxy, MOMENT)
    assert same(prepared, case.state)
    assert same(case.before, before)
    assert not any(tensor.requires_grad for tensor in prepared.values())
    for size in case.sizes:
        sent = case.method.compress(size.spec)
        assert same(sent, other.compress(size.spec))
        assert same(sent, case.method.compress(size.spec))
        back = case.trained(size.spec, 3)
        assert same(values(case.method.dilate(back, size.spec)), values(other.dilate(back, size.spec)))


def test_a_resumed_method_goes_on_with_the_same_bits(case: Case) -> None:
    def round_of(method: Method) -> tuple[list[Weight], State, State]:
        weighed = list(method.weigh(case.updates(), Moment(seed=3)))
        changes = mean(method, case.state, weighed)
        after = method.prepare(case.state, case.proxy, Moment(seed=4))
        return [weight for _, weight in weighed], changes, after

    first, resumed = case.again(), case.new()
    resumed.resume(case.state, case.proxy, MOMENT, clone(first.memory()))
    for size in case.sizes:
        assert same(resumed.compress(size.spec), first.compress(size.spec))
    (weights, changes, after), (expected_weights, expected, expected_after) = round_of(resumed), round_of(first)
    assert weights == expected_weights
    assert same(changes, expected)
    assert same(after, expected_after)
    assert same(resumed.memory(), first.memory())


def test_prepare_replaces_the_state_of_the_round_before(case: Case) -> None:
    method, other, later = case.again(), case.new(), perturbed(case.apart, 8)
    method.prepare(later, case.proxy, Moment(seed=6))
    other.prepare(later, case.proxy, Moment(seed=6))
    for size in case.sizes:
        assert not same(method.compress(size.spec), case.method.compress(size.spec))
        # What a method has learned in earlier rounds may show.
        assert method.memory() or same(method.compress(size.spec), other.compress(size.spec))


def test_the_initial_state_depends_on_the_seed_alone_and_disturbs_no_other_draw(case: Case) -> None:
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    one = case.method.initial(3)
    assert torch.equal(torch.randn(3), expected)
    assert same(one, case.new().initial(3))
    assert not same(one, case.method.initial(4))


def test_a_start_puts_the_tensors_of_a_plain_network_where_they_belong(case: Case) -> None:
    draws, fresh, origins = torch.Generator().manual_seed(5), case.method.initial(3), case.method.origins()
    given = {name: torch.randn(shape, generator=draws) for name, shape in plain_shapes(case.model).items()}
    kept = clone(fresh)
    started = case.method.start(fresh, given)
    assert same(fresh, kept)
    assert list(started) == list(fresh)
    assert {slot.source for slot in origins.values()} == set(given)
    for name, tensor in started.items():
        if name not in origins:
            assert torch.equal(tensor, fresh[name])
            continue
        expected = origins[name].region.take(given[origins[name].source])
        # In a triangular network no channel reads a later width's; nothing else may differ.
        differs = tensor != expected
        assert torch.equal(tensor[differs], torch.zeros(int(differs.sum())))
        assert differs.float().mean() < (0.5 if case.name == "diastole" else 1e-9)
    check_state(started, fresh)
    # What a run of the method has left is taken as it is, tensors of its own among it.
    assert same(case.method.start(case.method.initial(4), started), started)


# The server's own training


def test_the_server_learns_from_its_proxy_set(case: Case) -> None:
    def loss(state: State) -> float:
        method = case.again()
        method.prepare(state, case.proxy, MOMENT)
        module = method.module(method.whole)
        module.load_state_dict(method.compress(method.whole))
        return evaluate(module, case.proxy.training).loss

    before, training = clone(case.state), TrainConfig(epochs=2, batch_size=8, learning_rate=0.05)
    torch.manual_seed(1)
    after = case.again().learn(case.state, case.proxy, training, Moment(1, 2, 9))
    torch.manual_seed(2)
    assert same(after, case.again().learn(case.state, case.proxy, training, Moment(1, 2, 9)))
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in case.state.items()}
    assert same(case.state, before)
    assert loss(after) < loss(case.state)


def test_a_proxy_set_without_labels_is_refused_or_learned_from(case: Case) -> None:
    bare, training, row = case.proxy.without_labels(), TrainConfig(epochs=1, batch_size=8), METHODS[case.name]
    method = case.new()
    if row.unlabelled(parse_options(case.name, case.row.options)):
        state = method.prepare(case.before, bare, MOMENT)
        assert len(list(method.weigh(case.updates(), Moment(seed=1)))) == 4
        assert not same(method.learn(state, bare, training, Moment(1, 2, 9)), state)
        return
    with pytest.raises(SpecError, match="label"):
        case.again().learn(case.state, bare, training, Moment())
    if row.proxy:
        with pytest.raises(SpecError, match="label"):
            method.prepare(case.before, bare, Moment())


# What cannot be


def test_a_spec_that_is_not_on_offer_is_named(case: Case) -> None:
    some = case.sizes[0].spec
    state = case.method.compress(some)
    for spec in (SubModelSpec(case.name, "odd", some.options), SubModelSpec("nonsense", "odd", some.options)):
        for refused in (lambda spec: case.method.compress(spec), lambda spec: case.method.dilate(state, spec)):
            with pytest.raises(SpecError, match="'odd'") as caught:
                refused(spec)
            assert all(size.spec.label in str(caught.value) for size in case.sizes)


@pytest.mark.parametrize("name", ROWS)
def test_widths_that_cannot_be_are_named(name: str) -> None:
    network = ROWS[name].models[0]
    for width in (0.0, -0.5, 1.25, float("nan"), float("inf"), 0.01):
        with pytest.raises(SpecError, match=str(width)):
            make(name, network, (1.0, width))
    with pytest.raises(SpecError, match="at least one"):
        make(name, network, ())


def test_a_method_that_nobody_knows_is_named() -> None:
    with pytest.raises(SpecError, match=r"'nonsense'.*width, conv"):
        make_method("nonsense", MODELS["cnn-2d"], WIDTHS, TRAINING)


def test_wrong_options_are_named() -> None:
    with pytest.raises(SpecError, match=r"method fiarse has no options, not depth"):
        make_method("fiarse", MODELS["cnn-2d"], WIDTHS, TRAINING, {"depth": 2})
    with pytest.raises(SpecError, match=r"method conv: epochs: .*not -1"):
        make_method("conv", MODELS["cnn-2d"], WIDTHS, TRAINING, {"epochs": -1})
