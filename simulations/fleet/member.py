"""An agent of a fleet, its limits, and what every back end can do with agents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from diastole.proto.errors import DiastoleError

MARK = "DIASTOLE_FLEET"
"""The variable, or the label, by which a fleet's agents are found: nothing else says which there are."""


class FleetError(DiastoleError):
    """A fleet that cannot be, or cannot do what is asked."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Size:
    """What each agent of a tier may take.

    Attributes:
        cpus: cores' time.
        memory: bytes, of the whole process.
        training: what the agent is told that training may take, such as 640kB; empty for what is free.

    """

    cpus: float
    memory: int
    training: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """An agent that is to run.

    Attributes:
        name: of the device, too.
        tier: that it joins.
        size: its limits.
        data: its file of examples.
        token: the file with the token by which it enrolls; None without.

    """

    name: str
    tier: str
    size: Size
    data: Path
    token: Path | None = None

    def command(self, address: str, data: Path, state: Path, token: Path | None, more: Sequence[str]) -> list[str]:
        """Return what the agent runs, with the files as it sees them."""
        words = ["join", address, "--data", str(data), "--name", self.name, "--tier", self.tier, "--state", str(state)]
        words += ["--memory", self.size.training] if self.size.training else []
        words += ["--enroll-file", str(token)] if token else []
        return [*words, *more]


class Backend(Protocol):
    """What runs agents: `running` and `paused` are states of agents that there are."""

    def states(self) -> Mapping[str, str]:
        """Return the state of every agent of the fleet that there is, by its name."""
        ...

    def start(self, member: Member) -> None:
        """Start an agent, or start it again. Raises `FleetError`."""
        ...

    def remove(self, names: Sequence[str], *, keep: bool = False) -> None:
        """Tell agents to leave, end those that do not, and remove what they kept, unless it is to be kept."""
        ...

    def kill(self, name: str) -> None:
        """End an agent at once, as a crash would."""
        ...

    def pause(self, name: str) -> None:
        """Stop an agent where it stands."""
        ...

    def resume(self, name: str) -> None:
        """Let a paused agent go on."""
        ...

    def throttle(self, members: Sequence[Member], share: float, seconds: float) -> None:
        """Give agents a share of their processor time, for so long."""
        ...
