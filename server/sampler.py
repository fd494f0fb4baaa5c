"""Who takes part in a round: one of the three places where a round can be changed."""

from abc import ABC, abstractmethod
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
class Drawn(ABC):
    """A cohort of the same number of devices each round, drawn without replacement; all of them if they are fewer.

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
        drawn = set(self._drawn(able, self.cohort, moment, about))
        return [name for name in able if name in drawn]

    @abstractmethod
    def _drawn(self, able: Sequence[str], cohort: int, moment: Moment, about: About) -> Iterable[str]:
        """Return `cohort` of more devices, in any order."""

    def _shuffled(self, able: Sequence[str], moment: Moment) -> list[str]:
        """Return devices in an order of the round's."""
        order = torch.randperm(len(able), generator=generator(self.seed, moment.round, "cohort"))
        return [able[place] for place in order.tolist()]


class Uniform(Drawn):
    """Each device is equally likely."""

    __slots__ = ()

    def _drawn(self, able: Sequence[str], cohort: int, moment: Moment, about: About) -> Iterable[str]:
        return self._shuffled(able, moment)[:cohort]


class FairShare(Drawn):
    """The devices that were asked least often; among those asked equally often, each is equally likely."""

    __slots__ = ()

    def _drawn(self, able: Sequence[str], cohort: int, moment: Moment, about: About) -> Iterable[str]:
        # Sorting keeps the order of those that are equal.
        return sorted(self._shuffled(able, moment), key=lambda name: about(name).past.asked)[:cohort]


class TierBalanced(Drawn):
    """As many devices of each tier, as far as there are; within a tier each is equally likely.

    Which tiers give one device more, where the cohort cannot be divided evenly, is drawn each round.
    """

    __slots__ = ()

    def _drawn(self, able: Sequence[str], cohort: int, moment: Moment, about: About) -> Iterable[str]:
        tiers: dict[str, list[str]] = {}
        for name in self._shuffled(able, moment):
            tiers.setdefault(about(name).tier, []).append(name)
        draws = torch.randperm(len(tiers), generator=generator(self.seed, moment.round, "tiers")).tolist()
        # No two are equal in turn and tier.
        turns = [
            (turn, draw, name)
            for draw, tier in zip(draws, sorted(tiers), strict=True)
            for turn, name in enumerate(tiers[tier])
        ]
        return [name for *_, name in sorted(turns)[:cohort]]


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
