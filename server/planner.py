"""Which devices could take part in a round, and with which sub-models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diastole.models.cost import Cost
from diastole.models.levers import NO_LEVERS, Levers
from diastole.models.method import Size, most_capable
from diastole.models.moment import Moment
from diastole.models.training import TrainConfig
from diastole.models.ways import Way
from diastole.models.work import training_seconds
from diastole.proto.coding import PLAIN, Coding
from diastole.proto.profile import Profile
from diastole.server.history import NONE, Past
from diastole.server.overrides import Overrides
from diastole.server.sampler import Candidate, Sampler

SMOOTHING = 0.5
MOST_CORRECTION = 1e6
"""A device may report any seconds; its predictions stay within this factor, either way, of what its profile says."""

OWN = 0.2
"""The share of a correction that is the size's own. The rest is the device's, and corrects its other sizes as well."""

RECOVERY = 0.1
"""A device that looks too slow for every size is sent nothing, so it cannot show that it was slow only once. After each
such round the planner forgives it this share of its slowness."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A device, the size that it is given, and the levers that it is to train it with."""

    device: str
    size: Size
    levers: Levers = NO_LEVERS


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that the operator lets a device of a tier spend, even if the device offers more; None for no limit.

    Attributes:
        training_macs: multiply-accumulates of training on one example.
        memory: peak bytes of training.
        payload: bytes to download, and to upload, a round; of tensors alone.
        threads: that a plan may have; no size is too large for it.

    """

    training_macs: int | None = None
    memory: int | None = None
    payload: int | None = None
    threads: int | None = None

    def allow(self, cost: Cost, payload: int | None = None) -> bool:
        """Return whether a sub-model is within every limit; `payload` bytes are sent, if that is not exactly."""
        payload = max(cost.bytes_down, cost.bytes_up) if payload is None else payload
        pairs = ((cost.training_macs, self.training_macs), (cost.memory, self.memory), (payload, self.payload))
        return all(limit is None or spent <= limit for spent, limit in pairs)


def plainly(size: Size) -> Sequence[Way]:
    """Return the plain way alone."""
    return (Way(NO_LEVERS, size.cost),)


Assign = Callable[[Mapping[str, Sequence[Size]], Moment], Mapping[str, Size]]
"""A method's rule (`Method.assign`): it gives each device of a cohort one of the sizes that fit the device."""


@dataclass(slots=True)
class Planner:
    """Finds the sub-models that fit each device; the sampler draws the cohort, and the method's own rule then chooses.

    A size fits if there is a way to train it that fits: plainly, or by levers that the run allows and the device
    offers. A way fits if its peak training memory is within the device's (of one that has no more than that free, with
    all that training takes beside tensors), if it is within the limits of the device's tier, and if its predicted round
    time (download, training, upload) is within the deadline. Of several ways the device gets the plain one, or else the
    one that takes the least time. A size of which a part fits counts where no other does, or always if
    `training.parts_first` says so. A device that no size fits, or that has no examples, takes
    no part. Unknown figures of a profile limit nothing.

    Attributes:
        sizes: the sizes on offer, smallest first.
        training: how devices train.
        deadline: seconds a round may take; None for no limit.
        ignore_budgets: give every device the largest size, even if it does not fit.
        limits: of tiers, by name.
        assign: the method's rule.
        coding: how payloads are encoded.
        ways: returns the ways that the run allows for a size, the plain one first; asked only if that one does not fit
            a device.
        overrides: the operator's, by devices' names.
        suspended: returns why a device is kept out for a while; empty if it is not.
        unlabelled: returns why its labels keep a device out; empty if they do not.

    """

    sizes: Sequence[Size]
    training: TrainConfig
    deadline: float | None = None
    ignore_budgets: bool = False
    limits: Mapping[str, Limits] = field(default_factory=dict)
    assign: Assign = most_capable
    coding: Coding = PLAIN
    ways: Callable[[Size], Sequence[Way]] = plainly
    overrides: Overrides = field(default_factory=Overrides)
    suspended: Callable[[str], str] = lambda device: ""
    unlabelled: Callable[[str], str] = lambda device: ""
    _correction: dict[str, float] = field(default_factory=dict)
    _own: dict[str, dict[str, float]] = field(default_factory=dict)
    _declined: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    _known: dict[str, tuple[Profile, Sequence[Size]]] = field(default_factory=dict)

    def memory(self) -> dict[str, Any]:
        """Return what was learned, as JSON: factors on each device's predicted seconds, and the memory it declined."""
        sizes = {f"{name}\n{label}": factor for name, own in self._own.items() for label, factor in own.items()}
        return self._correction | sizes | {f"{name}\n": list(declined) for name, declined in self._declined.items()}

    def resume(self, memory: Mapping[str, Any]) -> None:
        """Go on with another planner's `memory()`."""
        self._correction, self._own, self._declined, self._known = {}, {}, {}, {}
        for key, learned in memory.items():
            name, parted, label = key.partition("\n")
            if label:
                self._own.setdefault(name, {})[label] = learned
            elif parted:
                wanted, offered = learned
                self._declined[name] = wanted, offered
            else:
                self._correction[name] = learned

    def plan(
        self,
        moment: Moment,
        devices: Mapping[str, Profile],
        sampler: Sampler,
        past: Callable[[str], Past] = lambda device: NONE,
    ) -> list[Assignment]:
        """Return the round's assignments in device order; the same devices, with the same past, give the same plan."""
        able = {}
        for device in sorted(devices):
            sizes = self.fits(device, devices[device])
            if sizes and devices[device].examples:
                able[device] = sizes
            elif self._correction.get(device, 1.0) > 1 and not self.barred(device):
                self._correction[device] -= RECOVERY * (self._correction[device] - 1)

        def about(device: str) -> Candidate:
            profile, size = devices[device], able[device][-1]
            seconds = self.seconds(device, profile, size, self.levers(device, profile, size))
            return Candidate(device, self.tier(device, profile), profile.examples, seconds, past(device))

        cohort = {device: able[device] for device in sampler.sample(list(able), moment, about)}
        given = self.assign(cohort, moment)
        return [
            Assignment(device, size, self.levers(device, devices[device], size))
            for device, size in ((device, given[device]) for device in cohort)
        ]

    def why_not(self, device: str, profile: Profile, size: Size) -> str:
        """Return why a size, trained plainly, does not fit the device; empty if it does."""
        if barred := self.barred(device):
            return barred
        if not profile.examples:
            return "it has no examples"
        if wanted := self.overrides.of(device).size:
            fitting = self._fitting(device, profile)
            other = size in fitting and size not in self.overrides.among(device, fitting)
            if other or not self.overrides.may(device, size):
                return f"the operator gives it {wanted!r} by an override"
        if self.ignore_budgets and size != self.sizes[-1]:
            return "every device gets the largest size"
        cost, limits = size.cost, self.limits.get(self.tier(device, profile), Limits())
        if self.ignore_budgets or self._fits(device, profile, size, Way(NO_LEVERS, cost)):
            return ""
        if profile.memory is not None and (needed := self._needed(profile, cost)) > profile.memory:
            return f"it takes {needed / 1e6:.3g} MB of memory, and the device offers {profile.memory / 1e6:.3g}"
        sent = None if self.coding.plain else max(self._bytes(size, cost))
        if not limits.allow(cost, sent):
            return f"it takes more than the operator lets a device of tier {self.tier(device, profile)} spend"
        if not self._in_time(device, profile, size, Way(NO_LEVERS, cost)):
            seconds = self.seconds(device, profile, size)
            return f"it would take {seconds:.3g} s, and the deadline is {self.deadline:g}"
        return "the device has declined it for want of memory"

    def seconds(self, device: str, profile: Profile, size: Size, levers: Levers = NO_LEVERS) -> float:
        """Return the predicted seconds of download, training and upload; 0 for what is unknown."""
        training = self.training_seconds(device, profile, size, levers) or 0.0
        return training + self.transfer_seconds(profile, size, levers)

    def able(self, device: str, profile: Profile) -> bool:
        """Return whether a device can be given a task."""
        return profile.examples > 0 and bool(self.fits(device, profile))

    def fits(self, device: str, profile: Profile) -> Sequence[Size]:
        """Return the sizes that fit the device, smallest first; none for one that is kept out."""
        if self.barred(device):
            return ()
        if self.deadline is not None or self.overrides:
            return self.overrides.among(device, self._fitting(device, profile))
        # Nothing that is learned of a device matters then, but what it declines.
        known = self._known.get(device)
        if known is None or known[0] is not profile:
            known = self._known[device] = profile, self._fitting(device, profile)
        return known[1]

    def barred(self, device: str) -> str:
        """Return why a device takes no part, whatever fits it; empty if it may."""
        out = self.overrides.why_out(device) if self.overrides else ""
        return out or self.suspended(device) or self.unlabelled(device)

    def tier(self, device: str, profile: Profile) -> str:
        """Return the tier whose limits hold for a device."""
        return self.overrides.of(device).tier or profile.tier

    def threads(self, device: str, profile: Profile) -> int:
        """Return the most threads that a device of its tier is to train with; 0 for what its owner allows."""
        return self.limits.get(self.tier(device, profile), Limits()).threads or 0

    def levers(self, device: str, profile: Profile, size: Size) -> Levers:
        """Return the levers with which the device is to train a size that fits it: those that cost the least time."""
        way = None if self.ignore_budgets else self._way(device, profile, size)
        return way.levers if way else NO_LEVERS

    def cost(self, size: Size, levers: Levers) -> Cost:
        """Return what training a size with levers costs."""
        if levers == NO_LEVERS:
            return size.cost
        return next((way.cost for way in self.ways(size) if way.levers == levers), size.cost)

    def fit(self, device: str, profile: Profile) -> Size | None:
        """Return the most capable exported size that fits the device, or None."""
        return next((size for size in reversed(self.fits(device, profile)) if size.exported), None)

    def training_seconds(self, device: str, profile: Profile, size: Size, levers: Levers = NO_LEVERS) -> float | None:
        """Return the predicted seconds of training, corrected by the device's past; None if unknown."""
        if profile.macs_per_second is None:
            return None
        speeds, cost = (profile.macs_per_second, profile.speeds), self.cost(size, levers)
        return training_seconds(cost, self.training, profile.examples, *speeds) * self.correction(device, size)

    def transfer_seconds(self, profile: Profile, size: Size, levers: Levers = NO_LEVERS) -> float:
        """Return the predicted seconds of download and upload; 0 for what is unknown."""
        down, up = self._bytes(size, self.cost(size, levers))
        return (down / profile.down if profile.down else 0.0) + (up / profile.up if profile.up else 0.0)

    def observe(self, device: str, profile: Profile, size: Size, seconds: float, levers: Levers = NO_LEVERS) -> None:
        """Learn from how long the device really trained.

        What the first size shows is taken to be true of the device. When it has trained another one as well, `OWN` of
        what is wrong belongs to the size: the device's speeds at the kinds of work were not told quite right.
        """
        predicted = self.training_seconds(device, profile, size, levers)
        if predicted:
            # In this order, what is no number becomes the most.
            wrong = max(0.0, min(MOST_CORRECTION, 1 - SMOOTHING + SMOOTHING * seconds / predicted))
            own, label = self._own.setdefault(device, {}), size.spec.label
            share = OWN if set(own) - {label} else 0.0
            self._correction[device] = _bounded(self._correction.get(device, 1.0) * wrong ** (1 - share))
            own[label] = _bounded(own.get(label, 1.0) * wrong**share)

    def missed(self, device: str, profile: Profile, size: Size, deadline: float, levers: Levers = NO_LEVERS) -> None:
        """Learn that the device had not delivered by the deadline.

        Nobody knows how much longer it would have taken. The planner assumes twice the deadline, transfers included.
        """
        trained = 2 * deadline - self.transfer_seconds(profile, size, levers)
        seconds = max(trained, self.training_seconds(device, profile, size, levers) or 0.0)
        self.observe(device, profile, size, seconds, levers)

    def declined(self, device: str, profile: Profile, size: Size, levers: Levers = NO_LEVERS) -> None:
        """Learn that the device has too little memory for a size, whatever its profile says.

        It is given nothing of as much memory again before it announces more than in `profile`.
        """
        self._declined[device] = (self.cost(size, levers).memory, profile.memory)
        self._known.pop(device, None)

    def correction(self, device: str, size: Size) -> float:
        """Return how many times what its profile says the device takes to train a size, as learned from its past."""
        return self._correction.get(device, 1.0) * self._own.get(device, {}).get(size.spec.label, 1.0)

    def _fitting(self, device: str, profile: Profile) -> Sequence[Size]:
        """Return the sizes that fit the device, of which the operator may want one."""
        if self.ignore_budgets:
            return self.sizes[-1:]
        sizes = [size for size in self.sizes if self.overrides.may(device, size)]
        found = [(size, way) for size in sizes if (way := self._way(device, profile, size))]
        whole = [size for size, way in found if not way.levers.part]
        return whole if whole and not self.training.parts_first else [size for size, _ in found]

    def _way(self, device: str, profile: Profile, size: Size) -> Way | None:
        """Return the way to train a size that fits the device, that it offers and that takes it the least time.

        None if there is none. Which one takes the least time a device's speeds tell; without them it is the first.
        """
        plain = Way(NO_LEVERS, size.cost)
        if self._fits(device, profile, size, plain):
            return plain
        if not profile.levers:
            return None
        ways = [way for way in self.ways(size) if set(way.levers.used) <= set(profile.levers)]
        fitting = [way for way in ways if self._fits(device, profile, size, way)]
        if profile.speeds:

            def seconds(way: Way) -> float:
                return self.training_seconds(device, profile, size, way.levers) or 0.0

            parts = list(dict.fromkeys(way.levers.part for way in fitting))
            fitting.sort(key=lambda way: (parts.index(way.levers.part), way.levers.half_state, seconds(way)))
        return next(iter(fitting), None)

    def _fits(self, device: str, profile: Profile, size: Size, way: Way) -> bool:
        memory = way.cost.memory
        if profile.memory is not None and self._needed(profile, way.cost) > profile.memory:
            return False
        declined, announced = self._declined.get(device, (None, None))
        more = announced is not None and (profile.memory or 0) > announced
        if declined is not None and memory >= declined and not more:
            return False
        sent = None if self.coding.plain else max(self._bytes(size, way.cost))
        limits = self.limits.get(self.tier(device, profile))
        if limits is not None and not limits.allow(way.cost, sent):
            return False
        return self._in_time(device, profile, size, way)

    def _needed(self, profile: Profile, cost: Cost) -> int:
        """Return the bytes that count against a device's memory: all, if that is what the device has free."""
        return cost.memory + (cost.passing + self.coding.held(cost.bytes_up) if profile.memory_free else 0)

    def _in_time(self, device: str, profile: Profile, size: Size, way: Way) -> bool:
        return self.deadline is None or self.seconds(device, profile, size, way.levers) <= self.deadline

    def _bytes(self, size: Size, cost: Cost) -> tuple[int, int]:
        """Return the bytes of the download and the upload of a size, trained at a cost."""
        down = cost.untrained + self.coding.bytes_down(size.cost.shapes, cost.moving)
        return down, self.coding.bytes_up(cost.shapes, cost.up)


def _bounded(correction: float) -> float:
    return max(1 / MOST_CORRECTION, min(MOST_CORRECTION, correction))
