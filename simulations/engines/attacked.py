"""Simulated devices some of which mean harm: what an engine has trained is spoiled before it is sent."""

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import torch

from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.server.link import Failure, Link
from diastole.simulations.attack import Attack
from diastole.simulations.engines.front import FrontLink


class AttackedLink(FrontLink):
    """A link in front of another one, whose engine trains as if everybody were honest.

    Whoever flips labels has them flipped in its examples already (`simulations/devices.py`).
    """

    def __init__(self, inner: Link, model: ModelConfig, attack: Attack, attackers: Collection[str]) -> None:
        """Let `attackers`, of the devices of `inner`, attack."""
        profiles = dict(inner.devices())
        if attack.examples:
            profiles |= {name: replace(profiles[name], examples=attack.examples) for name in attackers}
        super().__init__(inner, model, profiles)
        self._attack, self._attackers = attack, attackers

    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        """Train the tasks and yield what the devices send."""
        with closing(self._inner.dispatch(tasks, states, deadline)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Update) and outcome.device in self._attackers:
                    yield self._spoiled(outcome, states[outcome.spec])
                else:
                    yield outcome

    def _spoiled(self, update: Update, sent: State) -> Update:
        """Return what an attacker sends in the place of its update."""
        attack, state = self._attack, update.state
        if attack.kind == "sign-flip":
            state = {name: sent[name] - attack.factor * (tensor - sent[name]) for name, tensor in state.items()}
        elif attack.kind == "constant":
            state = {name: torch.full_like(tensor, attack.value) for name, tensor in state.items()}
        report = replace(update.report, examples=attack.examples or update.report.examples)
        return replace(update, state=state, report=report)
