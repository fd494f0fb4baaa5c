from collections import Counter
from fractions import Fraction
from itertools import pairwise, product
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diastole.models.errors import SpecError
from diastole.models.methods.stitching.routes import (
    Depths,
    Pair,
    Route,
    Segment,
    layers,
    nearest,
    one_way,
    two_way,
    windows,
)
from diastole.models.networks.config import ModelConfig

CNN = ModelConfig("cnn", (1, 16, 16), 4, (8, 16, 24))
RESNET = ModelConfig("resnet", (3, 16, 16), 4, (8, 16), (2, 2))


def vit(depth: int, stages: int = 1) -> ModelConfig:
    blocks = (depth // stages,) * stages
    return ModelConfig("vit", (1, 8, 8), 4, (16,) * stages, blocks, group=4)


@pytest.mark.parametrize(
    ("size", "step", "pairs", "layers"), [(1, 1, 12, 12), (2, 1, 34, 11), (3, 1, 54, 10), (4, 1, 72, 9), (2, 2, 24, 6)]
)
def test_places_and_stitches_of_twelve_blocks_are_the_papers(size: int, step: int, pairs: int, layers: int) -> None:
    owned = windows(12, size, step)
    assert len(owned) == layers
    places = [place for window in owned for place in window]
    assert len(places) == len(set(places)) == pairs
    assert all(abs(j - k) < size for j, k in places)


@pytest.mark.parametrize("stages", [1, 2])
def test_three_anchors_of_twelve_blocks_have_seventy_one_routes_and_twenty_two_stitches(stages: int) -> None:
    family = one_way(vit(12, stages), (1.0, 0.25, 0.5))
    assert len(family.routes) == 71
    assert len(family.joints) == 22
    assert family.meetings == [(0, 1), (1, 2)]
    assert family.widths == (0.25, 0.5, 1.0)
    assert family.routes[:3] == tuple(Route((Segment(anchor, 0, 12),)) for anchor in range(3))
    for route in family.routes[3:]:
        (front, back), (name,) = route.segments, route.stitches
        joint = family.joints[name]
        assert (joint.front, joint.back) == (front.anchor, back.anchor) == (front.anchor, front.anchor + 1)
        assert (front.stop - 1, back.start) in joint.places
        assert (front.start, back.stop) == (0, 12)
        assert (joint.inside, joint.outside) == ((4, 8), (8, 16))[front.anchor]
    served = sum(len(joint.places) for joint in family.joints.values())
    assert served == len(set(family.routes)) - 3


def test_convolutional_blocks_are_stitched_only_where_maps_are_of_one_size() -> None:
    def places(model: ModelConfig) -> set[tuple[int, int]]:
        return {place for joint in one_way(model, (0.5, 1.0)).joints.values() for place in joint.places}

    # Each block halves the map, so the one that follows is the only one to go on with.
    assert places(CNN) == {(0, 1), (1, 2)}
    # Blocks 0 and 1 keep the stem's size; block 2 takes it and halves it.
    assert places(RESNET) == {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 3), (3, 3)}
    joints = one_way(RESNET, (0.5, 1.0)).joints
    assert {(j.inside, j.outside) for j in joints.values()} == {(4, 8), (8, 16)}


# Anchors of different depth


@given(st.integers(1, 30), st.integers(1, 30))
def test_unpaired_places_are_those_of_the_papers_rule(few: int, more: int) -> None:
    many = few + more
    found = nearest(few, many)
    # Every block of the small anchor has a stitch of its own, and every block of the large one but the first a place.
    assert len(found) == few
    for front, places in enumerate(found):
        every = product(range(few), range(many))
        assert places == [(f, i) for f, i in every if f == front and floor(Fraction(i * few, many)) == f < i]
    assert sum(map(len, found)) == many - 1


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=4))
def test_anchors_of_different_depth_are_stitched_stage_by_stage(stages: list[tuple[int, int]]) -> None:
    small, large = [few for few, _ in stages], [few + more for few, more in stages]
    if small == large:
        large[-1] += 1
    front, back = ([(s, block) for s, count in enumerate(each) for block in range(count)] for each in (small, large))
    expected = set[Pair]()
    for (a, (stage, j)), (b, (other, k)) in product(enumerate(front), enumerate(back)):
        few, many = small[stage], large[stage]
        if stage == other and (abs(j - k) < 2 if few == many else floor(Fraction(k * few, many)) == j < k):
            expected.add((a, b))
    found = [place for places in layers(small, large) for place in places]
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_six_blocks_and_eighteen_have_seventeen_routes_over_six_stitches() -> None:
    family = one_way(vit(18), (0.5, 1.0), ((6,), (18,)))
    assert family.routes[:2] == (Route((Segment(0, 0, 6),)), Route((Segment(1, 0, 18),)))
    assert len(family.routes) == 2 + 17
    assert list(family.joints) == [f"0-1-{block}" for block in range(6)]
    assert family.joints["0-1-0"].places == ((0, 1), (0, 2))
    assert family.joints["0-1-5"].places == ((5, 15), (5, 16), (5, 17))
    for route in family.routes[2:]:
        (front, back), (name,) = route.segments, route.stitches
        assert (front.anchor, front.start, back.anchor, back.stop) == (0, 0, 1, 18)
        assert (front.stop - 1, back.start) in family.joints[name].places


def routes_inside(model: ModelConfig, depths: Depths, stages: set[int]) -> int:
    """Return how many routes go on, in one of some stages, behind a block of a lower number, or change no anchor."""
    family = one_way(model, tuple((k + 1) / len(depths) for k in range(len(depths))), depths)
    at = [[(s, block) for s, count in enumerate(each) for block in range(count)] for each in depths]
    count = 0
    for joint in family.joints.values():
        for a, b in joint.places:
            (stage, j), (other, k) = at[joint.front][a], at[joint.back][b]
            count += stage == other and stage in stages and j < k
    return len(depths) + count


@pytest.mark.slow
def test_hierarchical_families_have_the_papers_routes_where_it_stitches_them() -> None:
    swin = ModelConfig("resnet", (1, 32, 32), 4, (8, 8, 8, 8), (2, 2, 18, 2), group=2)
    assert routes_inside(swin, ((2, 2, 6, 2), (2, 2, 18, 2), (2, 2, 18, 2)), {0, 1, 2}) == 41
    resnet = ModelConfig("resnet", (1, 32, 32), 4, (8, 8, 8, 8), (3, 4, 6, 3), group=2)
    depths = (2, 2, 2, 2), (3, 4, 6, 3)
    assert routes_inside(resnet, depths, {1, 2}) == 10
    # The first and the last stage, which it skips, have two each; there are no others.
    assert routes_inside(resnet, depths, {0, 1, 2, 3}) == 14 == len(one_way(resnet, (0.5, 1.0), depths).routes)


@pytest.mark.parametrize("model", [vit(6, 2), RESNET], ids=["vit", "resnet"])
def test_depths_that_are_all_equal_are_stitched_as_if_none_were_given(model: ModelConfig) -> None:
    widths = (0.25, 0.5, 1.0)
    plain, given = one_way(model, widths), one_way(model, widths, (tuple(model.blocks),) * 3)
    assert given == plain
    assert given is one_way(model, list(reversed(widths)), (tuple(model.blocks),) * 3)
    one = one_way(model, widths, ((1, 2),) * 3)
    assert [route.segments[-1].stop for route in one.routes] == [3] * len(one.routes)


@pytest.mark.parametrize(
    ("depths", "said"),
    [
        (((2, 2),), r"depths \[\[2, 2\]\]: .*each of the widths \[0.5, 1.0\].*2 stages"),
        (((2, 2),) * 3, "each of the widths"),
        (((2,), (2,)), "each of the widths"),
        (((), ()), "each of the widths"),
        (((2, 0), (2, 2)), r"depths \[\[2, 0\], \[2, 2\]\]: .*at least 1 .*\[2, 2\]"),
        (((2, 2), (2, 3)), r"at most the model's of that stage, \[2, 2\]"),
        (((-1, 2), (2, 2)), "at least 1"),
        (((1, 2), (2, 1)), r"depths \[\[1, 2\], \[2, 1\]\]: no anchor may have fewer blocks"),
    ],
)
def test_depths_that_there_cannot_be_are_named(depths: Depths, said: str) -> None:
    with pytest.raises(SpecError, match=said) as error:
        one_way(RESNET, (1.0, 0.5), depths)
    assert "\n" not in str(error.value)


def test_a_network_without_blocks_has_no_depths() -> None:
    with pytest.raises(SpecError, match=r"depths \[\[1, 1, 1\], \[1, 1, 1\]\]: model cnn .*leave depths empty$"):
        one_way(CNN, (0.5, 1.0), ((1, 1, 1),) * 2)


# Two-way stitching


@pytest.mark.parametrize(("depth", "count"), [(6, 32), (12, 134)])
def test_two_way_routes_are_all_that_change_once_or_twice(depth: int, count: int) -> None:
    family = two_way(vit(depth), (0.5, 0.25, 1.0), 3)
    assert family.widths == (0.25, 1.0)
    assert family.rank == 3
    assert len(family.routes) == len(set(family.routes)) == count == depth**2 - depth + 2
    assert len(family.joints) == 2 * (depth - 1)
    # Said another way: which anchor each block is of, with at most two changes.
    strings = {f"{number:0{depth}b}" for number in range(2**depth)}
    expected = {text for text in strings if sum(one != other for one, other in pairwise(text)) <= 2}
    found = set()
    for route in family.routes:
        text = ["?"] * depth
        for segment in route.segments:
            text[segment.start : segment.stop] = str(segment.anchor) * (segment.stop - segment.start)
        found.add("".join(text))
        for (front, back), name in zip(pairwise(route.segments), route.stitches, strict=True):
            joint = family.joints[name]
            assert (joint.front, joint.back) == (front.anchor, back.anchor)
            assert joint.places == ((front.stop - 1, back.start),)
    assert found == expected
    kinds = Counter("".join(str(segment.anchor) for segment in route.segments) for route in family.routes)
    pairs = (depth - 1) * (depth - 2) // 2
    assert kinds == {"0": 1, "1": 1, "01": depth - 1, "10": depth - 1, "010": pairs, "101": pairs}


def test_one_width_has_no_stitches() -> None:
    for family in (one_way(vit(4), (0.5,)), two_way(vit(4), (0.5,))):
        assert family.routes == (Route((Segment(0, 0, 4),)),)
        assert not family.joints
        assert not family.meetings


def test_routes_and_bases_that_there_are_not_are_named() -> None:
    family = one_way(vit(4), (0.25, 0.5, 1.0))
    with pytest.raises(SpecError, match="route 24: there are 1 to 23"):
        family.route(24)
    with pytest.raises(SpecError, match=r"bases \[0, 2\]: .*\[\(0, 1\), \(1, 2\)\]"):
        family.between((0, 2))
    with pytest.raises(SpecError, match="widths"):
        one_way(vit(4), ())
