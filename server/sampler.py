"""Who takes part in a round: one of the three places where a round can be changed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from diastole.models.moment import Moment
from diastole.models.seeds import generator
from diastole.proto.errors import DiastoleError
from diastole.proto.registry import Registry
from diastole.server.history import NONE, Past


class SamplerError(DiastoleError):
    """A sampler that is not known, or cannot be imported."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that could take part in a round.

    Attributes:
        name: of the device.
        tier: that it is in.
        examples: that it says it has.
        seconds: that it would take for the largest size that fits it, transfers included; 0 for what is unknown.
        past: its part in earlier rounds.

    """

    name: str
    tier: str = ""
    examples: int = 1
    seconds: float = 0.0
    past: Past = NONE


About = Callable[[str], Candidate]


class Sampler(Protocol):
    """A way of drawing a round's cohort. It has no state: what a run has learned of a device, `about` tells."""

    def sample(self, able: Sequence[str], moment: Moment, about: About) -> Sequence[str]:
        """Return the devices of a round, in order.

        Args:
            able: the names of the devices that could take part, in order.
            moment: where the run stands.
            about: returns what is known of one of them.

        """
        ...


@dataclass(frozen=True, slots=True)
class SamplerRow:
    """What the registry knows of a sampler: `make` returns one of a run's seed, and of devices a round (None: all)."""

    make: Callable[[int, int | None], Sampler]


@dataclass(frozen=True, slots=True)
class Uniform:
    """The same number of devices each round, drawn without replacement, each equally likely.

    Attributes:
        seed: of the run.
        cohort: devices a round; None for all of them.

    """

    seed: int
    cohort: int | None = None

    def sample(self, able: Sequence[str], moment: Moment, about: About) -> Sequence[str]:
        """Return the cohort, in the order of `able`."""
        if self.cohort is None or self.cohort >= len(able):
            return able
        return _some(able, _shuffled(len(able), self.seed, moment)[: self.cohort])


@dataclass(frozen=True, slots=True)
class FairShare:
    """The devices that were asked least often; among those asked equally often, each is equally likely."""

    seed: int
    cohort: int | None = None

    def sample(self, able: Sequence[str], moment: Moment, about: About) -> Sequence[str]:
        """Return the cohort, in the order of `able`."""
        if self.cohort is None or self.cohort >= len(able):
            return able
        # Sorting keeps the order of those that are equal.
        order = sorted(_shuffled(len(able), self.seed, moment), key=lambda place: about(able[place]).past.asked)
        return _some(able, order[: self.cohort])


@dataclass(frozen=True, slots=True)
class TierBalanced:
    """As many devices of each tier, as far as there are; within a tier each is equally likely.

    Which tiers give one device more, where the cohort cannot be divided evenly, is drawn each round.
    """

    seed: int
    cohort: int | None = None

    def sample(self, able: Sequence[str], moment: Moment, about: About) -> Sequence[str]:
        """Return the cohort, in the order of `able`."""
        if self.cohort is None or self.cohort >= len(able):
            return able
        tiers: dict[str, list[int]] = {}
        for place in _shuffled(len(able), self.seed, moment):
            tiers.setdefault(about(able[place]).tier, []).append(place)
        names = sorted(tiers)
        draws = torch.randperm(len(names), generator=generator(self.seed, moment.round, "tiers")).tolist()
        turns = [(turn, draws[k], place) for k, name in enumerate(names) for turn, place in enumerate(tiers[name])]
        return _some(able, [place for *_, place in sorted(turns)[: self.cohort]])


def _shuffled(count: int, seed: int, moment: Moment) -> list[int]:
    """Return the numbers below `count` in an order of the round's."""
    order: list[int] = torch.randperm(count, generator=generator(seed, moment.round, "cohort")).tolist()
    return order


def _some(able: Sequence[str], places: Iterable[int]) -> list[str]:
    return [able[place] for place in sorted(places)]


UNIFORM, FAIR_SHARE, TIER_BALANCED = SamplerRow(Uniform), SamplerRow(FairShare), SamplerRow(TierBalanced)

_HERE = "diastole.server"
SAMPLERS: Registry[SamplerRow] = Registry(
    "sampler",
    {
        "uniform": f"{_HERE}.sampler:UNIFORM",
        "fair-share": f"{_HERE}.sampler:FAIR_SHARE",
        "tier-balanced": f"{_HERE}.sampler:TIER_BALANCED",
        "oort": f"{_HERE}.oort:ROW",
    },
    SamplerRow,
    SamplerError,
)
"""Samplers by name; a package of one's own adds to them by an entry point."""
