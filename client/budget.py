"""When the owner of a device lets it work, and how much of its processor: looked at between steps of training."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from diastole.client.groups import cores

SUPPLIES = Path("/sys/class/power_supply")
ASK_NETWORK_SECONDS = 60.0
NETWORK_ANSWER_SECONDS = 2.0
LEAST_CPU = 0.01
DAY = 24 * 60


@dataclass(frozen=True, slots=True)
class Hours:
    """A part of every day, by the device's own clock, in minutes after midnight; it may span midnight."""

    start: int
    end: int

    @staticmethod
    def parse(text: str) -> "Hours":
        """Read `22:00-06:00`. Raises `ValueError`."""
        found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)-([01]?\d|2[0-4]):([0-5]\d)", text.strip())
        start, end = (60 * int(found[k]) + int(found[k + 1]) for k in (1, 3)) if found else (0, 0)
        if start == end or end > DAY:
            raise ValueError(f"hours {text!r}; expected a part of the day, such as 22:00-06:00")
        return Hours(start, end)

    def __contains__(self, now: datetime) -> bool:
        minute = now.hour * 60 + now.minute
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def __str__(self) -> str:
        return "-".join(f"{minutes // 60:02}:{minutes % 60:02}" for minutes in (self.start, self.end))


@dataclass(frozen=True, slots=True)
class Budget:
    """What the owner allows.

    Attributes:
        cpu: the share of the time in which the agent trains, in (0, 1]; it rests after each step for the others.
        hours: of the day in which it works; None for all.
        charging: work only while the device is on mains.
        metered: stay away while NetworkManager says that a link in use is metered.
        pause_file: do nothing while this file exists.
        threads: that it may train with at most; None for one a core that it may use.

    """

    cpu: float = 1.0
    hours: Hours | None = None
    charging: bool = False
    metered: bool = False
    pause_file: Path | None = None
    threads: int | None = None

    @property
    def most_threads(self) -> int:
        """How many threads a plan may have."""
        return min(self.threads or cores(), cores())

    def within(self, threads: int) -> int:
        """Return how many threads a plan may have of as many as a coordinator allows; 0 for any."""
        return min(threads or self.most_threads, self.most_threads)

    def __post_init__(self) -> None:
        """Raise `ValueError` for a share that is none, or for no threads."""
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads {self.threads}; expected at least 1")
        if not LEAST_CPU <= self.cpu <= 1:
            raise ValueError(f"cpu {self.cpu:g}; expected a share of the time from {LEAST_CPU:g} to 1")


class Watchman:
    """Says why the agent must not work now."""

    def __init__(
        self,
        budget: Budget,
        clock: Callable[[], datetime] = datetime.now,
        supplies: Path = SUPPLIES,
        ask: Callable[[], str] | None = None,
    ) -> None:
        """Watch over a budget; `ask` returns what NetworkManager says of each device."""
        self._budget, self._clock, self._supplies = budget, clock, supplies
        self._ask = ask or _network
        self._metered, self._asked = False, float("-inf")

    def obstacle(self) -> str:
        """Return why not, in a few words; empty if nothing is in the way."""
        budget = self._budget
        if budget.pause_file is not None and budget.pause_file.exists():
            return f"{budget.pause_file} exists"
        if budget.hours is not None and self._clock() not in budget.hours:
            return f"outside {budget.hours}"
        if budget.charging and not on_mains(self._supplies):
            return "on battery"
        if budget.metered and self._is_metered():
            return "the link is metered"
        return ""

    def _is_metered(self) -> bool:
        now = time.monotonic()
        if now - self._asked >= ASK_NETWORK_SECONDS:
            self._asked, self._metered = now, metered(self._ask())
        return self._metered


def on_mains(supplies: Path = SUPPLIES) -> bool:
    """Return whether the device is on mains, as Linux says; so is one that has neither mains nor a battery to name."""
    kinds = {folder: _read(folder / "type") for folder in supplies.iterdir()} if supplies.is_dir() else {}
    mains = [folder for folder, kind in kinds.items() if kind in ("Mains", "USB", "Wireless")]
    batteries = [folder for folder, kind in kinds.items() if kind == "Battery" and _read(folder / "scope") != "Device"]
    if mains:
        return any(_read(folder / "online") in ("1", "2") for folder in mains)
    return all(_read(folder / "status") != "Discharging" for folder in batteries)


def metered(answer: str) -> bool:
    """Return whether `nmcli -t -f GENERAL.STATE,GENERAL.METERED device show` names a metered link in use."""
    for device in answer.split("\n\n"):
        fields = dict(line.partition(":")[::2] for line in device.splitlines())
        if fields.get("GENERAL.STATE", "").startswith("100") and fields.get("GENERAL.METERED", "").startswith("yes"):
            return True
    return False


def _network() -> str:
    program = shutil.which("nmcli")
    if program is None:
        return ""
    try:
        command = [program, "-t", "-f", "GENERAL.STATE,GENERAL.METERED", "device", "show"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=NETWORK_ANSWER_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return found.stdout


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
