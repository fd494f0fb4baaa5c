"""Layouts: which channels the axes of a network's parameters run over, and selecting some of them everywhere."""

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from diastole.models.channels import counts, select
from diastole.models.coordinates import covered, gather, in_place
from diastole.models.cost import Cost
from diastole.models.errors import SpecError
from diastole.models.method import Method
from diastole.models.methods.bases.index import Indexed
from diastole.models.methods.registry import make_method
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import layout, narrowed, network, whole
from diastole.models.networks.shape import Shape
from diastole.models.state import State
from diastole.models.training import TrainConfig

MODELS = {
    "cnn-2d": ModelConfig("cnn", (2, 13, 9), classes=3, widths=(6, 8, 4), group=2),
    "cnn-1d": ModelConfig("cnn", (3, 17), classes=3, widths=(8, 12), group=4),
    "cnn-single": ModelConfig("cnn", (1, 4, 6), classes=2, widths=(6,), group=3),
    "resnet": ModelConfig("resnet", (3, 8, 8), classes=4, widths=(4, 8, 6), blocks=(2, 1, 3), group=2),
    "resnet-even": ModelConfig("resnet", (1, 4, 4), classes=2, widths=(6, 6), blocks=(1, 2), group=3),
}
DRAWS = torch.Generator().manual_seed(0)


def shapes_of(model: ModelConfig, shape: Shape | None = None) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in network(model, shape).named_parameters()}


def loaded(module: nn.Module, state: State) -> nn.Module:
    module.load_state_dict(state)
    return module.eval()


def groups(size: int, kept: int, group: int) -> Tensor:
    """Return `kept` channels of `size`, whole groups in random order."""
    drawn = torch.randperm(size // group, generator=DRAWS)[: kept // group]
    return (drawn.unsqueeze(1) * group + torch.arange(group)).flatten()


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_layout_has_every_axis_of_every_parameter(model: ModelConfig) -> None:
    axes, shapes = layout(model), shapes_of(model)
    assert axes.keys() == shapes.keys()
    for name, shape in shapes.items():
        assert len(axes[name]) == len(shape)
        for axis, size in zip(axes[name], shape, strict=True):
            assert axis is None or size == counts(axes, shapes)[axis.channels] * axis.repeat


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_moving_channels_about_keeps_the_function(model: ModelConfig, random_state) -> None:
    axes, shapes, state = layout(model), shapes_of(model), random_state(model)
    x, changed = torch.randn(4, *model.input_shape, generator=DRAWS), 0
    for _ in range(5):
        moved = {name: groups(size, size, model.group) for name, size in counts(axes, shapes).items()}
        permuted = gather(state, in_place(select(axes, shapes, moved)))
        changed += any(not torch.equal(permuted[name], tensor) for name, tensor in state.items())
        with torch.no_grad():
            expected, logits = loaded(network(model), state)(x), loaded(network(model), permuted)(x)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert changed


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_channels_that_are_kept_are_the_network_without_the_others(model: ModelConfig, random_state) -> None:
    axes, shapes, state = layout(model), shapes_of(model), random_state(model)
    x = torch.randn(4, *model.input_shape, generator=DRAWS)
    for _ in range(5):
        widths = tuple(
            model.group * int(torch.randint(1, width // model.group + 1, (), generator=DRAWS)) for width in model.widths
        )
        shape = Shape(widths, whole(model).blocks)
        sizes = counts(axes, shapes_of(model, shape))
        kept = {name: groups(size, sizes[name], model.group) for name, size in counts(axes, shapes).items()}
        small = gather(state, in_place(select(axes, shapes, kept)))
        # Slow and obvious: in the full network the other channels are silent. A normalisation that gives zero for
        # them makes them so, whatever comes in, and what reads them adds zeros.
        silent = {name: tensor.clone() for name, tensor in state.items()}
        for name, runs in axes.items():
            if len(runs) == 1 and runs[0] is not None:
                for channel in range(shapes[name][0]):
                    if channel not in kept[runs[0].channels].tolist():
                        silent[name][channel] = 0.0
        with torch.no_grad():
            expected, logits = loaded(network(model), silent)(x), loaded(network(model, shape), small)(x)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


# Round trips of random sub-models of random models

TRAINING = TrainConfig(batch_size=1)


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    group = draw(st.integers(1, 3))
    widths = tuple(group * n for n in draw(st.lists(st.integers(1, 4), min_size=1, max_size=2)))
    if draw(st.booleans()):
        blocks = tuple(draw(st.integers(1, 2)) for _ in widths)
        return ModelConfig("resnet", (draw(st.integers(1, 2)), 4, 4), 2, widths, blocks, group)
    shape = draw(st.sampled_from([(1, 4, 4), (2, 5, 7), (2, 6), (1, 9)]))
    return ModelConfig("cnn", shape, 2, widths, group=group)


def indices(method: Indexed, spec: object, state: State) -> Mapping[str, list[list[int]]]:
    """Return, for each tensor of a sub-model, the global indices along each axis."""
    found = {}
    for name, slot in method.slots(spec).items():
        assert slot.source == name
        found[name] = [
            axis.tolist() if isinstance(axis, Tensor) else list(range(*axis.indices(size)))
            for axis, size in zip(slot.region.axes, state[name].shape, strict=True)
        ]
    return found


@given(
    model=models(),
    kind=st.sampled_from(["fedrolex", "width", "fjord"]),
    width=st.floats(0.05, 1.0),
    # Windows of up to four groups are back where they were long before.
    number=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150)
def test_no_coordinate_is_lost_or_counted_twice(
    model: ModelConfig, kind: str, width: float, number: int, seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # What a size costs does not matter here, and measuring it would take nearly all of the time.
        patch.setattr("diastole.models.methods.bases.sliced.cost_of", lambda *_: Cost(*[1] * 7))
        try:
            shape = narrowed(model, width)
        except SpecError:
            with pytest.raises(SpecError, match=f"width {width:g}"):
                make_method(kind, model, (width, 1.0), TRAINING)
            return
        options = {} if kind == "fedrolex" else {"sort": True, "every": seed % 3}
        method = make_method(kind, model, (width, 1.0), TRAINING, options)
    axes, shapes = layout(model), shapes_of(model)
    draws = torch.Generator().manual_seed(seed)
    numbers, first = {}, 0
    for name, size in shapes.items():
        # Every coordinate has a number of its own, and channels an importance that is not the order they lie in.
        numbers[name] = torch.randperm(size.numel(), generator=draws).add(first).float().view(size)
        first += size.numel()
    # Windows move with every round; an order is made once, or every few rounds.
    for each in range(1, number + 1) if kind == "fedrolex" else (1, number):
        method.prepare(numbers, None, Moment(each, 60))
    for spec in {size.spec for size in method.offers()} | {method.whole}:
        small = method.compress(spec)
        expected = shapes if spec.options.width == 1 else shapes_of(model, shape)
        assert {name: tensor.shape for name, tensor in small.items()} == expected
        for name, along in indices(method, spec, numbers).items():
            for axis, places, size in zip(axes[name], along, shapes[name], strict=True):
                assert len(set(places)) == len(places)
                assert all(0 <= place < size for place in places)
                assert axis is not None or places == list(range(size))
        back = method.dilate(small, spec)
        masks = covered(back, numbers)
        taken = torch.cat([tensor.flatten() for tensor in small.values()])
        there = torch.cat([numbers[name][mask] for name, mask in masks.items()])
        assert taken.unique().numel() == taken.numel() == sum(size.numel() for size in expected.values())
        assert torch.equal(taken.sort().values, there.sort().values)
        for name, patch_ in back.items():
            rebuilt = torch.full(shapes[name], -1.0)
            patch_.region.put_(rebuilt, patch_.values)
            assert torch.equal(rebuilt[masks[name]], numbers[name][masks[name]])
        if spec.options.width == 1:
            assert all(mask.all() for mask in masks.values())


@given(model=models(), width=st.floats(0.3, 1.0), start=st.integers(1, 12))
@settings(max_examples=40)
def test_a_rolling_window_leaves_no_channel_out(model: ModelConfig, width: float, start: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diastole.models.methods.bases.sliced.cost_of", lambda *_: Cost(*[1] * 7))
        try:
            method: Method = make_method("fedrolex", model, (width,), TRAINING)
        except SpecError:
            return
    spec = method.offers()[0].spec
    state = {name: torch.zeros(shape) for name, shape in shapes_of(model).items()}
    largest = max(counts(layout(model), shapes_of(model)).values()) // model.group
    seen = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in state.items()}
    for number in range(1, start + largest):
        method.prepare(state, None, Moment(number, 200))
        if number < start:
            continue
        for name, mask in covered(method.dilate(method.compress(spec), spec), state).items():
            seen[name] |= mask
    for mask in seen.values():
        for dim in range(mask.dim()):
            # Not every weight between two channels that are never in a window together, but every channel's own.
            assert mask.movedim(dim, 0).reshape(mask.shape[dim], -1).any(1).all()
