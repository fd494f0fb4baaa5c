"""NeFL: what its contract does not say."""

import math

import pytest
import torch
from torch.nn import functional as F

from diastole.models.accumulator import Accumulator
from diastole.models.methods.bases.budgets import ratios, within
from diastole.models.methods.depths import nefl
from diastole.models.methods.depths.nefl import NeFLConfig, NeFLMethod, depths, spec_of
from diastole.models.methods.registry import cost_of
from diastole.models.methods.widths.width import width_cost
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import narrowed, network
from diastole.models.networks.shape import Shape
from diastole.models.state import state_of
from diastole.models.training import TrainConfig

MODEL = ModelConfig("resnet", (3, 8, 8), classes=3, widths=(8, 8), blocks=(3, 2), group=2)
CNN = ModelConfig("cnn", (1, 8, 8), classes=3, widths=(8, 16), group=2)
VIT = ModelConfig("vit", (1, 8, 8), classes=3, widths=(32,), blocks=(3,), group=4)
MOBILE = ModelConfig("mobilenet", (3, 8, 8), classes=3, widths=(8, 16), blocks=(3, 2), group=2, kernel=7, expand=2.0)
TRAINING = TrainConfig(batch_size=4)
WIDTHS = (1.0, 0.75, 0.5, 0.25)


def test_blocks_are_skipped_from_the_end_of_the_stage_that_has_most() -> None:
    assert [[len(stage) for stage in blocks] for blocks in depths(MODEL)] == [[], [2, 2], [2, 1], [1, 1]]
    assert depths(MODEL)[1] == ((0, 1), (0, 1))
    assert depths(CNN) == [()]


def test_a_fresh_module_is_the_plain_network_of_its_shape() -> None:
    blocks = ((0, 2), (0,))
    module = nefl.build(MODEL, spec_of(0.5, blocks))
    plain = network(MODEL, Shape(narrowed(MODEL, 0.5).widths, blocks))
    values = {name.replace(".block.", "."): tensor for name, tensor in state_of(module).items() if "step" not in name}
    plain.load_state_dict(values)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(module(x), plain(x))
    steps = [name for name, _ in module.named_parameters() if name.endswith(".step")]
    assert steps == ["stages.0.0.step", "stages.0.2.step", "stages.1.0.step"]


def test_a_step_size_scales_the_branch_and_is_learned() -> None:
    module = nefl.build(MODEL, spec_of()).double()
    block, x = module.stages[1][0], torch.randn(2, 8, 8, 8, dtype=torch.float64)
    block.step.data.fill_(0.3)
    inner = block.block
    branch = inner.norm2(inner.conv2(F.relu(inner.norm1(inner.conv1(x)))))
    assert torch.allclose(block(x), F.relu(0.3 * branch + inner.shortcut(x)))
    module(torch.randn(2, 3, 8, 8, dtype=torch.float64)).sum().backward()
    assert block.step.grad is not None
    assert block.step.grad.abs() > 0


@pytest.mark.parametrize(
    ("model", "stepped"),
    [
        (VIT, ["stages.0.0.step", "stages.0.2.step"]),
        (MOBILE, ["stages.0.0.norm3.step", "stages.0.2.norm3.step", "stages.1.1.norm3.step"]),
    ],
    ids=["vit", "mobilenet"],
)
def test_every_block_with_a_shortcut_has_a_step_size_on_what_it_changes(model: ModelConfig, stepped: list[str]) -> None:
    blocks = ((0, 2), (0, 1))[: len(model.widths)]
    module = nefl.build(model, spec_of(0.5, blocks))
    plain, x = network(model, Shape(narrowed(model, 0.5).widths, blocks)), torch.randn(2, *model.input_shape)
    state = {name: tensor for name, tensor in state_of(module).items() if not name.endswith(".step")}
    plain.load_state_dict({name.replace(".block.", "."): tensor for name, tensor in state.items()})
    assert torch.equal(module(x), plain(x))
    steps = {name: p for name, p in module.named_parameters() if name.endswith(".step")}
    assert list(steps) == stepped
    for number, step in enumerate(steps.values()):
        step.data.fill_(0.3 + 0.2 * number)
    factors = {name.split(".step")[0].removesuffix(".norm3"): step.item() for name, step in steps.items()}
    y = plain.enter(x)
    for number, stage in enumerate(plain.stages):
        for name, block in stage.named_children():
            path = f"stages.{number}.{name}"
            y = y + factors[path] * (block(y) - y) if path in factors else block(y)
    torch.testing.assert_close(module(x), plain.leave(y), rtol=1e-4, atol=1e-5)
    module(x).square().sum().backward()
    assert all(step.grad is not None and step.grad != 0 for step in steps.values())


@pytest.mark.parametrize("model", [VIT, MOBILE], ids=["vit", "mobilenet"])
def test_what_every_axis_runs_over_is_said_of_every_shared_tensor(model: ModelConfig) -> None:
    # One width: others are searched for, and their names are the same.
    method = NeFLMethod(model, (1.0,), TRAINING)
    names = {name for name in method.slots(method.whole) if not name.endswith((".step", ".to5", ".to3"))}
    assert names == set(method.axes(model))


def test_width_and_depth_are_balanced_within_each_tier() -> None:
    method = NeFLMethod(MODEL, WIDTHS, TRAINING)
    offered = {size.spec: size.cost for size in method.offers()}

    def parameters(width: float, blocks: tuple[tuple[int, ...], ...]) -> int:
        return sum(p.numel() for p in nefl.build(MODEL, spec_of(width, blocks)).parameters())

    for width in WIDTHS[1:]:
        limit, widest = width_cost(MODEL, width, TRAINING), {}
        for blocks in depths(MODEL):
            for ratio in ratios(MODEL):
                cost = cost_of(MODEL, spec_of(ratio, blocks), TRAINING)
                if ratio <= method.whole.options.width and within(cost, limit):
                    widest[blocks] = ratio
        apart = {}
        for blocks, ratio in widest.items():
            deep = parameters(1.0, blocks)
            apart[spec_of(ratio, blocks)] = abs(
                math.log(parameters(ratio, blocks) / deep) - math.log(deep / parameters(1.0, ()))
            )
        assert min(apart, key=lambda spec: apart[spec]) in offered
    assert method.whole.options.blocks == ()
    assert any(spec.options.blocks and spec.options.width < method.whole.options.width for spec in offered)


def test_norms_and_step_sizes_are_a_sizes_own() -> None:
    method = NeFLMethod(MODEL, WIDTHS, TRAINING)
    for number, spec in enumerate(method.sizes):
        for name, slot in method.slots(spec).items():
            inconsistent = "norm" in name or "shortcut.1" in name or name.endswith(".step")
            assert slot.source == (f"size{number}.{name}" if inconsistent else name)
    cnn = NeFLMethod(CNN, WIDTHS, TRAINING)
    own = {name for name, slot in cnn.slots(cnn.whole).items() if slot.source != name}
    assert own == {f"stages.{stage}.1.{kind}" for stage in (0, 1) for kind in ("weight", "bias")}


def test_inconsistent_parameters_are_averaged_inside_their_size_and_others_over_all_who_hold_them() -> None:
    method = NeFLMethod(MODEL, WIDTHS, TRAINING)
    state = method.initial(0)
    method.prepare(state, None, Moment())
    sizes, cohort = method.sizes, [(0, 1.0, 10), (0, 4.0, 30), (2, -2.0, 20), (len(method.sizes) - 1, 8.0, 40)]
    accumulator = Accumulator(state)
    for size, change, examples in cohort:
        trained = {name: tensor + change for name, tensor in method.compress(sizes[size]).items()}
        accumulator.fold(method.dilate(trained, sizes[size]), examples)
    deltas, masks = accumulator.mean()
    for name, tensor in state.items():
        sums, weights = torch.zeros(tensor.shape).double(), torch.zeros(tensor.shape).double()
        for size, change, examples in cohort:
            for own, slot in method.slots(sizes[size]).items():
                if slot.source == name:
                    where = tuple(slice(0, length) for length in method.compress(sizes[size])[own].shape)
                    sums[where] += change * examples
                    weights[where] += examples
        assert torch.equal(masks[name], weights > 0)
        assert torch.allclose(deltas[name], sums / weights.clamp(min=1), atol=1e-5)
    assert torch.allclose(deltas["size0.norm.weight"], torch.tensor((10 * 1 + 30 * 4) / 40).double(), atol=1e-5)
    assert not masks["size1.norm.weight"].any()
    # The corner of the stem that every size holds.
    everyone = (10 * 1 + 30 * 4 - 20 * 2 + 40 * 8) / 100
    assert deltas["stem.weight"][0, 0, 0, 0].item() == pytest.approx(everyone, abs=1e-5)


def test_devices_train_sizes_near_the_largest_that_fits_them() -> None:
    method = NeFLMethod(MODEL, WIDTHS, TRAINING, NeFLConfig(spread=1))
    sizes = method.offers()
    assert len(sizes) == 4
    seen: dict[str, set[str]] = {"small": set(), "middle": set(), "large": set(), "odd": set()}
    fits = {"small": sizes[:1], "middle": sizes[:3], "large": sizes, "odd": [sizes[0], sizes[3]]}
    for number in range(60):
        for device, size in method.assign(fits, Moment(number, 60, seed=number)).items():
            seen[device].add(size.spec.label)
    labels = [size.spec.label for size in sizes]
    assert seen == {
        "small": {labels[0]},
        "middle": set(labels[1:3]),
        "large": set(labels[2:4]),
        "odd": {labels[3]},
    }
    again = method.assign(fits, Moment(3, 60, seed=3))
    assert again == method.assign(fits, Moment(3, 60, seed=3))


def test_the_default_spread_is_the_papers() -> None:
    assert NeFLConfig().spread == 2
