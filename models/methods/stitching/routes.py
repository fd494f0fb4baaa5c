"""Routes through stitched networks: which blocks of which anchor, and the stitches between them.

Anchors are the global model at several widths, smallest first; a small one may have only the first blocks of each
stage. The blocks of an anchor are numbered from 0 through all its stages.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch
from torch import nn

from diastole.models.errors import SpecError
from diastole.models.methods.widths.width import check_widths
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import channels, narrowed, network, parts
from diastole.models.networks.family import whole as whole_shape
from diastole.models.networks.shape import Shape, first_blocks

Pair = tuple[int, int]
"""A place of a stitch: the last block in front of it and the first behind it."""

Depths = tuple[tuple[int, ...], ...]
"""For each anchor, how many blocks of each stage it has; empty if all anchors have all of them."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Blocks `start` up to, not including, `stop` of an anchor."""

    anchor: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Route:
    """One network: segments, and the names of the stitches between each and the next."""

    segments: tuple[Segment, ...]
    stitches: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Joint:
    """One stitching layer.

    Attributes:
        front: the anchor in front of it.
        back: the anchor behind it.
        places: what it serves.
        inside: channels it takes.
        outside: channels it gives.

    """

    front: int
    back: int
    places: tuple[Pair, ...]
    inside: int
    outside: int


@dataclass(frozen=True, slots=True)
class StitchedFamily:
    """Anchors and every route through them.

    Attributes:
        model: the global model.
        widths: of the anchors, ascending.
        shapes: of the anchors, in the same order.
        joints: the stitching layers, by name.
        routes: number k is `routes[k - 1]`; the first are the anchors as they are.
        rank: of what stitches learn, where that is fewer numbers than they have; 0 for full ones.

    """

    model: ModelConfig
    widths: tuple[float, ...]
    shapes: tuple[Shape, ...]
    joints: dict[str, Joint]
    routes: tuple[Route, ...]
    rank: int = 0

    def route(self, number: int) -> Route:
        """Return a route by its number. Raises `SpecError`."""
        if not 1 <= number <= len(self.routes):
            raise SpecError(f"route {number}: there are 1 to {len(self.routes)}")
        return self.routes[number - 1]

    @property
    def meetings(self) -> list[Pair]:
        """The pairs of anchors that stitches join, each in ascending order."""
        return sorted({(min(j.front, j.back), max(j.front, j.back)) for j in self.joints.values()})

    def between(self, anchors: Sequence[int]) -> dict[str, Joint]:
        """Return the stitches between two anchors, in both directions. Raises `SpecError` if there are none."""
        found = {name: joint for name, joint in self.joints.items() if {joint.front, joint.back} == set(anchors)}
        if not found:
            raise SpecError(f"bases {list(anchors)}: no stitches join them; {self.meetings} are joined")
        return found


def windows(depth: int, size: int = 2, step: int = 1) -> list[list[Pair]]:
    """Return the places that each stitch of two anchors of equal depth serves (SN-Net, paired stitching).

    A window slides over the blocks. Any two in it, equal ones and backward ones too, are a place, and the first
    window that a place is in owns it. A window that owns none has no stitch.
    """
    seen: set[Pair] = set()
    owned = []
    for start in range(0, depth, step):
        window = range(start, min(start + size, depth))
        new = [(j, k) for j in window for k in window if (j, k) not in seen]
        seen.update(new)
        owned += [new] if new else []
    return owned


def nearest(few: int, many: int) -> list[list[Pair]]:
    """Return the places that each stitch behind one of `few` blocks serves, of an anchor that goes on with `many`.

    Block k of the many follows block `j = floor(k * few / many)` of the few if `j < k`, which leaves out only the first
    one (SN-Net, unpaired stitching). Each j has one stitch.
    """
    return [[(j, k) for k in range(1, many) if k * few // many == j] for j in range(few)]


def layers(small: Sequence[int], large: Sequence[int]) -> list[list[Pair]]:
    """Return the places that each stitch of two anchors serves, from how many blocks each of their stages has.

    Through anchors of equal depth windows slide as through one stage. Otherwise each stage is stitched by itself, as
    in the paper's hierarchical networks: by windows where it is equally deep in both, and by `nearest` where it is not.
    """
    if small == large:
        return windows(sum(small))
    found, front, back = list[list[Pair]](), 0, 0
    for few, many in zip(small, large, strict=True):
        owned = windows(few) if few == many else nearest(few, many)
        found += [[(front + j, back + k) for j, k in each] for each in owned]
        front, back = front + few, back + many
    return found


def one_way(model: ModelConfig, widths: Sequence[float], depths: Depths = ()) -> StitchedFamily:
    """Return SN-Net's family: each anchor is stitched to the next larger one, in that direction.

    A place where the two maps differ in height and width is left out, so only blocks of one stage are joined, or the
    last of a stage and the first of the next. Raises `SpecError` for widths or depths that there cannot be.
    """
    return _one_way(model, tuple(check_widths(widths)), depths)


@cache
def _one_way(model: ModelConfig, widths: tuple[float, ...], depths: Depths) -> StitchedFamily:
    anchors = _shapes(model, widths, depths)
    grids, joints, routes = [_grids(model, shape) for shape in anchors], dict[str, Joint](), list[Route]()
    blocks = [[len(kept) for kept in shape.blocks] or [shape.stages] for shape in anchors]
    for front, back in pairwise(range(len(widths))):
        inside, outside = grids[front], grids[back]
        for number, window in enumerate(layers(blocks[front], blocks[back])):
            # Entry 0 of the grids is what the first block takes: block j gives entry j + 1, block k takes entry k.
            places = [(j, k) for j, k in window if inside[j + 1][1:] == outside[k][1:]]
            shapes = [(inside[j + 1][0], outside[k][0]) for j, k in places]
            distinct = dict.fromkeys(shapes)
            for shape in distinct:
                mine = tuple(place for place, other in zip(places, shapes, strict=True) if other == shape)
                # A window over two stages has a stitch for each shape.
                name = f"{front}-{back}-{number}" + (f"-{shape[0]}" if len(distinct) > 1 else "")
                name += f"-{shape[1]}" if [inside for inside, _ in distinct].count(shape[0]) > 1 else ""
                joints[name] = Joint(front, back, mine, *shape)
                for j, k in mine:
                    segments = Segment(front, 0, j + 1), Segment(back, k, len(outside) - 1)
                    routes.append(Route(segments, (name,)))
    return StitchedFamily(model, widths, anchors, joints, (*_anchors(grids), *routes))


def two_way(model: ModelConfig, widths: Sequence[float], rank: int = 0) -> StitchedFamily:
    """Return SN-Netv2's family: the smallest and the largest anchor, stitched in both directions.

    Routes change anchors once or twice. They change behind any block but the last, and go on with the block that
    follows. (The paper also has a stitch behind the small anchor's last block, which it then leaves out of training.)
    Raises `SpecError`.
    """
    ascending = check_widths(widths)
    return _two_way(model, tuple(dict.fromkeys((ascending[0], ascending[-1]))), rank)


@cache
def _two_way(model: ModelConfig, widths: tuple[float, ...], rank: int) -> StitchedFamily:
    anchors = _shapes(model, widths)
    grids, joints, routes = [_grids(model, shape) for shape in anchors], dict[str, Joint](), list[Route]()
    depth = len(grids[0]) - 1
    for front, back in ((0, 1), (1, 0)) if len(widths) > 1 else ():
        for i in range(depth - 1):
            shape = grids[front][i + 1][0], grids[back][i + 1][0]
            joints[f"{front}-{back}-{i}"] = Joint(front, back, ((i, i + 1),), *shape)
            routes.append(_through((front, back), (i,), depth))
    for front, back in ((0, 1), (1, 0)) if len(widths) > 1 else ():
        for i in range(depth - 1):
            routes += [_through((front, back, front), (i, j), depth) for j in range(i + 1, depth - 1)]
    return StitchedFamily(model, widths, anchors, joints, (*_anchors(grids), *routes), rank)


def _shapes(model: ModelConfig, widths: Sequence[float], depths: Depths = ()) -> tuple[Shape, ...]:
    """Return the anchors' shapes. Raises `SpecError`."""
    shapes = [narrowed(model, width) for width in widths]
    if not depths:
        return tuple(shapes)
    found, most = f"depths {[list(each) for each in depths]}", [len(stage) for stage in whole_shape(model).blocks]
    if not most:
        named = ", or name the blocks in model.stages" if whole_shape(model).sets else ""
        raise SpecError(f"{found}: model {model.name} has no blocks to leave out; leave depths empty{named}")
    if len(depths) != len(widths) or any(len(each) != len(most) for each in depths):
        raise SpecError(
            f"{found}: expected, for each of the widths {list(widths)}, a number of blocks for each of the model's "
            f"{len(most)} stages"
        )
    if any(not 1 <= count <= limit for each in depths for count, limit in zip(each, most, strict=True)):
        raise SpecError(f"{found}: each number must be at least 1 and at most the model's of that stage, {most}")
    if any(few > many for small, large in pairwise(depths) for few, many in zip(small, large, strict=True)):
        raise SpecError(f"{found}: no anchor may have fewer blocks of a stage than the narrower one listed before it")
    return tuple(replace(shape, blocks=first_blocks(each)) for shape, each in zip(shapes, depths, strict=True))


def _through(anchors: Sequence[int], last: Sequence[int], depth: int) -> Route:
    """Return the route that changes to the next of the anchors behind each block of `last`."""
    cuts = [0, *(block + 1 for block in last), depth]
    segments = tuple(Segment(a, start, stop) for a, (start, stop) in zip(anchors, pairwise(cuts), strict=True))
    changes = zip(pairwise(anchors), last, strict=True)
    return Route(segments, tuple(f"{front}-{back}-{block}" for (front, back), block in changes))


def _anchors(grids: Sequence[Sequence[torch.Size]]) -> Iterator[Route]:
    """Yield the routes that stay in one anchor."""
    return (Route((Segment(anchor, 0, len(each) - 1),)) for anchor, each in enumerate(grids))


def places(model: ModelConfig, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return where each block of a network is, through all stages: the module that holds it, and its name there.

    A stage of a family without blocks is one block.
    """
    stages = parts(module).stages
    owners = list(stages) if whole_shape(model).blocks else [stages]
    return [(owner, name) for owner in owners for name, _ in owner.named_children()]


def chain(model: ModelConfig, module: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network through all stages."""
    return [owner.get_submodule(name) for owner, name in places(model, module)]


@cache
def _grids(model: ModelConfig, shape: Shape) -> list[torch.Size]:
    """Return the shapes, channels first, of what the first block takes and of what each block gives."""
    axis = channels(model)
    with torch.device("meta"), torch.no_grad():
        module = network(model, shape)
        x = parts(module).enter(model.blank(2))
        found = [x.movedim(axis, 1).shape[1:]]
        for block in chain(model, module):
            x = block(x)
            found.append(x.movedim(axis, 1).shape[1:])
    return found
