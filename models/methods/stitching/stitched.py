"""The modules of stitched networks. Every parameter has the name of its global tensor."""

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from diastole.models.methods.bases.bounds import MOST, Count, Share
from diastole.models.methods.stitching.routes import Joint, Route, Segment, StitchedFamily, chain, places
from diastole.models.methods.stitching.stitches import LowRankStitch, Stitch, Sums, rows_of
from diastole.models.networks.family import channels, network, parts
from diastole.models.spec import STRICT, SubModelSpec, labelled
from diastole.models.training import Objective, Step

ROWS = 1024
"""Rows of activations that are copied at once, unless one example has more."""


@validated(frozen=True, slots=True, config=STRICT)
class Part:
    """A part of stitched networks: what gathers the statistics of `bases`, or one route, or all of them.

    Attributes:
        widths: of the anchors, ascending.
        depths: for each anchor, how many blocks of each stage it has; empty if all anchors have all of them.
        bases: the numbers of the two anchors that it gathers statistics of; empty if it is trained.
        route: its number, counted from 1; 0 for all routes.
        rank: of the stitches' change; 0 if whole stitches are trained.

    """

    widths: Annotated[tuple[Share, ...], Field(min_length=1, max_length=MOST)]
    depths: Annotated[tuple[Annotated[tuple[Count, ...], Field(max_length=MOST)], ...], Field(max_length=MOST)] = ()
    bases: tuple[()] | tuple[Count, Count] = ()
    route: int = Field(default=0, ge=0, le=MOST**2)
    rank: Count = 0


def spec_of(method: str, part: Part) -> SubModelSpec:
    """Return the spec of a part."""
    return labelled(method, part, bases=part.bases, route=part.route, rank=part.rank)


def module_of(family: StitchedFamily, part: Part) -> nn.Module:
    """Return the module of a part. Raises `SpecError` for a route or bases that there are not."""
    if part.bases:
        return Statistics(family, family.between(part.bases))
    return Stitched(family, [family.route(part.route)]) if part.route else EveryRoute(family)


class Stitched(nn.Module):
    """What some routes need of anchors and stitches; `forward` takes the first of them."""

    def __init__(self, family: StitchedFamily, routes: Iterable[Route]) -> None:
        super().__init__()
        self.family, self.routes = family, list(routes)
        joints = {name: family.joints[name] for route in self.routes for name in route.stitches}
        segments = [segment for route in self.routes for segment in route.segments]
        first, last = ({route.segments[at].anchor for route in self.routes} for at in (0, -1))
        self.anchors = _anchors(family, segments, first, last)
        self.stitches = nn.ModuleDict({name: _stitch(family, joint) for name, joint in joints.items()})

    def run(self, route: Route, x: Tensor) -> Tensor:
        """Return the logits of a route, `[n, classes]`."""
        x = parts(self.anchors[str(route.segments[0].anchor)]).enter(x)
        for segment, stitch in zip(route.segments, (*route.stitches, ""), strict=True):
            for block in chain(self.family.model, self.anchors[str(segment.anchor)])[segment.start : segment.stop]:
                x = block(x)
            x = self.stitches[stitch](x) if stitch else x
        return parts(self.anchors[str(route.segments[-1].anchor)]).leave(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]`."""
        return self.run(self.routes[0], x)


class EveryRoute(Stitched, Objective):
    """All anchors and all stitches; as a model it is the largest anchor.

    Each step trains one route by cross-entropy (SN-Net, algorithm 1). It is drawn by `choose`: uniformly, unless a
    method sets another rule.
    """

    def __init__(self, family: StitchedFamily) -> None:
        super().__init__(family, family.routes)
        self.choose: Callable[[torch.Generator], Route] = self._any

    def loss(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Return the loss of a route."""
        return step.criterion.mean(self.run(self.choose(step.draws), x), y)

    def forward(self, x: Tensor) -> Tensor:
        """Return the largest anchor's logits, `[n, classes]`."""
        return self.run(self.routes[len(self.family.widths) - 1], x)

    def plain_form(self) -> nn.Module:
        """Return the largest anchor alone."""
        return self.anchors[str(len(self.family.widths) - 1)]

    def _any(self, draws: torch.Generator) -> Route:
        return self.routes[int(torch.randint(len(self.routes), (), generator=draws))]


class Statistics(Objective):
    """Works out the sums that a least-squares start of stitches needs, instead of training.

    What it is sent as `sums` does not matter; what it is left with are the means over every position of every
    example it was shown. FedAvg's mean of those, weighted by examples, is the mean over all devices' positions, which
    has the same solution as the sums. Nothing is differentiated: beside the sums only those activations need memory
    that a stitch still has to see. Each anchor goes on only as far as the next stitch asks, so they are few.
    """

    learns = False

    def __init__(self, family: StitchedFamily, joints: dict[str, Joint]) -> None:
        super().__init__()
        self.family, self.joints = family, joints
        inside = [(j.front, block + 1) for j in joints.values() for block, _ in j.places]
        outside = [(j.back, block) for j in joints.values() for _, block in j.places]
        needed = [Segment(anchor, 0, stop) for anchor, stop in [*inside, *outside]]
        self.anchors = _anchors(family, needed, {s.anchor for s in needed}, set()).requires_grad_(False)
        self.sums = nn.ModuleDict({name: _Held(joint) for name, joint in joints.items()})
        self._seen: dict[str, Sums] = {}

    def train(self, mode: bool = True) -> "Statistics":
        """Forget what was seen: `fit` says this once, before its first step. Anchors stay in evaluation mode."""
        self._seen = {}
        super().train(mode)
        self.anchors.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Sums]:
        """Return each stitch's sums over a batch of examples."""
        found: dict[str, Sums] = {}
        self._count(x, found)
        return found

    def loss(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Count a batch in, and return zero: there is nothing to lower."""
        self._count(x, self._seen)
        for name, total in self._seen.items():
            self.sums[name](total)
        # A leaf of its own lets `fit` take its step, and leaves every parameter without a gradient.
        return x.new_zeros((), requires_grad=True)

    @torch.no_grad()
    def _count(self, x: Tensor, total: dict[str, Sums]) -> None:
        """Add each stitch's sums over a batch of examples to `total`."""
        axis = channels(self.family.model)
        for name, front, back in self._meetings(x):
            # Few rows at a time, as they are copied in float64.
            few = max(1, ROWS * self.joints[name].inside // front[0].numel())
            for some, same in zip(torch.split(front, few), torch.split(back, few), strict=True):
                rows = rows_of(some, axis), rows_of(same, axis)
                if name not in total:
                    total[name] = Sums.none(*rows)
                total[name].add_(*rows)

    def _meetings(self, x: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield, for every place of every stitch by its name, what the front gives there and what the back takes.

        Nothing is held that no later place asks for.
        """
        # Entry 0 is what an anchor's first block takes, and entry k what block k takes or block k - 1 gives.
        waiting = [(name, (j.front, a + 1), (j.back, b)) for name, j in self.joints.items() for a, b in j.places]
        waiting.sort(key=lambda place: (place[1][1], place[2][1]))
        entries = {int(number): enumerate(self._entries(anchor, x)) for number, anchor in self.anchors.items()}
        held: dict[tuple[int, int], Tensor] = {}
        for number, (name, front, back) in enumerate(waiting):
            asked = {end for _, *ends in waiting[number:] for end in ends}
            held = {end: tensor for end, tensor in held.items() if end in asked}
            for end in (front, back):
                while end not in held:
                    at, y = next(entries[end[0]])
                    held |= {(end[0], at): y} if (end[0], at) in asked else {}
            yield name, held[front], held[back]

    def _entries(self, anchor: nn.Module, x: Tensor) -> Iterator[Tensor]:
        """Yield what the first block of an anchor takes, then what each block gives."""
        x = parts(anchor).enter(x)
        yield x
        for block in chain(self.family.model, anchor):
            x = block(x)
            yield x


class _Held(nn.Module):
    """One stitch's means, float32 like all that travels."""

    def __init__(self, joint: Joint) -> None:
        super().__init__()
        # No gradient reaches them, but they are what a device sends back changed, as a frozen parameter must not be.
        self.gram = nn.Parameter(torch.zeros(joint.inside + 1, joint.inside + 1))
        self.cross = nn.Parameter(torch.zeros(joint.inside + 1, joint.outside))

    @torch.no_grad()
    def forward(self, total: Sums) -> None:
        """Hold the means of these sums."""
        rows = total.gram[-1, -1]
        self.gram.copy_(total.gram / rows)
        self.cross.copy_(total.cross / rows)


def _stitch(family: StitchedFamily, joint: Joint) -> Stitch:
    axis = channels(family.model)
    # A change of more numbers than the weight has is none of low rank.
    if 0 < family.rank * (joint.inside + joint.outside) < joint.inside * joint.outside:
        return LowRankStitch(joint.inside, joint.outside, axis, family.rank)
    return Stitch(joint.inside, joint.outside, axis)


def _anchors(family: StitchedFamily, segments: Iterable[Segment], entered: set[int], left: set[int]) -> nn.ModuleDict:
    """Return the anchors that the segments use, by number, and of each only what is used.

    Parts that are not used become identities, so that the others keep their names; so do those that serve `enter`
    and `leave`, unless the anchor is among `entered` or `left`.
    """
    used: dict[int, set[int]] = {}
    for segment in segments:
        used.setdefault(segment.anchor, set()).update(range(segment.start, segment.stop))
    anchors = nn.ModuleDict()
    for anchor, blocks in sorted(used.items()):
        module = network(family.model, family.shapes[anchor])
        names = [name for name, _ in module.named_children()]
        at = names.index("stages")
        idle = [] if anchor in entered else [(module, name) for name in names[:at]]
        idle += [] if anchor in left else [(module, name) for name in names[at + 1 :]]
        idle += [place for number, place in enumerate(places(family.model, module)) if number not in blocks]
        for owner, name in idle:
            setattr(owner, name, nn.Identity())
        anchors[str(anchor)] = module
    return anchors
