from collections import Counter
from itertools import pairwise

import pytest

from diastole.models.errors import SpecError
from diastole.models.methods.routes import Route, Segment, one_way, two_way, windows
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
