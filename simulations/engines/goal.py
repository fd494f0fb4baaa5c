"""Rounds that close at a goal, where devices have no clock: who comes first is drawn."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing

import torch

from diastole.models.networks.config import ModelConfig
from diastole.models.seeds import generator
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.server.link import Failure, Link
from diastole.simulations.engines.front import FrontLink


class GoalLink(FrontLink):
    """A link in front of another one that has devices finish in an order drawn by the run's seed, anew each round.

    No more of them train than the round needs; the others have spent nothing.
    """

    def __init__(self, inner: Link, model: ModelConfig, goal: int, seed: int) -> None:
        """Let `goal` devices of `inner` train, and others only if updates of theirs do not count."""
        super().__init__(inner, model)
        self._goal, self._seed = goal, seed

    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        """Train the tasks that come first, and go on while the caller asks for more."""
        number = tasks[0].round if tasks else 0
        order = torch.randperm(len(tasks), generator=generator(self._seed, number, "arrival")).tolist()
        with closing(in_parts(self._inner, [tasks[place] for place in order], states, self._goal)) as outcomes:
            yield from outcomes


def in_parts(
    link: Link, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], goal: int | None
) -> Generator[Update | Failure, None, None]:
    """Dispatch the first `goal` tasks, then one after another, as long as the caller asks; None: all at once.

    An engine that trains several at a time then trains, and remembers, what any other does.
    """
    left, count = list(tasks), goal or len(tasks)
    while True:
        part, left, count = left[:count], left[count:], 1
        with closing(link.dispatch(part, states, None)) as outcomes:
            yield from outcomes
        if not left:
            return
