"""What goes wrong in the field, done to a fleet on purpose: the same seed does the same to the same agents."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from diastole.models.seeds import derive_seed
from diastole.simulations.fleet.fleet import Fleet

Kind = Literal["kill", "pause", "throttle"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SHARE = 0.25
"""Of its processor time that a throttled agent keeps."""


@dataclass(frozen=True, slots=True)
class Act:
    """Something done to some agents at once."""

    kind: Kind
    names: tuple[str, ...]


def drawn(names: Sequence[str], kinds: Sequence[Kind], times: int, at_once: int, seed: int) -> Iterator[Act]:
    """Yield what is to be done, one after the other; the names of the draws are `fleet`, `chaos` and `seed`."""
    # The generator decides nothing that anybody must not guess.
    draws = random.Random(derive_seed("fleet", "chaos", seed))  # noqa: S311
    for _ in range(times):
        yield Act(draws.choice(kinds), tuple(sorted(draws.sample(sorted(names), min(at_once, len(names))))))


def disturb(
    fleet: Fleet,
    acts: Iterator[Act],
    hold: float,
    rest: float,
    tell: Callable[[Act], None],
    wait: Callable[[float], object] = time.sleep,
) -> None:
    """Do each act, undo it after `hold` seconds, and rest; an agent that is not there is left out.

    However it ends, no agent stays paused or throttled, and those that were killed run again, unless the fleet is gone.
    """
    members = {each.name: each for each in fleet.members()}
    for act in acts:
        if not fleet.stands():
            return
        there = fleet.back.states()
        act = Act(act.kind, tuple(name for name in act.names if there.get(name) == "running"))
        tell(act)
        try:
            for name in act.names:
                if act.kind == "kill":
                    fleet.back.kill(name)
                elif act.kind == "pause":
                    fleet.back.pause(name)
            if act.kind == "throttle":
                fleet.back.throttle([members[name] for name in act.names], SHARE, hold)
            else:
                wait(hold)
        finally:
            _mend(fleet, act)
        wait(rest)


def _mend(fleet: Fleet, act: Act) -> None:
    if not fleet.stands():
        return
    members, states = {each.name: each for each in fleet.members()}, fleet.back.states()
    for name in act.names:
        if act.kind == "kill" and name in members and name not in states:
            fleet.back.start(members[name])
        elif act.kind == "pause" and states.get(name) == "paused":
            fleet.back.resume(name)
