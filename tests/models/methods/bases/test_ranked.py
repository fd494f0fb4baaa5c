"""Width slicing with channels sorted by importance, and what HeteroFL's scaler does behind GroupNorm."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diastole.models.channels import importance
from diastole.models.errors import SpecError
from diastole.models.method import Method
from diastole.models.methods.bases.ranked import rank
from diastole.models.methods.registry import build, make_method
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.traced import trace
from diastole.models.networks.family import layout
from diastole.models.state import State
from diastole.models.training import TrainConfig

MODELS = {
    "cnn-2d": ModelConfig("cnn", (1, 9, 8), classes=4, widths=(8, 16), group=2),
    "cnn-1d": ModelConfig("cnn", (3, 16), classes=3, widths=(8, 12), group=2),
    "resnet": ModelConfig("resnet", (3, 8, 8), classes=4, widths=(8, 16), blocks=(2, 1), group=2),
}
# Six heads of four channels: not a whole number of groups of heads.
TRANSFORMER = ModelConfig("transformer", (3, 5), classes=3, widths=(24,), blocks=(1,), group=4)
CNN = MODELS["cnn-2d"]
TRAINING = TrainConfig(batch_size=4)
WIDTHS = (0.25, 0.5, 1.0)


def make(kind: str = "width", model: ModelConfig = CNN, **options: object) -> Method:
    return make_method(kind, model, WIDTHS, TRAINING, {"sort": True, **options})


def logits(method: Method, model: ModelConfig, width: float) -> torch.Tensor:
    spec = {size.spec.options.width: size.spec for size in method.offers()}[width]
    module = build(model, spec)
    module.load_state_dict(method.compress(spec))
    with torch.no_grad():
        return module.eval()(torch.randn(4, *model.input_shape, generator=torch.Generator().manual_seed(1)))


# The order


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_rank_is_a_stable_sort_on_either_side_of_every_edge(scores: list[int], data) -> None:
    before = data.draw(st.permutations(range(len(scores))))
    fixed = sorted(data.draw(st.sets(st.integers(1, len(scores)))))
    expected, start = [], 0
    for stop in [*fixed, len(scores)]:
        expected += sorted(before[start:stop], key=lambda thing: -scores[thing])
        start = stop
    ranked = rank(torch.tensor(scores, dtype=torch.float64), torch.tensor(before), fixed)
    assert ranked.tolist() == expected


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_importance_is_the_sum_over_all_that_reads_a_channel(model: ModelConfig, random_state) -> None:
    state = random_state(model)
    if model.name == "cnn":
        positions = math.prod(size // 4 for size in model.input_shape[1:])
        readers = {
            "stage 0": [("stages.1.0.weight", 1)],
            "stage 1": [("classifier.weight", positions)],
        }
    else:
        readers = {
            "stage 0": [(f"stages.{name}.weight", 1) for name in ("0.0.conv1", "0.1.conv1", "1.0.conv1")]
            + [("stages.1.0.shortcut.0.weight", 1)],
            "stage 0 block 0": [("stages.0.0.conv2.weight", 1)],
            "stage 0 block 1": [("stages.0.1.conv2.weight", 1)],
            "stage 1 block 0": [("stages.1.0.conv2.weight", 1)],
            "stage 1": [("classifier.weight", 1)],
        }
    found = importance(layout(model), state)
    assert found.keys() == readers.keys()
    for name, weights in readers.items():
        for channel, value in enumerate(found[name].tolist()):
            total = 0.0
            for weight, repeat in weights:
                for row in state[weight]:
                    for position in range(repeat):
                        total += sum(abs(v) for v in row[channel * repeat + position].flatten().tolist())
            assert math.isclose(value, total, rel_tol=1e-9)


def test_what_writes_a_channel_does_not_make_it_important(random_state) -> None:
    model = replace(TRANSFORMER, input_shape=(5,), vocabulary=7, blocks=(2,))
    state = random_state(model)
    readers = [f"stages.0.{block}.{name}.weight" for block in (0, 1) for name in ("attention.q", "attention.k", "grow")]
    readers += [f"stages.0.{block}.attention.v.weight" for block in (0, 1)] + ["classifier.weight"]
    expected = sum(state[name].double().abs().sum(0) for name in readers)
    torch.testing.assert_close(importance(layout(model), state)["stream"], expected)


def test_a_transposed_convolution_reads_its_first_axis() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2), nn.Flatten(), nn.Linear(36, 2))
    axes = trace(net, torch.zeros(2, 3, 2, 2), 2).layout
    state = {name: torch.randn(parameter.shape) for name, parameter in net.named_parameters()}
    found = importance(axes, state)
    torch.testing.assert_close(found["0"], state["2.weight"].double().abs().sum((1, 2, 3)))
    torch.testing.assert_close(found["2"], state["4.weight"].double().abs().view(2, 4, 9).sum((0, 2)))


def test_the_most_important_groups_come_first(random_state) -> None:
    state = random_state(CNN)
    method = make()
    method.prepare(state, None, Moment(2, 9))
    norms = importance(layout(CNN), state)["stage 0"].tolist()
    groups = sorted(range(4), key=lambda g: -(norms[2 * g] + norms[2 * g + 1]))
    kept = [2 * g + i for g in groups[:2] for i in range(2)]
    assert kept != [0, 1, 2, 3]
    small = method.compress(method.offers()[1].spec)
    assert torch.equal(small["stages.0.0.weight"], state["stages.0.0.weight"][kept])


def test_equal_channels_keep_their_order(random_state) -> None:
    state = {name: torch.ones_like(tensor) for name, tensor in random_state(CNN).items()}
    state["classifier.weight"] = random_state(CNN)["classifier.weight"]
    method = make()
    method.prepare(state, None, Moment(2, 9))
    order = {name: tensor.tolist() for name, tensor in method.memory().items()}
    assert order["order/stage 0"] == list(range(8))
    assert order["order/stage 1"] != list(range(16))


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        # Both kinds sort in the same way, whatever the model.
        pytest.param(model, kind, id=f"{name}-{kind}", marks=[pytest.mark.slow] if slow else [])
        for name, model in {**MODELS, "transformer": TRANSFORMER}.items()
        for kind, slow in (("width", False), ("fjord", name != "cnn-2d"))
    ],
)
def test_sorting_keeps_the_function_of_the_whole_model_and_changes_smaller_ones(
    model: ModelConfig, kind: str, random_state
) -> None:
    state = random_state(model)
    plain, method = make(kind, model, sort=False), make(kind, model)
    for each in (plain, method):
        each.prepare(state, None, Moment(2, 9))
    moved = method.compress(method.whole)
    assert any(not torch.equal(moved[name], tensor) for name, tensor in state.items())
    torch.testing.assert_close(logits(method, model, 1.0), logits(plain, model, 1.0), rtol=1e-5, atol=1e-5)
    assert any((logits(method, model, w) - logits(plain, model, w)).abs().max() > 1e-3 for w in (0.25, 0.5))


def test_smaller_sizes_stay_inside_larger_ones(random_state) -> None:
    state = {n: torch.arange(t.numel(), dtype=torch.float32).view(t.shape) for n, t in random_state(CNN).items()}
    method = make()
    method.prepare(state, None, Moment(2, 9))
    small, large = (method.compress(size.spec) for size in method.offers()[:2])
    for name, tensor in small.items():
        assert torch.equal(tensor, large[name][tuple(map(slice, tensor.shape))])


# When


def orders(random_state, rounds: int, **options: object) -> list[State]:
    """Return the order in force in each of the rounds, before each of which the global state changes."""
    method = make(**options)
    found = []
    for number in range(1, rounds + 1):
        method.prepare(random_state(CNN, number), None, Moment(number, rounds))
        found.append({name: t for name, t in method.memory().items() if name != "sorted"})
    return found


def changes(found: list[State]) -> list[int]:
    """Return the rounds whose order is not that of the round before."""
    start = {name: torch.arange(len(order)) for name, order in found[0].items()}
    return [
        k + 1
        for k, (before, after) in enumerate(zip([start, *found], found, strict=False))
        if any(not torch.equal(before[name], after[name]) for name in after)
    ]


@pytest.mark.parametrize(("every", "rounds"), [(0, [2]), (1, [2, 3, 4, 5, 6, 7, 8]), (3, [4, 7])])
def test_channels_are_sorted_when_they_have_been_trained(random_state, every: int, rounds: list[int]) -> None:
    assert changes(orders(random_state, 8, every=every)) == rounds


def test_without_the_option_nothing_is_sorted_or_remembered(random_state) -> None:
    method = make(sort=False, every=1)
    state = random_state(CNN)
    for number in range(1, 4):
        method.prepare(state, None, Moment(number, 4))
        assert method.memory() == {}
    small = method.compress(method.offers()[0].spec)
    assert all(torch.equal(tensor, state[n][tuple(map(slice, tensor.shape))]) for n, tensor in small.items())


def test_later_sorts_leave_the_channels_of_a_size_that_is_kept(random_state) -> None:
    # The first sort, before round 2, may choose them.
    for width, kept in ((0.25, 4), (0.5, 8)):
        found = [found["order/stage 1"] for found in orders(random_state, 6, every=1, keep=(width,))]
        assert {frozenset(order[:kept].tolist()) for order in found[1:]} == {frozenset(found[1][:kept].tolist())}
        assert len({frozenset(order[: 12 - kept].tolist()) for order in found[1:]}) > 1
        assert len({tuple(order[:kept].tolist()) for order in found[1:]}) > 1


def test_a_resumed_run_sorts_when_the_other_would_have(random_state) -> None:
    first, resumed = make(every=3), make(every=3)
    for number in range(1, 6):
        first.prepare(random_state(CNN, number), None, Moment(number, 9))
    memory = {name: tensor.clone() for name, tensor in first.memory().items()}
    resumed.resume(random_state(CNN, 5), None, Moment(5, 9), memory)
    for number in range(6, 10):
        for method in (first, resumed):
            method.prepare(random_state(CNN, number), None, Moment(number, 9))
        for size in first.offers():
            sent, expected = resumed.compress(size.spec), first.compress(size.spec)
            assert all(torch.equal(sent[name], expected[name]) for name in expected)


def test_options_that_cannot_be_are_named() -> None:
    with pytest.raises(SpecError, match=r"options of method width: depth: no such key"):
        make(depth=2)
    with pytest.raises(SpecError, match=r"options of method fjord: every: .*not -1"):
        make("fjord", every=-1)
    with pytest.raises(SpecError, match=r"options of method width: keep.0: .*not 1.5"):
        make(keep=(1.5,))
    with pytest.raises(SpecError, match=r"width 0.01 leaves less than one group"):
        make(keep=(0.01,))


# HeteroFL's scaler


@pytest.mark.parametrize(("epsilon", "tolerance"), [(1e-12, 1e-5), (1e-5, 5e-2)])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_normalisation_cancels_heterofls_scaler_but_for_its_epsilon(
    model: ModelConfig, random_state, epsilon: float, tolerance: float
) -> None:
    state, modules = random_state(model), []
    for scaler in (False, True):
        method = make(model=model, sort=False, scaler=scaler)
        method.prepare(state, None, Moment())
        spec = method.offers()[0].spec
        module = build(model, spec)
        module.load_state_dict(method.compress(spec))
        modules.append(module)
        for layer in module.modules():
            if isinstance(layer, nn.GroupNorm):
                layer.eps = epsilon
    x = torch.randn(8, *model.input_shape, generator=torch.Generator().manual_seed(1))
    outputs = [module(x) for module in modules]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=tolerance, atol=tolerance)
    for output in outputs:
        output.square().sum().backward()
    for one, other in zip(*(module.parameters() for module in modules), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=10 * tolerance, atol=10 * tolerance)
