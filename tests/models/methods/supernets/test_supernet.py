"""Architectures inside a supernet, against networks cut by hand and rules written out."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.models.accumulator import Accumulator
from diastole.models.coordinates import covered
from diastole.models.cost import Cost
from diastole.models.errors import SpecError
from diastole.models.methods.bases.budgets import within
from diastole.models.methods.registry import make_method
from diastole.models.methods.supernets.architectures import GROUPS, Architecture, Space, build, grouped, spec_of
from diastole.models.methods.supernets.superfednas import beta
from diastole.models.methods.supernets.supernet import Supernet, importance_order, regions
from diastole.models.methods.widths.width import width_cost
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import layout, network
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Report, Task, Update
from diastole.models.training import TrainConfig

TRAINING = TrainConfig(batch_size=8)
WIDTHS = (1.0, 0.5, 0.25)
MODELS = {
    "mobilenet": ModelConfig("mobilenet", (3, 8, 8), 4, (8, 16), (2, 1), group=4, kernel=7, expand=3.0),
    "resnet": ModelConfig("resnet", (3, 8, 8), 4, (8, 16), (2, 1), group=2),
    "cnn": ModelConfig("cnn", (1, 8, 8), 4, (16, 16), group=2),
}
# Two blocks a stage; no pool of it is searched, because measuring costs takes nearly all of the time here.
DEEP = replace(MODELS["mobilenet"], blocks=(2, 2))
# Stages of several widths share one stream; six heads.
VIT = {"vit": ModelConfig("vit", (1, 8, 8), 4, (24, 24), (1, 1), group=4)}


def make(model: str, name: str = "ofa", **options: object) -> Supernet:
    method = make_method(name, MODELS[model], WIDTHS, TRAINING, {"pool": 12, **options})
    assert isinstance(method, Supernet)
    return method


@cache
def unchanged(model: str) -> Supernet:
    """Return one that nobody may change."""
    return make(model)


def updates_of(cohort: Iterable[tuple[SubModelSpec, State, int]]) -> list[Update]:
    """Return the updates of a cohort: specs, trained states, examples."""
    return [
        Update(Task(f"{k}", 1, f"device {k}", spec, TRAINING, k), state, Report(examples, 0.0, 0.0))
        for k, (spec, state, examples) in enumerate(cohort)
    ]


def random_state(method: Supernet, seed: int = 0) -> State:
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tensor.shape, generator=draws) for name, tensor in method.initial(0).items()}


# Slices


SOME = [pytest.param(name, marks=pytest.mark.slow) if name == "mobilenet" else name for name in MODELS]


@pytest.mark.parametrize("sorts", [False, True])
@pytest.mark.parametrize("model", SOME)
@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=6)
def test_any_architecture_is_gathered_and_dilated_without_loss_or_repetition(model: str, sorts: bool, seed) -> None:
    method, draws = unchanged(model), torch.Generator().manual_seed(seed)
    state, space = random_state(method), Space.of("ofa", MODELS[model], (0.25, 0.5, 0.75), elastic=True)
    spec = space.spec(space.draw(float(torch.rand((), generator=draws)), draws))
    sizes = {name: weight.shape for name, weight in build(MODELS[model], spec).named_parameters()}
    order = importance_order(layout(MODELS[model]), state, MODELS[model].group) if sorts else {}
    full = {name: tensor.shape for name, tensor in state.items()}
    found = regions(method._layout, full, sizes, order)
    assert found.keys() == sizes.keys()
    for name, region in found.items():
        small = region.take(state[name])
        assert small.shape == sizes[name]
        mask = torch.zeros(full[name], dtype=torch.bool)
        region.put_(mask, torch.tensor(True))
        assert int(mask.sum()) == small.numel()
        assert torch.equal(small.flatten().sort().values, state[name][mask].sort().values)
        blank = torch.zeros(full[name])
        region.put_(blank, small)
        assert torch.equal(blank, torch.where(mask, state[name], 0.0))
        assert torch.equal(torch.cat([region.rows(k, k + 1).take(state[name]) for k in range(len(small))]), small)


def test_a_sub_network_says_what_the_supernet_says_with_the_rest_cut_away_by_hand() -> None:
    # Depth 1 and 2, kernels 3, 7 and 5, ratios 1, 3 and 2: 8 of 24, 24 of 24 and 32 of 48 channels.
    model, method = DEEP, make_method("ofa", DEEP, (1.0,), TRAINING, {"pool": 0})
    assert isinstance(method, Supernet)
    spec = spec_of("ofa", Architecture(blocks=((0,), (0, 1)), kernels=(3, 7, 5), expands=(1.0, 3.0, 2.0)))
    state = random_state(method)
    module = build(model, spec)
    sizes = {name: weight.shape for name, weight in module.named_parameters()}
    slots = regions(method._layout, {n: t.shape for n, t in state.items()}, sizes, {})
    module.load_state_dict({name: region.take(state[name]) for name, region in slots.items()})
    whole = network(model)
    whole.load_state_dict({name: tensor for name, tensor in state.items() if ".to" not in name})
    del whole.stages[0][1]
    for path, kernel, middle, hidden in (("0.0", 3, 8, 0), ("1.0", 7, 24, 8), ("1.1", 5, 32, 8)):
        stage, block = map(int, path.split("."))
        layer = whole.stages[stage][block]
        name = f"stages.{path}"
        five = torch.zeros(layer.depthwise.weight.shape[0], 25)
        for c in range(len(five)):
            middle5 = state[f"{name}.depthwise.weight"][c, 0, 1:6, 1:6].flatten()
            five[c] = state[f"{name}.depthwise.to5"].reshape(25, 25) @ middle5
        if kernel == 5:
            taps = five.reshape(-1, 1, 5, 5)
        elif kernel == 3:
            inner = five.reshape(-1, 5, 5)[:, 1:4, 1:4].reshape(-1, 9)
            taps = (inner @ state[f"{name}.depthwise.to3"].reshape(9, 9).T).reshape(-1, 1, 3, 3)
        else:
            taps = state[f"{name}.depthwise.weight"]
        layer.depthwise.kernel, layer.depthwise.weight = kernel, torch.nn.Parameter(taps[:middle].clone())
        for norm in (layer.norm1, layer.norm2):
            norm.num_channels, norm.num_groups = middle, middle // 4
            norm.weight.data, norm.bias.data = norm.weight[:middle].clone(), norm.bias[:middle].clone()
        layer.expand.weight.data = layer.expand.weight[:middle].clone()
        layer.project.weight.data = layer.project.weight[:, :middle].clone()
        if hidden:
            layer.squeeze.reduce.weight.data = layer.squeeze.reduce.weight[:hidden, :middle].clone()
            layer.squeeze.reduce.bias.data = layer.squeeze.reduce.bias[:hidden].clone()
            layer.squeeze.restore.weight.data = layer.squeeze.restore.weight[:middle, :hidden].clone()
            layer.squeeze.restore.bias.data = layer.squeeze.restore.bias[:middle].clone()
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(module(x), whole(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_one_device_with_everything_is_copied_and_what_nobody_covers_stays() -> None:
    method = make("mobilenet")
    state = random_state(method)
    method.prepare(state, None, Moment())
    for spec in (method.whole, method.offers()[0].spec):
        sent = method.compress(spec)
        contribution = method.dilate({name: tensor + 1 for name, tensor in sent.items()}, spec)
        accumulator = Accumulator(state)
        accumulator.fold(contribution, 7.0)
        deltas, masks = accumulator.mean()
        for name, mask in covered(contribution, state).items():
            assert torch.equal(masks[name], mask)
            torch.testing.assert_close(deltas[name], mask.double(), rtol=0, atol=1e-6)
            # Nothing but the matrices of smaller kernels is left out of the whole.
            assert spec != method.whole or bool(mask.all()) != (".to" in name)
    assert not all(mask.all() for mask in masks.values())


def test_a_small_kernel_covers_the_middle_and_the_rows_it_uses() -> None:
    method = make("mobilenet")
    state = random_state(method)
    method.prepare(state, None, Moment())
    spec = method.offers()[0].spec
    assert set(spec.options.kernels) == {3}
    masks = covered(method.dilate(method.compress(spec), spec), state)
    path = "stages.0.0.depthwise"
    middle = torch.zeros(7, 7, dtype=torch.bool)
    middle[1:6, 1:6] = True
    channels = masks[f"{path}.weight"].any(-1).any(-1)[:, 0]
    assert torch.equal(masks[f"{path}.weight"][:, 0], channels[:, None, None] & middle)
    rows = torch.zeros(5, 5, dtype=torch.bool)
    rows[1:4, 1:4] = True
    assert torch.equal(masks[f"{path}.to5"], rows.unsqueeze(2).expand(5, 5, 25))
    assert masks[f"{path}.to3"].all()


# Order of channels


def test_channels_are_ordered_by_the_weights_that_read_them_in_whole_groups() -> None:
    model, method = DEEP, make_method("ofa", DEEP, (1.0,), TRAINING, {"pool": 0})
    assert isinstance(method, Supernet)
    state = random_state(method)
    order = importance_order(layout(model), state, model.group)
    for stage, block, middle in ((0, 0, 24), (0, 1, 24), (1, 0, 24), (1, 1, 48)):
        project = state[f"stages.{stage}.{block}.project.weight"]
        norms = []
        for first in range(0, middle, 4):
            norms.append(sum(abs(float(v)) for c in range(first, first + 4) for v in project[:, c].flatten()))
        best = sorted(range(len(norms)), key=lambda g: -norms[g])
        expected = [4 * g + k for g in best for k in range(4)]
        assert order[f"stage {stage} block {block}"].tolist() == expected


def test_a_flattened_map_counts_all_positions_of_a_channel() -> None:
    model = MODELS["cnn"]
    state = {name: torch.randn(weight.shape) for name, weight in network(model).named_parameters()}
    norms = state["classifier.weight"].abs().sum(0).reshape(16, -1).sum(1).reshape(8, 2).sum(1)
    best = norms.argsort(descending=True).tolist()
    order = importance_order(layout(model), state, model.group)["stage 1"]
    assert order.tolist() == [2 * g + k for g in best for k in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_order_is_fixed_once_after_the_warm_up_and_sizes_stay_inside_each_other(model: str) -> None:
    method = make(model, warmup=0.5)
    smallest, kept = method.offers()[0].spec, []
    for number, seed in ((1, 0), (2, 0), (3, 0), (4, 1)):
        state = random_state(method, seed)
        method.prepare(state, None, Moment(number, 4, number))
        assert bool(method._order) == (number > 2)
        kept.append({name: slot.region.take(state[name]) for name, slot in method.slots(smallest).items()})
    again = {name: slot.region.take(random_state(method, 0)[name]) for name, slot in method.slots(smallest).items()}
    assert all(torch.equal(again[name], tensor) for name, tensor in kept[2].items())
    assert not all(torch.equal(kept[1][name], tensor) for name, tensor in kept[2].items())
    first = importance_order(method._layout, random_state(method, 0), MODELS[model].group)
    assert all(torch.equal(method._order[channels], order) for channels, order in first.items())
    # Whatever the smallest covers, any larger architecture of the same depths and kernels does too.
    small = covered(method.dilate(method.compress(smallest), smallest), state)
    wide = spec_of("ofa", replace(smallest.options, expands=()))
    sizes = {name: weight.shape for name, weight in build(MODELS[model], wide).named_parameters()}
    large = regions(method._layout, method._full, sizes, method._order)
    for name, region in large.items():
        mask = torch.zeros(method._full[name], dtype=torch.bool)
        region.put_(mask, torch.tensor(True))
        assert not (small[name] & ~mask).any()


@pytest.mark.slow
@pytest.mark.parametrize("model", [*MODELS, "vit"])
def test_sorted_sub_networks_are_slices_of_the_sorted_supernet_which_says_the_same(model: str) -> None:
    config = (MODELS | VIT)[model]
    method = make_method("deps", config, WIDTHS[::2], TRAINING, {"pool": 3, "warmup": 0.5})
    assert isinstance(method, Supernet)
    state = random_state(method)
    method.prepare(state, None, Moment(2, 2))
    ordered = method.compress(method.whole)
    assert not all(torch.equal(ordered[name], tensor) for name, tensor in state.items())
    x, said = torch.randn(2, *config.input_shape), []
    for weights in (state, ordered):
        module = method.module(method.whole)
        module.load_state_dict(weights)
        said.append(module(x))
    torch.testing.assert_close(*said, rtol=1e-4, atol=1e-4)
    full = {name: tensor.shape for name, tensor in state.items()}
    for size in method.offers():
        found = method.compress(size.spec)
        cut = regions(method._layout, full, {name: tensor.shape for name, tensor in found.items()}, {})
        assert all(torch.equal(cut[name].take(ordered[name]), tensor) for name, tensor in found.items())


def test_a_sorted_sub_network_is_the_supernet_with_the_unimportant_channels_silenced() -> None:
    model = ModelConfig("mobilenet", (3, 8, 8), 4, (8,), (1,), group=4, kernel=3, expand=3.0)
    method = make_method("ofa", model, (1.0,), TRAINING, {"pool": 2, "warmup": 0.5})
    state = {name: torch.randn(t.shape) for name, t in method.initial(0).items()}
    # A squeeze mixes channels, so it is shut: all gates are a half.
    state = {name: torch.zeros_like(t) if "squeeze" in name else t for name, t in state.items()}
    method.prepare(state, None, Moment(2, 2))
    spec = method.offers()[0].spec
    order = importance_order(layout(model), state, 4)["stage 0 block 0"]
    silent = order[build(model, spec).stages[0][0].project.weight.shape[1] :]
    assert len(silent)
    whole, part = network(model), build(model, spec)
    part.load_state_dict(method.compress(spec))
    muted = dict(state)
    muted["stages.0.0.project.weight"] = state["stages.0.0.project.weight"].index_fill(1, silent, 0.0)
    whole.load_state_dict(muted)
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(part(x), whole(x))


# The pool


@pytest.mark.parametrize("model", MODELS)
def test_every_width_has_an_architecture_within_its_budgets_and_none_is_a_poor_one(model: str) -> None:
    sizes = {size.spec: size for size in make(model).offers()}
    exported = [size for size in sizes.values() if size.exported]
    costs = [size.cost.training_macs for size in sizes.values()]
    assert sizes[spec_of("ofa", Architecture())].cost.training_macs == max(costs)
    assert spec_of("ofa", Architecture()) in {size.spec for size in exported}
    smallest = Space.of("ofa", MODELS[model], (0.25, 0.5, 0.75), elastic=True)
    assert sizes[smallest.spec((0,) * len(smallest.sizes))].exported
    for width in WIDTHS:
        limits = width_cost(MODELS[model], width, TRAINING)
        fitting = [size for size in sizes.values() if within(size.cost, limits)]
        best = max(fitting, key=lambda size: size.cost.training_macs)
        assert best.exported
        for size in fitting:
            assert size.cost.memory <= limits.memory
            assert max(size.cost.bytes_up, size.cost.bytes_down) <= limits.bytes_up


def test_the_pool_depends_on_the_model_alone_and_disturbs_no_other_draw() -> None:
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    one = make_method("ofa", MODELS["cnn"], WIDTHS, TRAINING, {"pool": 5}).offers()
    assert torch.equal(torch.randn(2), expected)
    assert one == make_method("ofa", MODELS["cnn"], WIDTHS, TRAINING, {"pool": 5}).offers()


def test_the_pool_has_architectures_of_all_sizes() -> None:
    sizes = make("mobilenet").offers()
    groups = grouped([(size.spec, size.cost) for size in sizes])
    assert len(groups) >= GROUPS // 2
    assert len(sizes) >= 12
    assert len({kernel for size in sizes for kernel in size.spec.options.kernels}) == 3


@pytest.mark.slow
def test_only_ofa_has_elastic_kernels() -> None:
    for name in ("superfednas", "deps"):
        method = make("mobilenet", name, pool=2)
        assert not any(size.spec.options.kernels for size in method.offers())
        assert not any(".to" in tensor for tensor in method.initial(0))
    with pytest.raises(SpecError, match=r"shares \[0.5, 2.0\]"):
        make("cnn", shares=(0.5, 2.0))


def test_a_group_ends_an_eighth_of_the_range_behind_its_first_member() -> None:
    work = [0, 9, 10, 11, 50, 60, 61, 80]
    costs = [(spec_of("ofa", Architecture(1 - k / 100)), cost_of(m)) for k, m in enumerate(work)]
    sizes = [[work[round((1 - spec.options.width) * 100)] for spec in group] for group in grouped(costs)]
    assert sizes == [[0, 9, 10], [11], [50, 60], [61], [80]]


def cost_of(macs: int) -> Cost:
    return Cost(1, macs, macs, macs, 4, 4, 1)


# The sandwich


def test_the_largest_and_the_smallest_go_round_among_those_who_can_have_them() -> None:
    method = make("cnn")
    sizes = method.offers()
    weak = sizes[: len(sizes) // 2]
    budgets = {"a": sizes, "b": sizes, "c": sizes, "d": weak, "e": weak}
    largest, smallest = Counter[str](), Counter[str]()
    for number in range(1, 21):
        given = method.assign(budgets, Moment(number, 20, number))
        assert all(item in budgets[device] for device, item in given.items())
        # Somebody whose turn it was has the largest, and another whose turn it was the smallest.
        first = {d for d in "abc" if given[d] == sizes[-1] and largest[d] == min(largest[e] for e in "abc")}
        second = [
            (d, e)
            for d in first
            for e in budgets
            if e != d and given[e] == sizes[0] and smallest[e] == min(smallest[f] for f in budgets if f != d)
        ]
        assert second
        largest.update(device for device, item in given.items() if item == budgets[device][-1])
        smallest.update(device for device, item in given.items() if item == sizes[0])
    assert {device: method._had_largest[device] for device in budgets} == {d: largest[d] for d in budgets}
    assert {device: method._had_smallest[device] for device in budgets} == {d: smallest[d] for d in budgets}


def test_among_equals_both_ends_are_dealt_evenly() -> None:
    method = make("cnn")
    sizes = method.offers()
    pairs = [("a", "b"), ("b", "c"), ("a", "c")]
    largest, smallest = Counter[str](), Counter[str]()
    for number in range(1, 22):
        # Two devices a round: one end for each, and no random draws in between.
        given = method.assign(dict.fromkeys(pairs[number % 3], sizes), Moment(number, 21, number))
        assert sorted(given.values(), key=sizes.index) == [sizes[0], sizes[-1]]
        largest.update(name for name, item in given.items() if item == sizes[-1])
        smallest.update(name for name, item in given.items() if item == sizes[0])
    assert set(largest.values()) == set(smallest.values()) == {7}
    # The weak one never has the largest, so the strong one always has.
    weak = make("cnn")
    for number in range(1, 21):
        assert weak.assign({"a": sizes, "d": sizes[:3]}, Moment(number, 20)) == {"a": sizes[-1], "d": sizes[0]}


def test_without_anyone_who_can_hold_the_largest_the_most_that_anyone_can_is_given() -> None:
    method = make("cnn")
    sizes = method.offers()
    budgets = {"a": sizes[:2], "b": sizes[:4], "c": sizes[:1]}
    for number in range(1, 9):
        assert method.assign(budgets, Moment(number, 20, number))["b"] == sizes[3]
    assert method.assign({}, Moment(9, 20)) == {}
    assert method.assign({"c": sizes[:1]}, Moment(9, 20)) == {"c": sizes[0]}


def test_other_devices_get_every_group_of_work_as_often() -> None:
    method = make("resnet")
    sizes = method.offers()
    budgets = dict.fromkeys("abc", sizes)
    counts = Counter[int]()
    for number in range(600):
        method._had_largest, method._had_smallest = Counter({"a": -9, "b": 9, "c": 9}), Counter({"b": -9})
        given = method.assign(budgets, Moment(1, 1, number))
        assert (given["a"], given["b"]) == (sizes[-1], sizes[0])
        counts[method._groups[given["c"].spec]] += 1
    groups = set(method._groups.values())
    assert counts.keys() == groups
    expected = 600 / len(groups)
    # Four standard deviations of a binomial count.
    assert all(abs(count - expected) <= 4 * math.sqrt(expected) for count in counts.values())


def test_counts_and_order_survive_a_kill_whatever_devices_are_called() -> None:
    one = make("cnn", warmup=0.25)
    state = random_state(one)
    names = ["a/b", "order/x", "d:1", "größte", ""]
    budgets = {name: one.offers() for name in names}
    for number in range(1, 9):
        one.prepare(state, None, Moment(number, 8, number))
        one.assign(budgets, Moment(number, 8, number))
    other = make("cnn", warmup=0.25)
    other.resume(state, None, Moment(9, 8, 9), {name: tensor.clone() for name, tensor in one.memory().items()})
    assert other._had_largest == one._had_largest
    assert other._had_smallest == one._had_smallest
    for number in range(9, 14):
        assert one.assign(budgets, Moment(number, 8, number)) == other.assign(budgets, Moment(number, 8, number))
    for item in one.offers():
        ours, theirs = one.compress(item.spec), other.compress(item.spec)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_during_the_warm_up_everyone_trains_its_largest_and_nothing_is_counted() -> None:
    method = make("cnn", "deps")
    sizes = method.offers()
    budgets = {"a": sizes, "b": sizes[:2], "c": sizes}
    for number in range(1, 11):
        given = method.assign(budgets, Moment(number, 10, number))
        assert (given == {name: sizes[-1] for name, sizes in budgets.items()}) == (number <= 5)
        assert bool(method._had_largest) == (number > 5)


# SuperFedNAS's weights


@given(st.floats(0.01, 0.99), st.integers(2, 50), st.floats(0.1, 1.0))
@settings(deadline=None)
def test_beta_falls_along_a_cosine_to_an_even_share(start: float, count: int, decay: float) -> None:
    end = 1 / count
    values = [beta(k / 40, start, end, decay) for k in range(41)]
    assert values[0] == pytest.approx(max(start, end))
    assert all(left >= right - 1e-12 for left, right in itertools.pairwise(values))
    assert all(value == pytest.approx(end) for k, value in enumerate(values) if k / 40 >= decay)
    middle = beta(decay / 2, start, end, decay)
    assert middle == pytest.approx((max(start, end) + end) / 2)


def weights_of(method: Supernet, updates: Sequence[Update], moment: Moment) -> list[float]:
    """Return what updates weigh, in their order."""
    given = list(method.weigh(updates, moment))
    assert [update for update, _ in given] == list(updates)
    return [weight for _, weight in given if isinstance(weight, float)]


def test_the_largest_has_beta_and_the_others_share_the_rest() -> None:
    method = make("cnn", "superfednas")
    state = random_state(method)
    sizes = method.offers()
    whole, small = sizes[-1].spec, sizes[0].spec
    assert whole == method.whole
    for number in range(1, 11):
        method.prepare(state, None, Moment(number, 10, 1))
        method.assign({}, Moment(number, 10, 1))
        assert method.needs_all(Moment(number, 10, 1))
        for specs in ([whole] + [small] * 7, [small, whole, small, whole], [small] * 3, [whole] * 3, [whole]):
            updates = updates_of((spec, {}, 10 * (k + 1)) for k, spec in enumerate(specs))
            total, count = sum(update.examples for update in updates), len(specs)
            weights = weights_of(method, updates, Moment(number, 10, 1))
            assert sum(weights) == pytest.approx(total)
            assert all(weight > 0 for weight in weights)
            largest = specs.count(whole)
            if 0 < largest < count:
                t = min((number - 1) / 10, 0.8)
                even = largest / count
                share = even + (0.9 - even) * 0.5 * (1 + math.cos(math.pi * t / 0.8))
            else:
                share = largest / count
            for spec, weight in zip(specs, weights, strict=True):
                expected = share / largest if spec == whole else (1 - share) / (count - largest)
                assert weight == pytest.approx(expected * total)
    updates = updates_of([(whole, {}, 3), (small, {}, 5)])
    assert weights_of(method, updates, Moment(10, 10, 1)) == pytest.approx([4.0, 4.0])
    assert weights_of(method, [], Moment(10, 10, 1)) == []


# DepS's ramp


def moved(method: Supernet, state: State, cohort: Sequence[tuple[SubModelSpec, int, float]], moment: Moment) -> State:
    """Return what a round changes in which each device of the cohort changed all it had: a size, examples, by what."""
    sent = {spec: method.compress(spec) for spec, _, _ in cohort}
    updates = updates_of(
        (spec, {name: tensor + change for name, tensor in sent[spec].items()}, count) for spec, count, change in cohort
    )
    accumulator = Accumulator(state)
    for update, weight in method.weigh(updates if method.needs_all(moment) else iter(updates), moment):
        accumulator.fold(method.dilate(update.state, update.spec), weight)
    return accumulator.mean()[0]


def test_sub_networks_count_from_zero_on_and_the_largest_always_in_full() -> None:
    method = make("cnn", "deps", warmup=0.5, ramp=0.2)
    state = random_state(method)
    small, whole = method.offers()[0].spec, method.whole
    for number in range(1, 21):
        method.prepare(state, None, Moment(number, 20, 1))
        method.assign({}, Moment(number, 20, 1))
        factor = 1.0 if number <= 10 or number >= 14 else (number - 10) / 4
        mask = covered(method.dilate(method.compress(small), small), state)
        # Updates need not be kept but while the ramp lasts.
        assert method.needs_all(Moment(number, 20, 1)) == (factor < 1)
        alone = moved(method, state, [(small, 5, 1.0), (small, 7, 1.0)], Moment(number, 20, 1))
        cohort = [(whole, 5, 1.0), *[(small, 7, change) for change in (1.0, 2.0, 9.0)]]
        both = moved(method, state, cohort, Moment(number, 20, 1))
        mixed = (5 * 1 + factor * 7 * (1 + 2 + 9)) / (5 + factor * 3 * 7)
        for name, held in mask.items():
            expected = torch.where(held, factor, 0.0).double()
            torch.testing.assert_close(alone[name], expected, rtol=0, atol=1e-5)
            expected = torch.where(held, mixed, 1.0).double()
            torch.testing.assert_close(both[name], expected, rtol=0, atol=1e-5)
    method = make("cnn", "deps", warmup=0.5, ramp=0.0)
    assert [method.factor(Moment(number, 4, 1)) for number in range(1, 5)] == [1.0] * 4


def test_small_sub_networks_do_not_dilute_the_largest_while_they_join() -> None:
    method = make("cnn", "deps", warmup=0.5, ramp=0.5)
    state = random_state(method)
    method.prepare(state, None, Moment(11, 20, 1))
    method.assign({}, Moment(11, 20, 1))
    cohort = [(method.whole, 8, 1.0), *[(method.offers()[0].spec, 8, 1.0)] * 9]
    found = moved(method, state, cohort, Moment(11, 20, 1))
    for delta in found.values():
        torch.testing.assert_close(delta, torch.ones_like(delta), rtol=0, atol=1e-5)


# Abandoned rounds


@pytest.mark.parametrize("name", ["superfednas", "deps"])
def test_behind_an_abandoned_round_a_run_goes_on_as_one_that_was_killed_there(name: str) -> None:
    options = {"warmup": 0.1, "ramp": 0.9} if name == "deps" else {}
    first, second = (make("cnn", name, **options) for _ in range(2))
    state, fits = random_state(first), {"a": first.offers()}
    first.prepare(state, None, Moment(3, 10))
    # Nothing is prepared for round 4, as round 3 is abandoned.
    first.assign(fits, Moment(3, 10, 3))
    second.resume(state, None, Moment(4, 10), first.memory())
    whole, small = first.whole, first.offers()[0].spec
    for number in (4, 5):
        deltas = []
        for method in (first, second):
            method.assign(fits, Moment(number, 10, number))
            cohort = [(whole, 10, 1.0), (small, 10, 2.0), (small, 10, 4.0)]
            deltas.append(moved(method, state, cohort, Moment(number, 10, number)))
        assert all(torch.equal(deltas[0][name], deltas[1][name]) for name in state)
