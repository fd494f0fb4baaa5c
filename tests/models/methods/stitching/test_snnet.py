from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from diastole.client.training import train
from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import parse
from diastole.models.accumulator import Accumulator
from diastole.models.compressor import Offer, Proxy
from diastole.models.cost import Cost, measure, standing
from diastole.models.dropout import Dropout
from diastole.models.errors import SpecError
from diastole.models.methods.registry import build, make_compressor
from diastole.models.methods.stitching.routes import Depths, Route, chain, one_way, two_way
from diastole.models.methods.stitching.snnet import StitchedCompressor
from diastole.models.methods.stitching.snnetv2 import groups
from diastole.models.methods.stitching.stitched import Statistics, Stitched, Supernet
from diastole.models.methods.stitching.stitches import LowRankStitch
from diastole.models.methods.widths.width import width_cost
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import network
from diastole.models.networks.shape import narrowed
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, state_of
from diastole.models.training import Examples, Step, TrainConfig, fit
from diastole.server.admission import check, expected_state
from diastole.server.link import Task, Update
from diastole.server.optimisers import ServerOptimiser, ServerOptimiserConfig
from diastole.simulations.devices import make_federation
from diastole.simulations.engines.stacked import program
from diastole.simulations.simulate import simulate

VIT = ModelConfig("vit", (1, 8, 8), classes=4, widths=(16,), blocks=(3,), group=4)
RESNET = ModelConfig("resnet", (1, 8, 8), classes=4, widths=(8, 12), blocks=(2, 1), group=2)
SERIES = ModelConfig("cnn", (3, 16), classes=4, widths=(8, 16), group=2)
METHODS = ("snnet", "snnetv2")
MODELS = {"vit": VIT, "resnet": RESNET, "series": SERIES}
WIDTHS = (0.5, 1.0)
DEEP_VIT, DEEP_RESNET = replace(VIT, blocks=(5,)), replace(RESNET, blocks=(3, 2))
FAMILIES = [
    *(pytest.param(model, method, {}, id=f"{name}-{method}") for name, model in MODELS.items() for method in METHODS),
    pytest.param(DEEP_VIT, "snnet", {"depths": [[2], [5]]}, id="vit-unpaired"),
    # Windows in the first stage, one block followed by any but the first in the second.
    pytest.param(DEEP_RESNET, "snnet", {"depths": [[3, 1], [3, 2]]}, id="resnet-half-paired"),
    pytest.param(DEEP_RESNET, "snnet", {"depths": [[1, 1], [3, 2]]}, id="resnet-unpaired"),
]
TRAINING = TrainConfig(epochs=2, batch_size=8, learning_rate=0.05)


def make(
    model: ModelConfig, method: str = "snnet", widths: tuple[float, ...] = WIDTHS, **options: Any
) -> StitchedCompressor:
    compressor = make_compressor(method, model, widths, TRAINING, options)
    assert isinstance(compressor, StitchedCompressor)
    return compressor


def drawn(model: ModelConfig, count: int, seed: int = 0) -> Examples:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *model.input_shape, generator=draws)
    return Examples(x, torch.randint(model.classes, (count,), generator=draws))


def proxy(model: ModelConfig) -> Proxy:
    return Proxy(drawn(model, 24, 5), drawn(model, 4, 6))


def anchor(compressor: StitchedCompressor, state: State, number: int) -> nn.Module:
    """Return a whole anchor, loaded."""
    shape = narrowed(compressor.family.model, compressor.family.widths[number])
    if compressor.whole.depths:
        shape = replace(shape, blocks=tuple(tuple(range(count)) for count in compressor.whole.depths[number]))
    module = network(compressor.family.model, shape)
    module.load_state_dict({name: state[f"anchors.{number}.{name}"] for name, _ in module.named_parameters()})
    return module


def activations(compressor: StitchedCompressor, state: State, number: int, x: Tensor) -> list[Tensor]:
    """Return what each block of an anchor takes, and what the last gives, as rows of channels."""
    module, tokens = anchor(compressor, state, number), compressor.family.model.name == "vit"
    with torch.no_grad():
        found = [module.enter(x)]
        for block in chain(compressor.family.model, module):
            found.append(block(found[-1]))
    return [(y if tokens else y.movedim(1, -1)).reshape(-1, y.shape[-1 if tokens else 1]) for y in found]


def least_squares(compressor: StitchedCompressor, state: State, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a stitch by torch's least squares on all activations at once."""
    joint = compressor.family.joints[name]
    front, back = (activations(compressor, state, number, x) for number in (joint.front, joint.back))
    inside = torch.cat([front[j + 1] for j, _ in joint.places]).double()
    outside = torch.cat([back[k] for _, k in joint.places]).double()
    wide = torch.cat([inside, torch.ones(len(inside), 1)], 1)
    solution = torch.linalg.lstsq(wide, outside, driver="gelsd").solution.float()
    return solution[:-1].T, solution[-1]


def error(compressor: StitchedCompressor, state: State, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> float:
    """Return the mean square that a stitch misses by."""
    joint = compressor.family.joints[name]
    front, back = (activations(compressor, state, number, x) for number in (joint.front, joint.back))
    missed = [(front[j + 1] @ weight.T + bias - back[k]).square().mean() for j, k in joint.places]
    return float(sum(missed))


def specs_of(offers: list[Offer]) -> set[SubModelSpec]:
    return {offer.spec for offer in offers}


# Routes


@pytest.mark.parametrize(("model", "method", "options"), FAMILIES)
def test_a_route_is_its_anchors_blocks_and_stitches_one_after_another(
    model: ModelConfig, method: str, options: dict[str, Any]
) -> None:
    compressor = make(model, method, **options, **({"rank": 2} if method == "snnetv2" else {}))
    draws = torch.Generator().manual_seed(2)
    state = {n: t + 0.1 * torch.randn(t.shape, generator=draws) for n, t in compressor.initial(1).items()}
    compressor.prepare(state, None, Moment(1, 10))
    x = drawn(model, 3).x
    for offer in compressor.specs():
        route = compressor.family.route(offer.spec.route)
        module = build(model, offer.spec)
        module.load_state_dict(compressor.compress(offer.spec))
        networks = [anchor(compressor, state, number) for number in range(2)]
        y = networks[route.segments[0].anchor].enter(x)
        for segment, stitch in zip(route.segments, (*route.stitches, None), strict=True):
            for block in chain(model, networks[segment.anchor])[segment.start : segment.stop]:
                y = block(y)
            if stitch is None:
                continue
            weight = state[f"stitches.{stitch}.weight"]
            if method == "snnetv2":
                weight = weight + state[f"stitches.{stitch}.up.weight"] @ state[f"stitches.{stitch}.down.weight"] / 2
            axis = -1 if model.name == "vit" else 1
            y = (y.movedim(axis, -1) @ weight.T + state[f"stitches.{stitch}.bias"]).movedim(-1, axis)
        expected = networks[route.segments[-1].anchor].leave(y)
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("model", "method", "options"), FAMILIES)
def test_a_route_holds_what_it_uses_and_no_more(model: ModelConfig, method: str, options: dict[str, Any]) -> None:
    compressor = make(model, method, **options)
    for offer in compressor.specs():
        module = build(model, offer.spec)
        module(drawn(model, 2).x).square().sum().backward()
        idle = [name for name, weight in module.named_parameters() if weight.grad is None]
        # A low-rank stitch keeps its weight.
        assert {name.rsplit(".", 1)[1] for name in idle} <= ({"weight"} if method == "snnetv2" else set())
        assert all(name.startswith("stitches.") for name in idle)


def test_anchors_of_different_depth_have_the_first_blocks_and_tensors_of_their_own() -> None:
    compressor = make(DEEP_RESNET, depths=[[1, 1], [3, 2]])
    state = compressor.initial(1)
    compressor.prepare(state, None, Moment(1, 10))
    for number, counts in enumerate(((1, 1), (3, 2))):
        for stage, count in enumerate(counts):
            path = f"anchors.{number}.stages.{stage}."
            found = {name.removeprefix(path).partition(".")[0] for name in state if name.startswith(path)}
            assert found == {str(block) for block in range(count)}
    # A device builds it from what travels; tables need not tell what all sizes have.
    for offer in compressor.specs():
        assert offer.spec.label == f"snnet route {offer.spec.route}"
        module = build(DEEP_RESNET, SubModelSpec.from_json(offer.spec.to_json()))
        module.load_state_dict(compressor.compress(offer.spec))
    with pytest.raises(SpecError, match="depths"):
        build(DEEP_RESNET, replace(compressor.whole, depths=((4, 2), (4, 2))))


def test_the_whole_is_every_tensor_and_as_a_model_the_largest_anchor() -> None:
    compressor = make(VIT)
    state = compressor.initial(3)
    compressor.prepare(state, None, Moment(1, 10))
    module = build(VIT, compressor.whole)
    assert isinstance(module, Supernet)
    module.load_state_dict(compressor.compress(compressor.whole))
    assert {name for name, _ in module.named_parameters()} == set(state)
    x = drawn(VIT, 4).x
    assert torch.equal(module(x), anchor(compressor, state, 1)(x))


def test_the_supernet_trains_a_route_a_step_each_as_likely() -> None:
    module = build(VIT, SubModelSpec("snnet", nested=WIDTHS))
    assert isinstance(module, Supernet)
    examples, step = drawn(VIT, 2), Step(torch.Generator().manual_seed(0))
    expected = {nn.functional.cross_entropy(module.run(r, examples.x), examples.y).item() for r in module.routes}
    assert len(expected) == len(module.routes) == 2 + 7
    counts = Counter(module.loss(examples.x, examples.y, step).item() for _ in range(450))
    assert set(counts) == expected
    assert 25 < min(counts.values()) <= max(counts.values()) < 80
    module.choose = lambda draws: module.routes[int(torch.randint(2, (), generator=draws))]
    assert len({module.loss(examples.x, examples.y, step).item() for _ in range(40)}) == 2


def test_a_stitch_is_low_rank_only_where_that_is_fewer_numbers() -> None:
    # Between 4 and 8 channels, and between 6 and 12.
    for rank, whole in ((0, 6), (1, 0), (2, 0), (3, 4), (4, 6), (8, 6)):
        model = ModelConfig("resnet", (1, 8, 8), classes=4, widths=(8, 12), blocks=(2, 2), group=2)
        stitches = two_way(model, WIDTHS).joints
        module = build(model, SubModelSpec("snnetv2", nested=WIDTHS, rank=rank))
        made = {name: module.stitches[name] for name in stitches}
        assert len(made) == 6
        for name, joint in stitches.items():
            low = 0 < rank * (joint.inside + joint.outside) < joint.inside * joint.outside
            assert isinstance(made[name], LowRankStitch) == low
            trained = sum(p.numel() for p in made[name].parameters() if p.requires_grad)
            assert trained <= (joint.inside + 1) * joint.outside
        assert sum(not isinstance(stitch, LowRankStitch) for stitch in made.values()) == whole


def test_anchors_and_the_largest_routes_within_the_tiers_budgets_are_exported() -> None:
    compressor = make(VIT, widths=(0.25, 0.5, 1.0))
    exported = {offer.spec: offer.cost for offer in compressor.specs() if offer.exported}
    anchors = [replace(compressor.whole, route=number) for number in (1, 2, 3)]
    assert set(anchors) < set(exported)
    for width, spec in zip((0.25, 0.5, 1.0), anchors, strict=True):
        # But for the names of its tensors.
        assert replace(exported[spec], header=0) == replace(width_cost(VIT, width, TRAINING), header=0)
    others = set(exported) - set(anchors)
    assert 1 <= len(others) <= 3
    for width in (0.5, 1.0):
        budget = width_cost(VIT, width, TRAINING)
        within = [
            offer.cost.training_macs
            for offer in compressor.specs()
            if offer.spec not in anchors
            and offer.cost.training_macs <= budget.training_macs
            and offer.cost.memory <= budget.memory
            and offer.cost.bytes_down <= budget.bytes_down
        ]
        assert max(within) in {exported[spec].training_macs for spec in others}


# Least-squares start


@pytest.mark.parametrize(("model", "method", "options"), FAMILIES)
def test_stitches_start_from_least_squares_on_the_proxy_set(
    model: ModelConfig, method: str, options: dict[str, Any]
) -> None:
    compressor = make(model, method, warmup=0.5, **options)
    state = compressor.initial(1)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    for number in (1, 2):
        compressor.prepare(state, proxy(model), Moment(number, 4))
        sent = compressor.compress(compressor.whole)
        assert all(torch.equal(sent[name], state[name]) for name in state)
        assert not compressor.memory()
    compressor.prepare(state, proxy(model), Moment(3, 4))
    sent, x = compressor.compress(compressor.whole), proxy(model).training.x
    for name in compressor.family.joints:
        found = sent[f"stitches.{name}.weight"], sent[f"stitches.{name}.bias"]
        expected = least_squares(compressor, state, name, x)
        # Channels that hardly vary leave the weights open; what counts is how close they come.
        best = error(compressor, state, name, x, *expected)
        assert error(compressor, state, name, x, *found) <= 1.001 * best + 1e-6
        random = state[f"stitches.{name}.weight"], state[f"stitches.{name}.bias"]
        assert error(compressor, state, name, x, *random) > 2 * best
    assert all(torch.equal(state[name], kept[name]) for name in state)
    changed = {name for name in state if not torch.equal(sent[name], state[name])}
    assert all(name.startswith("stitches.") and "up" not in name and "down" not in name for name in changed)
    later = {name: tensor + 0.01 for name, tensor in state.items()}
    compressor.prepare(later, None, Moment(4, 4))
    again = compressor.compress(compressor.whole)
    for name in state:
        torch.testing.assert_close(again[name], sent[name] + 0.01)


def started(model: ModelConfig = VIT, method: str = "snnet", **options: Any) -> tuple[StitchedCompressor, State]:
    compressor = make(model, method, warmup=0, **options)
    draws = torch.Generator().manual_seed(2)
    state = {n: t + 0.1 * torch.randn(t.shape, generator=draws) for n, t in compressor.initial(1).items()}
    compressor.prepare(state, proxy(model), Moment(1, 4))
    return compressor, state


@pytest.mark.parametrize("method", ["snnet", "snnetv2"])
def test_behind_the_start_what_comes_back_unchanged_changes_nothing_and_a_change_arrives(method: str) -> None:
    compressor, state = started(method=method)
    for offer in compressor.specs():
        sent = compressor.compress(offer.spec)
        for name, patch in compressor.dilate(sent, offer.spec).items():
            assert torch.equal(patch.values, state[name])
        accumulator = Accumulator(state)
        accumulator.fold(compressor.dilate({n: t + 0.5 for n, t in sent.items()}, offer.spec), 3.0)
        deltas, masks = accumulator.mean()
        for name in state:
            assert bool(masks[name].all()) == (name in sent) == bool(masks[name].any())
            if name in sent:
                torch.testing.assert_close(deltas[name], torch.full_like(deltas[name], 0.5), rtol=0, atol=1e-5)


def test_a_resumed_compressor_has_the_same_start() -> None:
    for options in ({"initialise": "proxy"}, {"initialise": "none"}, {"depths": [[1], [3]]}):
        compressor, state = started(**options)
        other = make(VIT, warmup=0, **options)
        memory = {name: tensor.clone() for name, tensor in compressor.memory().items()}
        other.resume(state, None, Moment(2, 4), memory)
        for offer in compressor.specs():
            found, expected = other.compress(offer.spec), compressor.compress(offer.spec)
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        fits = {f"device-{k}": compressor.specs() for k in range(20)}
        assert other.assign(fits, Moment(2, 4, 9)) == compressor.assign(fits, Moment(2, 4, 9))
        other.prepare(state, None, Moment(3, 4))


def test_the_server_trains_stitches_only_once_they_have_started() -> None:
    for warmup, moved in ((0.5, False), (0.0, True)):
        compressor = make(VIT, warmup=warmup)
        state = compressor.initial(1)
        compressor.prepare(state, proxy(VIT), Moment(1, 4))
        after = compressor.learn(state, proxy(VIT), TrainConfig(epochs=4, batch_size=4), Moment(1, 4, 3))
        stitches = [name for name in state if name.startswith("stitches.")]
        assert any(not torch.equal(after[name], state[name]) for name in stitches) == moved
        assert not torch.equal(after["anchors.0.classifier.bias"], state["anchors.0.classifier.bias"])


def test_a_start_from_the_proxy_set_needs_one() -> None:
    compressor = make(VIT, warmup=0)
    with pytest.raises(SpecError, match='initialise = "devices"'):
        compressor.prepare(compressor.initial(1), None, Moment())


# Statistics of devices


@pytest.mark.parametrize(("model", "method", "options"), FAMILIES)
def test_means_of_devices_solve_as_all_their_examples_together(
    model: ModelConfig, method: str, options: dict[str, Any]
) -> None:
    compressor = make(model, method, initialise="devices", warmup=0.25, **options)
    state = compressor.initial(1)
    gathering = next(offer.spec for offer in compressor.specs() if offer.spec.bases)
    sums = {name for name in state if name.startswith("sums.")}
    expected = expected_state(model, gathering)
    assert gathering.bases == (0, 1)
    assert sums
    compressor.prepare(state, None, Moment(1, 4))
    compressor.prepare(state, None, Moment(2, 4))
    shards = [drawn(model, count, seed) for seed, count in enumerate((19, 50, 8))]
    accumulator = Accumulator(state)
    for seed, examples in enumerate(shards):
        sent = compressor.compress(gathering)
        trained = train(model, gathering, sent, TRAINING, seed, examples)
        task = Task("t", 2, "d", gathering, sent, TRAINING, seed)
        check(Update(task, trained.state, len(examples), trained.loss, 0.0), expected, len(examples), 3)
        contribution = compressor.dilate(trained.state, gathering)
        assert contribution.keys() == sums
        accumulator.fold(contribution, len(examples))
    state = ServerOptimiser(ServerOptimiserConfig()).step(state, *accumulator.mean())
    compressor.prepare(state, None, Moment(3, 4))
    sent, x = compressor.compress(compressor.whole), torch.cat([examples.x for examples in shards])
    for name in compressor.family.joints:
        found = sent[f"stitches.{name}.weight"], sent[f"stitches.{name}.bias"]
        best = error(compressor, state, name, x, *least_squares(compressor, state, name, x))
        assert error(compressor, state, name, x, *found) <= 1.001 * best + 1e-6
    assert compressor.memory()


def test_statistics_forget_the_task_before_and_what_they_were_sent() -> None:
    compressor = make(VIT, initialise="devices")
    compressor.prepare(compressor.initial(1), None, Moment(1, 4))
    spec = next(offer.spec for offer in compressor.specs() if offer.spec.bases)
    sent, examples = compressor.compress(spec), drawn(VIT, 20)
    train(VIT, spec, sent, TRAINING, 1, drawn(VIT, 30, 9))
    dirty = {name: tensor + 3 if name.startswith("sums.") else tensor for name, tensor in sent.items()}
    found = train(VIT, spec, dirty, TRAINING, 1, examples)
    assert found.loss == 0
    gram = found.state["sums.0-1-0.gram"]
    front = activations(compressor, compressor.initial(1), 0, examples.x)
    rows = torch.cat([front[j + 1] for j, _ in compressor.family.joints["0-1-0"].places])
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


def peak(module: nn.Module, x: Tensor) -> int:
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
    [(VIT, ()), (replace(RESNET, input_shape=(1, 32, 32)), ()), (DEEP_VIT, ((2,), (5,)))],
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

    # 64 examples of 4 tokens and 16 channels, float32.
    entry = 64 * 4 * 16 * 4
    assert took(9, 9) - took(3, 3) < entry
    assert took(18, 6) - took(6, 2) < entry


def test_statistics_need_no_memory_for_gradients() -> None:
    compressor = make(VIT, initialise="devices")
    cost = {offer.spec: offer.cost for offer in compressor.specs()}
    gathering = next(spec for spec in cost if spec.bases)
    weights = dict(build(VIT, gathering).named_parameters())
    assert {n for n, weight in weights.items() if weight.requires_grad} == {n for n in weights if n.startswith("sums.")}
    assert isinstance(build(VIT, gathering), Statistics)
    # Twice for the sums, which count as trained: beside them a gradient and a momentum at most.
    sums = sum(weight.nbytes for name, weight in weights.items() if name.startswith("sums."))
    inputs = TRAINING.batch_size * 64 * 4
    taken = peak(build(VIT, gathering), drawn(VIT, TRAINING.batch_size).x)
    assert 0 <= cost[gathering].memory - (cost[gathering].bytes_down + inputs + taken) <= 2 * sums
    assert cost[gathering].training_macs == cost[gathering].forward_macs
    assert not next(offer for offer in compressor.specs() if offer.spec == gathering).exported


def held(compressor: StitchedCompressor, state: State, pair: tuple[int, int]) -> State:
    """Return the state after devices gave the statistics of a pair of anchors."""
    spec = next(offer.spec for offer in compressor.specs() if offer.spec.bases == pair)
    module = build(VIT, spec)
    module.load_state_dict(compressor.compress(spec))
    module.loss(drawn(VIT, 20).x, torch.zeros(20), Step(torch.Generator()))
    return {**state, **{n: w.detach() for n, w in module.named_parameters() if n.startswith("sums.")}}


def test_anchors_come_first_then_statistics_then_routes() -> None:
    compressor = make(VIT, widths=(0.25, 0.5, 1.0), initialise="devices", warmup=0.25, statistics=2)
    offers, state = compressor.specs(), compressor.initial(1)
    small = [offer for offer in offers if offer.cost.training_macs <= width_cost(VIT, 0.25, TRAINING).training_macs]
    small = [offer for offer in small if not offer.spec.bases]
    assert [offer.spec.route for offer in small] == [1]
    fits = {**{f"device-{k:02d}": offers for k in range(12)}, "small": small}

    def given(number: int) -> Counter[tuple[int, ...]]:
        found = compressor.assign(fits, Moment(number, 8, number))
        assert found["small"] == small[0]
        return Counter((offer.spec.bases or (offer.spec.route,)) for name, offer in found.items() if name != "small")

    compressor.prepare(state, None, Moment(1, 8))
    assert set(given(1)) | set(given(2)) == {(1,), (2,), (3,)}
    compressor.prepare(state, None, Moment(3, 8))
    assert given(3) == {(0, 1): 6, (1, 2): 6}
    # One pair came in; the other one is asked for once more.
    state = held(compressor, state, (0, 1))
    compressor.prepare(state, None, Moment(4, 8))
    assert given(4) == {(1, 2): 12}
    assert not compressor.memory()
    # Nobody could hold it: its stitches keep their random start, and routes open.
    compressor.prepare(state, None, Moment(5, 8))
    routes = sum((given(number) for number in range(5, 9)), Counter())
    assert all(len(key) == 1 for key in routes)
    assert max(routes) > (3,)
    assert {name for name in compressor.memory() if name != "open"} == {
        f"stitches.0-1-{k}.{part}" for k in (0, 1) for part in ("weight", "bias")
    }


def test_an_abandoned_round_delays_the_start_and_a_resumed_one_asks_for_what_is_missing() -> None:
    compressor = make(VIT, widths=(0.25, 0.5, 1.0), initialise="devices", warmup=0.25, statistics=3)
    fits = {f"device-{k}": compressor.specs() for k in range(4)}
    state = compressor.initial(1)
    compressor.prepare(state, None, Moment(3, 8))
    state = held(compressor, state, (1, 2))
    other = make(VIT, widths=(0.25, 0.5, 1.0), initialise="devices", warmup=0.25, statistics=3)
    other.resume(state, None, Moment(4, 8), compressor.memory())
    for number in (4, 7):
        assert {offer.spec.bases for offer in other.assign(fits, Moment(number, 8)).values()} == {(0, 1)}
    other.prepare(held(other, state, (0, 1)), None, Moment(8, 8))
    assert len(other.memory()) == 1 + 2 * len(other.family.joints)


def test_a_device_that_only_statistics_fit_is_given_them() -> None:
    compressor = make(VIT, initialise="devices", warmup=0.5)
    compressor.prepare(compressor.initial(1), None, Moment(1, 8))
    only = [offer for offer in compressor.specs() if offer.spec.bases]
    assert compressor.assign({"odd": only}, Moment(1, 8)) == {"odd": only[0]}


# Drawing routes


def test_routes_are_drawn_uniformly_among_those_that_fit_anew_each_round() -> None:
    compressor, _ = started(widths=(0.5, 1.0))
    offers = compressor.specs()
    fits = {f"device-{k:03d}": offers[:4] for k in range(100)}
    rounds = [compressor.assign(fits, Moment(number, 8, number)) for number in range(1, 7)]
    counts = Counter(offer.spec for given in rounds for offer in given.values())
    assert set(counts) == specs_of(offers[:4])
    assert 110 < min(counts.values()) <= max(counts.values()) < 190
    assert rounds[0] != rounds[1]
    assert rounds[0] == compressor.assign(fits, Moment(1, 8, 1))


def offer(macs: int, route: int) -> Offer:
    return Offer(SubModelSpec("snnetv2", route=route), Cost(1, macs, 3 * macs, 1, 1, 1, 1))


def test_evenly_spaced_routes_of_twelve_blocks_fall_into_thirteen_groups() -> None:
    family = two_way(ModelConfig("vit", (1, 8, 8), 4, (16,), (12,), group=4), (0.25, 1.0))
    offers = []
    for number, route in enumerate(family.routes, 1):
        large = sum(segment.stop - segment.start for segment in route.segments if segment.anchor)
        offers.append(offer(1000 + 100 * large + len(route.stitches), number))
    found = groups(offers, gap=(2200 - 1000) / (2 * 12))
    assert [len(group) for group in found] == [1, *[12] * 11, 1]
    assert groups([], 1.0) == []


def test_a_group_opens_where_a_route_exceeds_the_first_of_the_one_before() -> None:
    offers = [offer(macs, number) for number, macs in enumerate((16, 10, 15, 14, 21, 20), 1)]
    found = [[each.cost.forward_macs for each in group] for group in groups(offers, 5.0)]
    assert found == [[10, 14, 15], [16, 20, 21]]


def test_a_group_is_drawn_first_and_then_a_route_of_it() -> None:
    model = replace(VIT, blocks=(4,))
    compressor = make(model, "snnetv2", warmup=0, initialise="none", rank=2)
    compressor.prepare(compressor.initial(1), None, Moment(1, 8))
    fits = {f"device-{k:03d}": compressor.specs() for k in range(350)}
    given = compressor.assign(fits, Moment(1, 8, 1))
    sizes = [len(group) for group in groups(compressor.specs(), compressor._gap)]
    assert sizes == [1, *[4] * 3, 1]
    counts = Counter(each.spec.route for each in given.values())
    # 14 routes in 5 groups: an anchor is drawn once in 5 times, not once in 14.
    assert 45 < counts[1] < 95
    assert 45 < counts[2] < 95


def test_the_server_draws_routes_as_for_a_device_that_all_fit(monkeypatch) -> None:
    taken = Counter[str]()

    def run(module: Stitched, route: Route, x: Tensor) -> Tensor:
        taken[str(route)] += 1
        return x.new_zeros(len(x), 4, requires_grad=True)

    monkeypatch.setattr(Supernet, "run", run)
    # In 300 steps an anchor is one of 12 routes; by the rule of the second version it is one of 5 groups alone.
    for method, options, low, high in (("snnet", {}, 8, 45), ("snnetv2", {"rank": 2}, 40, 85)):
        compressor = make(replace(VIT, blocks=(4,)), method, warmup=0, initialise="none", **options)
        state = compressor.initial(1)
        compressor.prepare(state, None, Moment(1, 8))
        taken.clear()
        compressor.learn(state, proxy(compressor.family.model), TrainConfig(epochs=25, batch_size=2), Moment(1, 8, 3))
        assert all(low <= taken[str(route)] <= high for route in compressor.family.routes[:2])


# A whole run


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("snnet", {"initialise": "devices"}),
        ("snnet", {"initialise": "proxy", "depths": [[1], [2]]}),
        ("snnetv2", {"initialise": "proxy"}),
    ],
    ids=["snnet", "snnet-unpaired", "snnetv2"],
)
def test_a_federation_trains_its_routes(method: str, options: dict[str, Any]) -> None:
    document = {
        "method": method,
        "data": {"proxy": 40},
        "partition": {"kind": "iid"},
        "model": {"name": "vit", "widths": [16], "blocks": [2], "group": 4, "patch": 2},
        "training": {"optimiser": "adam", "learning_rate": 0.01, "epochs": 2, "batch_size": 16},
        "rounds": {"count": 6, "evaluate_every": 6},
        "methods": {method: {"warmup": 0.5, **options}},
        "tiers": {"large": {"devices": 4, "width": 1.0}, "small": {"devices": 2, "width": 0.5}},
    }
    last = simulate(make_federation(parse(document, "test"))).rounds[-1]
    assert last.updates == 6
    assert len(last.tier_accuracy) == 3
    # A guess is right once in ten times.
    assert last.tier_accuracy[f"{method} route 1" + (" rank 8" if method == "snnetv2" else "")] > 0.4
    assert min(last.tier_accuracy.values()) > 0.15


def test_statistics_need_a_server_that_is_linear() -> None:
    document = {"method": "snnet", "server": {"name": "fedadam"}, "methods": {"snnet": {"initialise": "devices"}}}
    with pytest.raises(ExperimentError, match=r'methods.snnet.initialise "devices": .*not "fedadam"'):
        parse(document, "test")
    parse(document | {"method": "width"}, "test")
    parse(document | {"server": {"name": "fedavgm"}}, "test")


def test_frozen_parameters_and_statistics_are_trained_apart_in_a_batch() -> None:
    for method, options, wanted in (("snnet", {}, True), ("snnetv2", {"rank": 2}, False)):
        compressor = make(VIT, method, initialise="devices", **options)
        stitched = next(o.spec for o in compressor.specs() if o.spec.route == 3)
        assert isinstance(build(VIT, stitched), Stitched)
        assert (program(VIT, stitched, torch.device("cpu")) is not None) == wanted
        gathering = next(o.spec for o in compressor.specs() if o.spec.bases)
        assert program(VIT, gathering, torch.device("cpu")) is None
