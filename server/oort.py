"""The sampler of Lai et al., "Oort: Efficient Federated Learning via Guided Participant Selection", OSDI 2021, sec. 4.

A device is worth its statistical utility times its system utility. The first is its examples times its training loss,
cut off at a percentile, plus a term for how long ago it was asked; the second falls with the square of how much slower
than the preferred duration it is. Most of a cohort is drawn by this; a share that falls from round to round goes to
devices that were never asked, the faster the likelier.

Three things differ from the paper, whose utility is |B| * sqrt(mean of the squared losses of the examples B), times
(T / t)^2 for a device of t > T seconds. The coordinator knows the mean loss of a device's last epoch and takes it in
the place of the root mean square: losses of single examples tell of a device's data, and never leave it. The root is
at least the mean, so a device with a few hard examples among many easy ones is worth less here. Losses are measured in
what they are cut off at, so that the term of time weighs the same for every model, as in the authors' code. T is the
median of the devices' predicted seconds in each round anew, and no pacer moves it: the paper lets T grow once the
utility of past cohorts falls, which a sampler without a state of its own, as all here are so that a killed run goes on
alike, cannot.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import median

import torch

from diastole.models.moment import Moment
from diastole.models.seeds import generator
from diastole.server.sampler import About, Candidate, Drawn, SamplerRow

CLIP = 0.95
"""The quantile of the statistical utilities at which they are cut off."""
EXPLORE, DECAY, LEAST = 0.9, 0.98, 0.2
"""The share of the first cohort that goes to devices never asked, what is left of it each round, and its least."""
PENALTY = 2.0
"""The power of the system utility."""
CONFIDENCE = 0.95
"""Devices are drawn from those above this share of the utility that the last place of the cohort has."""
STALE = 0.1
SMALLEST = 1e-12


class Oort(Drawn):
    """Devices from which the model can learn most in the least time, and some that nobody knows yet."""

    __slots__ = ()

    def _drawn(self, able: Sequence[str], cohort: int, moment: Moment, about: About) -> Iterable[str]:
        candidates = [about(name) for name in able]
        known = [each for each in candidates if each.past.asked]
        new = [each for each in candidates if not each.past.asked]
        share = max(LEAST, EXPLORE * DECAY ** (moment.round - 1))
        count = min(cohort - int(share * cohort), len(known))
        # Whoever is missing on one side is drawn on the other.
        explored = min(cohort - count, len(new))
        count = cohort - explored
        duration = preferred(candidates)
        worth = utilities(known, moment.round, duration)
        floor = CONFIDENCE * sorted(worth, reverse=True)[count - 1] if count else 0.0
        pool = [(each.name, utility) for each, utility in zip(known, worth, strict=True) if utility >= floor]
        speeds = [(each.name, duration / each.seconds if each.seconds else 1.0) for each in new]
        return [*self._weighed(pool, count, moment, "exploit"), *self._weighed(speeds, explored, moment, "explore")]

    def _weighed(self, weighed: Sequence[tuple[str, float]], count: int, moment: Moment, purpose: str) -> list[str]:
        """Return `count` names, drawn one after another without replacement, each as likely as its weight.

        The largest of u^(1/w) come first (Efraimidis and Spirakis, 2006).
        """
        draws = torch.rand(len(weighed), generator=generator(self.seed, moment.round, purpose), dtype=torch.float64)
        keys = [
            (math.log(max(draw, SMALLEST)) / max(weight, SMALLEST), name)
            for (name, weight), draw in zip(weighed, draws.tolist(), strict=True)
        ]
        return [name for _, name in sorted(keys, reverse=True)[:count]]


def preferred(candidates: Sequence[Candidate]) -> float:
    """Return the median of the seconds that are known; 1 if none are."""
    return median([each.seconds for each in candidates if each.seconds] or [1.0])


def utilities(known: Sequence[Candidate], number: int, duration: float) -> list[float]:
    """Return the utility of devices that were asked before round `number`; `duration` is the preferred one, seconds."""
    statistical = sorted(each.past.examples * abs(each.past.loss) for each in known)
    cut = statistical[math.ceil(CLIP * len(statistical)) - 1] if statistical else 0.0
    found = []
    for each in known:
        utility = min(each.past.examples * abs(each.past.loss), cut) / (cut or 1.0)
        utility += math.sqrt(STALE * math.log(number) / each.past.last)
        if each.seconds > duration:
            utility *= (duration / each.seconds) ** PENALTY
        found.append(utility)
    return found


ROW = SamplerRow(Oort)
