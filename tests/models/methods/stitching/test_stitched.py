"""The modules of stitched networks, and which of them are shown."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from stitching import DEEP_RESNET, FAMILIES, TRAINING, UNPAIRED, VIT, WIDE_VIT, WIDTHS, anchor, drawn, make
from torch import nn

from diastole.models.errors import SpecError
from diastole.models.methods.registry import build, read_spec
from diastole.models.methods.stitching.routes import chain, two_way
from diastole.models.methods.stitching.stitched import EveryRoute, Part, Stitched, spec_of
from diastole.models.methods.stitching.stitches import LowRankStitch
from diastole.models.methods.widths.width import width_cost
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.training import Step
from diastole.simulations.engines.stacked import program


@pytest.mark.parametrize(("model", "method", "options"), FAMILIES)
def test_a_route_is_its_anchors_blocks_and_stitches_one_after_another(
    model: ModelConfig, method: str, options: dict[str, Any]
) -> None:
    made = make(model, method, **options | ({"rank": 2} if method == "snnetv2" else {}))
    draws = torch.Generator().manual_seed(2)
    state = {n: t + 0.1 * torch.randn(t.shape, generator=draws) for n, t in made.initial(1).items()}
    made.prepare(state, None, Moment(1, 10))
    x, networks = drawn(model, 3).x, [anchor(made, state, number) for number in range(2)]
    for size in made.offers():
        route = made.family.route(size.spec.options.route)
        module = build(model, size.spec)
        module.load_state_dict(made.compress(size.spec))
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
    for size in make(model, method, **options).offers():
        module = build(model, size.spec)
        module(drawn(model, 2).x).square().sum().backward()
        idle = [name for name, weight in module.named_parameters() if weight.grad is None]
        # A low-rank stitch keeps its weight.
        assert {name.rsplit(".", 1)[1] for name in idle} <= ({"weight"} if method == "snnetv2" else set())
        assert all(name.startswith("stitches.") for name in idle)


def test_anchors_of_different_depth_have_the_first_blocks_and_tensors_of_their_own() -> None:
    made = make(DEEP_RESNET, **UNPAIRED)
    state = made.initial(1)
    made.prepare(state, None, Moment(1, 10))
    for number, counts in enumerate(((1, 1), (3, 2))):
        for stage, count in enumerate(counts):
            path = f"anchors.{number}.stages.{stage}."
            found = {name.removeprefix(path).partition(".")[0] for name in state if name.startswith(path)}
            assert found == {str(block) for block in range(count)}
    # A device builds it from what travels; tables need not tell what all sizes have.
    for size in made.offers():
        assert size.spec.label == f"snnet route {size.spec.options.route}"
        module = build(DEEP_RESNET, read_spec(size.spec.to_json()))
        module.load_state_dict(made.compress(size.spec))
    with pytest.raises(SpecError, match="depths"):
        build(DEEP_RESNET, spec_of("snnet", Part(WIDTHS, depths=((4, 2), (4, 2)))))


@pytest.mark.parametrize(
    "options",
    [
        '{"widths": []}',
        '{"widths": [0.5, 1.5]}',
        '{"widths": [1], "bases": [0]}',
        '{"widths": [1], "route": -1}',
        '{"widths": [1], "rank": 1e9}',
        '{"widths": [1], "depths": [[1000000000]]}',
        '{"widths": [1], "density": 0.5}',
        "{}",
    ],
)
def test_parts_that_there_cannot_be_are_refused_when_they_are_read(options: str) -> None:
    with pytest.raises(SpecError, match="sub-model spec"):
        read_spec(f'{{"method": "snnet", "label": "odd", "options": {options}}}')


def test_the_whole_is_every_tensor_and_as_a_model_the_largest_anchor() -> None:
    made = make(VIT)
    state = made.initial(3)
    made.prepare(state, None, Moment(1, 10))
    module = build(VIT, made.whole)
    assert isinstance(module, EveryRoute)
    module.load_state_dict(made.compress(made.whole))
    assert {name for name, _ in module.named_parameters()} == set(state)
    x = drawn(VIT, 4).x
    assert torch.equal(module(x), anchor(made, state, 1)(x))


@pytest.mark.slow
def test_every_route_is_as_likely_to_be_trained_in_a_step() -> None:
    module = build(VIT, spec_of("snnet", Part(WIDTHS)))
    assert isinstance(module, EveryRoute)
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
        module = build(model, spec_of("snnetv2", Part(WIDTHS, rank=rank)))
        made = {name: module.stitches[name] for name in stitches}
        assert len(made) == 6
        for name, joint in stitches.items():
            low = 0 < rank * (joint.inside + joint.outside) < joint.inside * joint.outside
            assert isinstance(made[name], LowRankStitch) == low
            trained = sum(p.numel() for p in made[name].parameters() if p.requires_grad)
            assert trained <= (joint.inside + 1) * joint.outside
        assert sum(not isinstance(stitch, LowRankStitch) for stitch in made.values()) == whole


@pytest.mark.slow
def test_anchors_and_the_largest_routes_within_the_tiers_budgets_are_exported() -> None:
    made = make(WIDE_VIT, widths=(0.25, 0.5, 1.0))
    exported = {size.spec: size.cost for size in made.offers() if size.exported}
    anchors = [spec_of("snnet", replace(made.whole.options, route=number)) for number in (1, 2, 3)]
    assert set(anchors) < set(exported)
    for width, spec in zip((0.25, 0.5, 1.0), anchors, strict=True):
        # But for the names of its tensors.
        assert replace(exported[spec], header=0) == replace(width_cost(WIDE_VIT, width, TRAINING), header=0)
    others = set(exported) - set(anchors)
    assert 1 <= len(others) <= 3
    for width in (0.5, 1.0):
        budget = width_cost(WIDE_VIT, width, TRAINING)
        within = [
            size.cost.training_macs
            for size in made.offers()
            if size.spec not in anchors
            and size.cost.training_macs <= budget.training_macs
            and size.cost.memory <= budget.memory
            and size.cost.bytes_down <= budget.bytes_down
        ]
        assert max(within) in {exported[spec].training_macs for spec in others}


def test_routes_are_trained_together_in_a_batch_and_statistics_apart() -> None:
    for method, rank in (("snnet", 0), ("snnetv2", 2)):
        stitched = spec_of(method, Part(WIDTHS, route=3, rank=rank))
        assert isinstance(build(VIT, stitched), Stitched)
        assert program(VIT, stitched, torch.device("cpu")) is not None
        assert program(VIT, spec_of(method, Part(WIDTHS, bases=(0, 1), rank=rank)), torch.device("cpu")) is None
