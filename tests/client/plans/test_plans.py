"""A module under a plan computes what it computes without one."""

import os
import signal
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from diastole.client.apart import can_fork
from diastole.client.errors import PlanError
from diastole.client.plans import cache
from diastole.client.plans import search as searching
from diastole.client.plans.apply import apply, arrange, running
from diastole.client.plans.choose import best, choose
from diastole.client.plans.convolvers import macs
from diastole.client.plans.plan import REFERENCE, Layer, Plan
from diastole.client.plans.planned import FOUND, SEARCH_BYTES, SEARCH_MEMORY, _affordable, plan_for
from diastole.client.plans.search import WORTH_MACS, Search, search, why
from diastole.client.plans.trace import Tracer
from diastole.client.plans.trial import ROUGHEST, TOLERANCE, Trial
from diastole.client.training import train
from diastole.client.walls import UNSEEN
from diastole.models.methods.widths.width import spec_of, width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state, network
from diastole.models.task import Task
from diastole.models.training import Examples, TrainConfig

needs_fork = pytest.mark.skipif(not can_fork(), reason="trials are made in a fork")
LAST = Plan(channels_last=True, pages=True, pools=True, norms=True)
MOBILE = ModelConfig("mobilenet", (3, 8, 8), 4, (4, 8), blocks=(1, 2))
CNN = ModelConfig("cnn", (2, 8, 8), 4, (4, 8))
RESNET = ModelConfig("resnet", (2, 8, 8), 4, (4, 8), blocks=(1, 2))
CONVNEXT = ModelConfig("convnext", (2, 8, 8), 4, (4, 8), blocks=(1, 2))


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(module(x).square().sum(), list(module.parameters())))


def planned(module: nn.Module, plan: Plan) -> nn.Module:
    changed = deepcopy(module)
    apply(changed, plan)
    arrange(changed)
    return changed


def check(module: nn.Module, x: Tensor, plan: Plan = LAST) -> nn.Module:
    """Compare with float64, and return the module under the plan."""
    changed = planned(module, plan)
    expected = gradients(deepcopy(module).double(), x.double())
    size = max(float(each.abs().max()) for each in expected)
    for ours, exact in zip(gradients(changed, x), expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-5 * size)
    return changed


@pytest.mark.parametrize("width", [0.125, pytest.param(0.0625, marks=pytest.mark.slow)])
def test_the_model_that_crashes_in_channels_last_memory_trains(width: float) -> None:
    widths = tuple(int(width * each) for each in (64, 128, 256, 512))
    module = network(ModelConfig("resnet", (3, 64, 64), 10, widths, blocks=(2, 2, 2, 2)))
    x = torch.randn(2, 3, 64, 64)
    with Tracer(module) as tracer:
        module(x)
    trace = tracer.trace(2, 2)
    assert trace.safe
    choices = choose(trace.uses, torch.float32, 20.0)
    assert choices is not None
    strided = [choice.layer for choice in choices if choice.shape.kernel == (1, 1)]
    assert len(strided) == 3
    assert strided[0].grad_weight != "stock"
    check(module, x, replace(LAST, layers=tuple(choice.layer for choice in choices)))


@pytest.mark.parametrize("way", ["channels-first", "slice"])
@pytest.mark.parametrize("direction", ["forward", "grad_input", "grad_weight"])
def test_each_direction_is_computed_by_itself(way: str, direction: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1, 2), nn.Flatten(), nn.Linear(45, 2))
    check(module, torch.randn(3, 3, 8, 8), replace(LAST, layers=(Layer("1", **{direction: way}),)))


@pytest.mark.parametrize("model", [MOBILE, CNN, RESNET, CONVNEXT])
def test_our_own_networks(model: ModelConfig) -> None:
    check(network(model), torch.randn(3, *model.input_shape))


class Shared(nn.Module):
    """Uses one convolution at two sizes, another through its weight alone, and a ReLU at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()
        self.other = nn.Conv2d(3, 3, 3, padding=1)
        self.body = nn.Sequential(self.relu, nn.MaxPool2d(2))
        self.normal = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x)) - 0.1
        x = self.conv(self.body(x))
        x = F.conv2d(x, self.other.weight.flip(2), self.other.bias)
        pooled: Tensor = self.normal(x).mean((2, 3))
        return pooled


def test_modules_that_do_more_than_their_layers_stay_right() -> None:
    changed = check(Shared(), torch.randn(2, 3, 12, 12))
    assert type(changed.get_submodule("relu")) is nn.ReLU


def test_hooks_names_and_types_stay() -> None:
    module = network(CNN)
    seen: list[tuple[int, ...]] = []
    module.get_submodule("stages.0.2").register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape)))
    changed = planned(module, LAST)
    assert [(n, p.shape, p.dtype) for n, p in changed.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in module.named_parameters()
    ]
    assert all(isinstance(new, type(old)) for new, old in zip(changed.modules(), module.modules(), strict=True))
    changed(torch.randn(1, 2, 8, 8))
    assert seen == [(1, 4, 8, 8)]


@pytest.mark.parametrize(
    ("model", "path"),
    [
        *[(RESNET, path) for path in ("norm", "stages.0.0.norm1", "stages.0.0.norm2")],
        *[(MOBILE, path) for path in ("norm", "stages.1.1.norm2", "stages.1.1.norm3")],
    ],
)
def test_what_is_computed_with_its_neighbours_may_be_watched(model: ModelConfig, path: str) -> None:
    module = planned(network(model), LAST)
    x = torch.randn(2, *model.input_shape)
    expected, seen = module(x), []
    module.get_submodule(path).register_forward_hook(lambda _, __, output: seen.append(output))
    torch.testing.assert_close(module(x), expected)
    assert bool((seen[0] < 0).any())


def test_gradients_can_be_differentiated_and_mapped() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 1, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 1))
    changed = planned(module, replace(LAST, layers=(Layer("0", "slice", "slice", "slice"),)))
    x = torch.randn(2, 2, 4, 4)

    def penalty(net: nn.Module) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(net(leaf).sum(), leaf, create_graph=True)
        return list(torch.autograd.grad(first.square().sum(), list(net.parameters()), allow_unused=True)[:3])

    torch.testing.assert_close(penalty(changed), penalty(module))
    state = dict(module.named_parameters())
    mapped: Callable[[Tensor], Tensor] = torch.func.vmap(
        lambda one: torch.func.functional_call(changed, state, (one[None],))
    )
    torch.testing.assert_close(mapped(x)[:, 0], module(x))


class Strided(nn.Module):
    """Has a convolution that no plan can change, and that is broken in channels-last memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.conv = nn.Parameter(torch.randn(8, 4, 1, 1)), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.conv(x), self.weight, stride=2).mean((2, 3))


def test_a_broken_convolution_out_of_reach_keeps_channels_first() -> None:
    found = search(Strided(), Examples(torch.randn(32, 3, 64, 64), torch.zeros(32, dtype=torch.int64)), TrainConfig())
    assert found.plan == Plan(pages=True)


def test_a_plan_that_changes_results_is_not_used() -> None:
    batch = Examples(torch.randn(4, 2, 8, 8), torch.arange(4))
    trial = Trial(network(CNN), batch, TrainConfig())
    trial.trace()
    assert trial.right(LAST)
    trial = Trial(nn.Sequential(nn.Conv2d(2, 4, 3), Order(), nn.Linear(4, 4)), batch, TrainConfig())
    trial.trace()
    assert not trial.right(LAST)


def test_a_plan_in_bf16_is_right_if_it_rounds_as_pytorchs_own_does() -> None:
    torch.manual_seed(0)
    deep = ModelConfig("resnet", (3, 16, 16), 4, (8, 16, 32, 64), blocks=(2, 2, 2, 2))
    batch, half = Examples(torch.randn(4, 3, 16, 16), torch.arange(4)), replace(LAST, precision="bf16")
    trial = Trial(network(deep), batch, TrainConfig())
    trial.trace()
    # Rounding alone is more than a plan in float32 may be off.
    assert TOLERANCE < trial._error(half) < ROUGHEST
    assert trial.right(half)
    trial = Trial(nn.Sequential(nn.Conv2d(3, 4, 3), Order(), nn.Linear(4, 4)), batch, TrainConfig())
    trial.trace()
    assert not trial.right(half)


@needs_fork
def test_a_step_that_ends_its_process_does_not_end_this_one() -> None:
    module = nn.Sequential(nn.Conv2d(8, 16, 3), nn.MaxPool2d(2), Crashing(), nn.Flatten(), nn.Linear(16 * 49, 4))
    batch = Examples(torch.randn(32, 8, 16, 16), torch.zeros(32, dtype=torch.int64))
    found = search(module, batch, TrainConfig())
    assert not found.plan.channels_last
    assert not any("channels last" in name for name in found.steps)


class Crashing(nn.Module):
    """Ends as a write outside a buffer does, in another order in memory."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_contiguous():
            os.kill(os.getpid(), signal.SIGSEGV)
        return x


class Order(nn.Module):
    """Gives something else for another order in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.is_contiguous() else x.sum((2, 3))


def test_a_search_says_why() -> None:
    module = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 49, 4))
    began = time.perf_counter()
    found = search(module, Examples(torch.randn(32, 8, 16, 16), torch.zeros(32, dtype=torch.int64)), TrainConfig())
    assert found.plan.pages
    assert 0 < found.seconds <= time.perf_counter() - began - found.building
    lines = why(found)
    assert sum("ms a step" in line for line in lines) == len(found.steps) >= 2
    assert any(line.startswith("0, forward: ") and "stock" in line for line in lines)


def test_others_must_be_clearly_faster() -> None:
    assert best({"stock": 1.0, "window": 0.96}) == "stock"
    assert best({"stock": 1.0, "window": 0.9, "slice": 0.8}) == "slice"
    assert best({"window": 2.0}) == "window"
    assert best({"stock": float("inf")}) == best({"stock": float("inf"), "window": 2.0}) == "stock"


def test_plans_travel_as_json() -> None:
    plan = replace(LAST, precision="bf16", threads=2, layers=(Layer("a", "window"), Layer("b", grad_weight="slice")))
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(REFERENCE.to_json()) == REFERENCE
    assert str(plan) == "channels last, bf16, 2 threads, own pooling, own GroupNorm"
    with pytest.raises(PlanError, match=r"plan '{\"nonsense\":1}'"):
        Plan.from_json('{"nonsense":1}')


def test_a_search_that_runs_out_of_memory_leaves_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def starved(*_: object) -> Search:
        torch.empty(1 << 60, dtype=torch.uint8)
        raise AssertionError

    monkeypatch.setattr("diastole.client.plans.planned.search", starved)
    FOUND.clear()
    assert plan_for("fast", CNN, spec_of(1.0), TrainConfig(), memory=1 << 40) == REFERENCE
    assert "no memory to find a fast plan of width 1" in caplog.text
    with pytest.raises(RuntimeError):
        plan_for("fast", CNN, spec_of(1.0), TrainConfig())


def test_a_search_stays_within_its_memory_or_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, training, spec = CNN, TrainConfig(batch_size=64), spec_of(1.0)
    seen = list[int]()

    def sought(module: nn.Module, batch: Examples, *_: object) -> Search:
        seen.append(len(batch))
        return Search(LAST)

    monkeypatch.setattr("diastole.client.plans.planned.search", sought)
    cost = width_cost(model, 1.0, training)

    def found(examples: int) -> Plan:
        FOUND.clear()
        room = SEARCH_BYTES + int(SEARCH_MEMORY * (cost.memory - (64 - examples) * cost.saved))
        return plan_for("fast", model, spec, training, memory=room)

    assert found(1) == REFERENCE
    assert "no memory to look for a fast plan of width 1" in caplog.text
    assert not seen
    assert found(20) == LAST
    assert seen == [16]
    # What was found is there however little memory is left.
    assert found(1) == LAST
    assert seen == [16]


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig("cnn", (1, 28, 28), 10, (32, 64)),
        ModelConfig("simple-cnn", (3, 32, 32), 10, (32, 64, 256)),
        ModelConfig("resnet", (3, 16, 16), 10, (32, 64), (1, 1)),
        ModelConfig("transformer", (9, 64), 6, (64,), (1,), group=16),
    ],
    ids=lambda model: model.name,
)
def test_a_device_with_no_more_memory_than_training_takes_can_afford_a_search(model: ModelConfig) -> None:
    training = TrainConfig()
    for width in (1.0, 0.25):
        cost = width_cost(model, width, training)
        assert _affordable(model, spec_of(width), training, cost.memory + cost.passing + UNSEEN)


def test_slow_convolutions_are_worth_a_search_sooner() -> None:
    module = network(ModelConfig("mobilenet", (3, 8, 8), 10, (8, 8), (1, 1), kernel=7))
    with Tracer(module) as tracer:
        module(torch.randn(2, 3, 8, 8))
    trace = tracer.trace(2, 1)
    plain = sum(macs(use.shape) * use.shape.batch for use in trace.uses)
    assert plain < WORTH_MACS < trace.macs


def test_threads_come_back() -> None:
    before = torch.get_num_threads()
    with running(Plan(threads=before + 1)):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_plan_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # No plan is ever fast enough, so that all searches find the same.
    monkeypatch.setattr(searching, "MARGIN", 0.0)
    model, training = CNN, TrainConfig(batch_size=4)

    def found() -> Plan:
        FOUND.clear()
        return plan_for("fast", model, spec_of(1.0), training)

    assert plan_for("reference", model, spec_of(1.0), training) == REFERENCE
    plan = found()
    assert plan == Plan(pages=True)
    (file,) = cache.folder().glob("*.json")
    file.write_text(replace(plan, threads=3).to_json())
    assert found().threads == 3
    file.write_text("{")
    assert found() == plan
    assert plan_for("fast", model, spec_of(0.5), training) == plan
    assert len(list(cache.folder().glob("*.json"))) == 2
    monkeypatch.setattr(cache, "KEPT", 1)
    cache.write("another", plan)
    assert [path.stem for path in cache.folder().glob("*.json")] == ["another"]
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert found() == plan


def test_training_gives_contiguous_weights_within_tolerance() -> None:
    draws = torch.Generator().manual_seed(0)
    examples = Examples(torch.randn(24, *MOBILE.input_shape, generator=draws), torch.arange(24) % 4)
    state, task = initial_state(MOBILE, 0), Task("task", 1, "device", spec_of(1.0), TrainConfig(batch_size=8), 1)
    expected, found = train(MOBILE, task, state, examples), train(MOBILE, task, state, examples, LAST)
    assert all(tensor.is_contiguous() for tensor in found.state.values())
    for name, tensor in expected.state.items():
        torch.testing.assert_close(found.state[name], tensor, rtol=1e-3, atol=1e-4)
    assert torch.equal(train(MOBILE, task, state, examples).state["stem.weight"], expected.state["stem.weight"])
