"""Waiting for devices that can be given a task, and saying for whom and why."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from diastole.proto.profile import Profile
from diastole.server.errors import RoundError
from diastole.server.link import Link
from diastole.server.planner import Planner

LOOK_SECONDS = 5.0
"""A device that can be given a task may take the place of one that cannot; the coordinator looks so often."""

BACK_SECONDS = 30.0
"""That a run which has begun waits for all its devices when its coordinator is started again."""

MOST_NAMES = 5


@dataclass(slots=True)
class Waiting:
    """Waits over a link.

    Attributes:
        link: to the devices.
        planner: says which of them can be given a task.
        patience: seconds until the run is given up; None: never.
        expected: how many devices of each tier are expected.
        clock: seconds.
        stopped: returns whether nobody is to wait any more.
        tell: is given a line about whom the run waits for, whenever it changes.

    """

    link: Link
    planner: Planner
    patience: float | None
    expected: Mapping[str, int]
    clock: Callable[[], float]
    stopped: Callable[[], bool]
    tell: Callable[[str], None]
    _told: str = ""

    def until_able(self, count: int) -> None:
        """Wait until `count` devices are online that can be given a task. Raises `RoundError`.

        For those that are there and kept out nobody is awaited in their place, but one device at least must be able.
        """
        began, wanted = self.clock(), count
        while not self.stopped():
            devices = self.link.devices()
            count = max(min(1, wanted), wanted - sum(1 for name in devices if self.planner.barred(name)))
            unable = [name for name in sorted(devices) if not self.planner.able(name, devices[name])]
            if len(devices) - len(unable) >= count:
                return
            self._say(count, devices, unable)
            left = LOOK_SECONDS if self.patience is None else began + self.patience - self.clock()
            before = self.clock()
            if self.link.wait(count + len(unable), left):
                continue
            if self.patience is not None or self.clock() - before < LOOK_SECONDS / 2:
                # Patience is over, or the link knows that nobody else will come.
                self._give_up(began, count, self.link.devices())

    def until_back(self, count: int) -> None:
        """Wait until `count` devices are back that can be given a task; for a while only.

        A device that has vanished since the run began must not hold it for ever.
        """
        # Those who were there when the coordinator ended are waited for first, by the link.
        self.link.wait(0, 0.0)
        until = self.clock() + BACK_SECONDS
        while not self.stopped() and (left := until - self.clock()) > 0:
            devices = self.link.devices()
            unable = [name for name in sorted(devices) if not self.planner.able(name, devices[name])]
            if len(devices) - len(unable) >= count:
                return
            self._say(count, devices, unable)
            if not self.link.wait(count + len(unable), left):
                return

    def until_online(self, count: int) -> None:
        """Wait until `count` devices are online, whatever they can be given. Raises `RoundError`."""
        began = self.clock()
        while not self.stopped() and len(self.link.devices()) < count:
            self._say(count, self.link.devices(), [])
            before = self.clock()
            if self.link.wait(count, LOOK_SECONDS if self.patience is None else self.patience):
                return
            if self.patience is not None or self.clock() - before < LOOK_SECONDS / 2:
                self._give_up(began, count, self.link.devices())

    def again(self, began: float) -> None:
        """Let some time pass because nobody who is online can be given a task. Raises `RoundError`.

        `began` is when this began.
        """
        devices = self.link.devices()
        self._say(1, devices, sorted(devices))
        before = self.clock()
        for _ in self.link.dispatch([], {}, None):
            pass
        patience = math.inf if self.patience is None else self.patience
        if not self.stopped() and (self.clock() - began > patience or self.clock() - before < 0.01):
            self._give_up(began, 1, devices)

    def done(self) -> None:
        """Say the same again the next time."""
        self._told = ""

    def _give_up(self, began: float, count: int, devices: Mapping[str, Profile]) -> None:
        if self.stopped():
            return
        unable = [name for name in sorted(devices) if not self.planner.able(name, devices[name])]
        if len(devices) - len(unable) < count:
            after = f" after waiting {self.clock() - began:.3g} s" if self.patience is not None else ""
            raise RoundError(f"{self._line(count, devices, unable)}{after}")

    def _say(self, count: int, devices: Mapping[str, Profile], unable: list[str]) -> None:
        line = self._line(count, devices, unable)
        if line != self._told:
            self._told = line
            self.tell(line)

    def _line(self, count: int, devices: Mapping[str, Profile], unable: list[str]) -> str:
        able = [name for name in devices if name not in unable]
        parts = [f"{len(able)} of {count} devices"]
        there = Counter(devices[name].tier for name in able)
        missing = {tier: most - there[tier] for tier, most in self.expected.items() if there[tier] < most}
        if count > 1 and missing:
            parts.append("missing are " + ", ".join(f"{number} of tier {tier}" for tier, number in missing.items()))
        for name in unable[:MOST_NAMES]:
            parts.append(f"{name} is there, but {self._why(name, devices[name])}")
        if len(unable) > MOST_NAMES:
            parts.append(f"and so are {len(unable) - MOST_NAMES} others")
        return "; ".join(parts)

    def _why(self, name: str, profile: Profile) -> str:
        if barred := self.planner.barred(name):
            return barred
        size = self.planner.sizes[-1 if self.planner.ignore_budgets else 0]
        return f"no size fits it ({size.spec.label}: {self.planner.why_not(name, profile, size)})"
