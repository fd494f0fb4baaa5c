"""The least-squares start of stitches, from the proxy set or from what devices say."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from stitching import (
    DEEP_VIT,
    FAMILIES,
    RESNET,
    TRAINING,
    VIT,
    WIDE_VIT,
    WIDTHS,
    activations,
    drawn,
    error,
    gathering,
    least_squares,
    make,
    proxy,
    stitch,
)
from torch import nn
from torch.profiler import ProfilerActivity, profile

from diastole.client.training import train
from diastole.models.accumulator import Accumulator
from diastole.models.cost import measure, standing
from diastole.models.dropout import Dropout
from diastole.models.errors import SpecError
from diastole.models.methods.registry import METHODS, Conditions, build, parse_options
from diastole.models.methods.stitching.routes import Depths, one_way
from diastole.models.methods.stitching.snnet import StitchedMethod
from diastole.models.methods.stitching.stitched import Statistics
from diastole.models.methods.widths.width import width_cost
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, state_of
from diastole.models.task import Task
from diastole.models.training import Examples, Step, TrainConfig, fit
from diastole.server.admission import check, expected_state
from diastole.server.optimisers import ServerOptimiser, ServerOptimiserConfig


def task(spec: SubModelSpec, seed: int = 1) -> Task:
    return Task("t", 2, "d", spec, TRAINING, seed)


@pytest.mark.parametrize(("model", "method", "options"), FAMILIES)
def test_stitches_start_from_least_squares_on_the_proxy_set(
    model: ModelConfig, method: str, options: dict[str, Any]
) -> None:
    made = make(model, method, warmup=0.5, **options)
    state = made.initial(1)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    for number in (1, 2):
        assert made.prepare(state, proxy(model), Moment(number, 4)) is state
        assert not made.memory()
    begun, seen = made.prepare(state, proxy(model), Moment(3, 4)), activations(made, state, proxy(model).training.x)
    sent = made.compress(made.whole)
    assert all(torch.equal(sent[name], begun[name]) for name in state)
    for name, joint in made.family.joints.items():
        # Channels that hardly vary leave the weights open; what counts is how close they come.
        best = error(joint, seen, *least_squares(joint, seen))
        assert error(joint, seen, *stitch(begun, name)) <= 1.001 * best + 1e-6
        assert error(joint, seen, *stitch(state, name)) > 2 * best
    assert all(torch.equal(state[name], kept[name]) for name in state)
    changed = {name for name in state if not torch.equal(begun[name], state[name])}
    assert all(name.startswith("stitches.") and "up" not in name and "down" not in name for name in changed)
    assert made.prepare(kept, None, Moment(4, 4)) is kept


def test_a_start_from_the_proxy_set_needs_one() -> None:
    made = make(VIT, warmup=0)
    with pytest.raises(SpecError, match='initialise = "devices"'):
        made.prepare(made.initial(1), None, Moment())


# From the devices


@pytest.mark.slow
@pytest.mark.parametrize(("model", "method", "options"), FAMILIES)
def test_means_of_devices_solve_as_all_their_examples_together(
    model: ModelConfig, method: str, options: dict[str, Any]
) -> None:
    made = make(model, method, initialise="devices", warmup=0.25, **options)
    state, spec = made.initial(1), gathering(made)
    sums = {name for name in state if name.startswith("sums.")}
    expected = expected_state(made, spec)
    assert sums
    made.prepare(state, None, Moment(1, 4))
    assert made.prepare(state, None, Moment(2, 4)) is state
    shards = [drawn(model, count, seed) for seed, count in enumerate((19, 50, 8))]
    accumulator = Accumulator(state)
    for seed, examples in enumerate(shards):
        sent = made.compress(spec)
        update = train(model, task(spec, seed), sent, examples)
        check(update, sent, expected, len(examples), 3)
        contribution = made.dilate(update.state, spec)
        assert contribution.keys() == sums
        accumulator.fold(contribution, len(examples))
    state = ServerOptimiser(ServerOptimiserConfig()).step(state, *accumulator.mean())
    begun = made.prepare(state, None, Moment(3, 4))
    seen = activations(made, state, torch.cat([examples.x for examples in shards]))
    for name, joint in made.family.joints.items():
        best = error(joint, seen, *least_squares(joint, seen))
        assert error(joint, seen, *stitch(begun, name)) <= 1.001 * best + 1e-6
    assert made.memory()


def test_statistics_forget_the_task_before_and_what_they_were_sent() -> None:
    made = make(VIT, initialise="devices")
    state = made.prepare(made.initial(1), None, Moment(1, 4))
    spec, examples = gathering(made), drawn(VIT, 20)
    sent = made.compress(spec)
    train(VIT, task(spec), sent, drawn(VIT, 30, 9))
    dirty = {name: tensor + 3 if name.startswith("sums.") else tensor for name, tensor in sent.items()}
    found = train(VIT, task(spec), dirty, examples)
    assert found.report.loss == 0
    gram = found.state["sums.0-1-0.gram"]
    front = activations(made, state, examples.x)[0]
    rows = torch.cat([front[j + 1] for j, _ in made.family.joints["0-1-0"].places])
    wide = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    torch.testing.assert_close(gram, wide.T @ wide / len(rows), rtol=1e-4, atol=1e-5)
    assert gram[-1, -1] == 1
    for name, tensor in found.state.items():
        if not name.startswith("sums."):
            assert torch.equal(tensor, sent[name])


def test_statistics_are_taken_without_dropout() -> None:
    model = ModelConfig("simple-cnn", (1, 8, 8), classes=4, widths=(4, 8, 12), group=2)
    family, examples, found = one_way(model, WIDTHS), drawn(model, 12), list[State]()
    module = Statistics(family, family.joints)
    assert any(isinstance(layer, Dropout) for layer in module.modules())
    for seed in (1, 2):
        fit(module, examples, TrainConfig(batch_size=12), torch.Generator().manual_seed(seed))
        found.append(state_of(module.sums))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor)


def test_statistics_need_a_server_that_is_linear() -> None:
    for method in ("snnet", "snnetv2"):
        row, devices = METHODS[method], parse_options(method, {"initialise": "devices"})
        for name in ("fedavg", "fedavgm", "fedadam", "fedyogi"):
            conditions = Conditions(TRAINING, proxy=0, labels=True, server_epochs=0, optimiser=name)
            row.check(parse_options(method, {}), conditions)
            if name.startswith("fedavg"):
                row.check(devices, conditions)
                continue
            with pytest.raises(SpecError, match=rf'methods.{method}.initialise "devices": .*not "{name}"'):
                row.check(devices, conditions)


# What they take


def peak(module: nn.Module, x: torch.Tensor) -> int:
    """Return the most bytes that torch had allocated at once, on top of what there was, while statistics were taken."""
    now, most = 0, 0
    module.train()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        module.loss(x, torch.zeros(len(x), dtype=torch.int64), Step(torch.Generator()))
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    ("model", "depths"),
    [
        (VIT, ()),
        pytest.param(replace(RESNET, input_shape=(1, 32, 32)), (), marks=pytest.mark.slow),
        (DEEP_VIT, ((2,), (5,))),
    ],
    ids=["vit", "resnet", "unpaired"],
)
def test_statistics_take_the_memory_that_their_cost_says(model: ModelConfig, depths: Depths) -> None:
    family, training = one_way(model, WIDTHS, depths), TrainConfig(batch_size=32)
    module, x = Statistics(family, family.joints), drawn(model, 32).x
    claimed = measure(module, model.input_shape, training).memory - standing(module, training) - x.nbytes
    # What convolutions work in is not counted, for no sub-model.
    assert 0.8 * peak(module, x) <= claimed <= 1.05 * peak(module, x)


def test_activations_that_no_stitch_asks_for_any_more_are_dropped() -> None:
    def took(depth: int, few: int) -> int:
        family = one_way(replace(VIT, blocks=(depth,)), WIDTHS, ((few,), (depth,)))
        module = Statistics(family, family.joints)
        sums = 2 * sum(weight.nbytes for weight in module.sums.parameters())
        return peak(module, drawn(VIT, 64).x) - sums

    # 64 examples of 4 tokens and 8 channels, float32.
    entry = 64 * 4 * 8 * 4
    assert took(9, 9) - took(3, 3) < entry
    assert took(18, 6) - took(6, 2) < entry


def test_statistics_need_no_memory_for_gradients() -> None:
    made = make(VIT, initialise="devices")
    size = next(size for size in made.offers() if size.spec == gathering(made))
    weights = dict(build(VIT, size.spec).named_parameters())
    assert {n for n, weight in weights.items() if weight.requires_grad} == {n for n in weights if n.startswith("sums.")}
    assert isinstance(build(VIT, size.spec), Statistics)
    # Twice for the sums, which count as trained: beside them a gradient and a momentum at most.
    sums = sum(weight.nbytes for name, weight in weights.items() if name.startswith("sums."))
    inputs = TRAINING.batch_size * 64 * 4
    taken = peak(build(VIT, size.spec), drawn(VIT, TRAINING.batch_size).x)
    assert 0 <= size.cost.memory - (size.cost.bytes_down + inputs + taken) <= 2 * sums
    assert size.cost.training_macs == size.cost.forward_macs
    assert not size.exported


# Who gives them


def held(method: StitchedMethod, state: State, pair: tuple[int, int]) -> State:
    """Return the state after devices gave the statistics of a pair of anchors."""
    module = build(WIDE_VIT, gathering(method, pair))
    module.load_state_dict(method.compress(gathering(method, pair)))
    examples: Examples = drawn(WIDE_VIT, 20)
    module.loss(examples.x, examples.y, Step(torch.Generator()))
    return {**state, **{n: w.detach() for n, w in module.named_parameters() if n.startswith("sums.")}}


@pytest.mark.slow
def test_anchors_come_first_then_statistics_then_routes() -> None:
    made = make(WIDE_VIT, widths=(0.25, 0.5, 1.0), initialise="devices", warmup=0.25, statistics=2)
    sizes, state = made.offers(), made.initial(1)
    within = [size for size in sizes if size.cost.training_macs <= width_cost(WIDE_VIT, 0.25, TRAINING).training_macs]
    small = [size for size in within if not size.spec.options.bases]
    assert [size.spec.options.route for size in small] == [1]
    fits = {**{f"device-{k:02d}": sizes for k in range(12)}, "small": small}

    def given(number: int) -> Counter[tuple[int, ...]]:
        found = dict(made.assign(fits, Moment(number, 8, number)))
        assert found.pop("small") == small[0]
        parts = [size.spec.options for size in found.values()]
        return Counter(part.bases or (part.route,) for part in parts)

    made.prepare(state, None, Moment(1, 8))
    assert set(given(1)) | set(given(2)) == {(1,), (2,), (3,)}
    made.prepare(state, None, Moment(3, 8))
    assert given(3) == {(0, 1): 6, (1, 2): 6}
    # One pair came in; the other one is asked for once more.
    state = held(made, state, (0, 1))
    assert made.prepare(state, None, Moment(4, 8)) is state
    assert given(4) == {(1, 2): 12}
    assert not made.memory()
    # Nobody could hold it: its stitches keep their random start, and routes open.
    begun = made.prepare(state, None, Moment(5, 8))
    routes = sum((given(number) for number in range(5, 9)), Counter())
    assert all(len(key) == 1 for key in routes)
    assert max(routes) > (3,)
    assert {name for name in state if not torch.equal(begun[name], state[name])} == {
        f"stitches.0-1-0.{part}" for part in ("weight", "bias")
    }


@pytest.mark.slow
def test_an_abandoned_round_delays_the_start_and_a_resumed_one_asks_for_what_is_missing() -> None:
    options: dict[str, Any] = {"initialise": "devices", "warmup": 0.25, "statistics": 3}
    made, other = (make(WIDE_VIT, widths=(0.25, 0.5, 1.0), **options) for _ in range(2))
    fits = {f"device-{k}": made.offers() for k in range(4)}
    state = made.initial(1)
    made.prepare(state, None, Moment(3, 8))
    state = held(made, state, (1, 2))
    other.resume(state, None, Moment(4, 8), made.memory())
    for number in (4, 7):
        assert {size.spec.options.bases for size in other.assign(fits, Moment(number, 8)).values()} == {(0, 1)}
    begun = other.prepare(held(other, state, (0, 1)), None, Moment(8, 8))
    assert other.memory()
    assert not any(torch.equal(begun[n], state[n]) for n in state if n.startswith("stitches."))


def test_a_device_that_only_statistics_fit_is_given_them() -> None:
    made = make(VIT, initialise="devices", warmup=0.5)
    made.prepare(made.initial(1), None, Moment(1, 8))
    only = [size for size in made.offers() if size.spec.options.bases]
    assert made.assign({"odd": only}, Moment(1, 8)) == {"odd": only[0]}
