"""The models that a device uses itself: the sub-model that it trained last, and one of its own for each run."""

import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass

from torch import nn

from diastole.client.choices import Personal
from diastole.client.inference import CURRENT, PERSONAL, as_file, personal_of
from diastole.client.scoring import inputs_of
from diastole.client.statefolder import StateFolder
from diastole.models.errors import ModelError, StoppedError
from diastole.models.methods.registry import filled
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import classifier
from diastole.models.seeds import generator, reference_plan
from diastole.models.state import State, state_of
from diastole.models.task import Task
from diastole.models.training import Examples, fit


@dataclass(frozen=True, slots=True)
class _Latest:
    model: ModelConfig
    task: Task
    state: State
    examples: Examples


class Current:
    """Keeps the sub-model that was trained last in a folder, and a model of its own of each run; no folder, nothing.

    Nothing of it is ever sent.
    """

    def __init__(self, folder: StateFolder | None, personal: Personal, every: float) -> None:
        """Write a model `every` so many seconds at most, and the last one when all is over."""
        self._folder, self._personal, self._every = folder, personal, every
        # By run, in the order in which they were trained last.
        self._latest: dict[str, _Latest] = {}
        self._last: _Latest | None = None
        self._written = time.monotonic()

    def take(self, run_id: str, model: ModelConfig, task: Task, state: State, examples: Examples) -> None:
        """Note what has been trained in a run, and on what."""
        if self._folder is not None:
            self._latest.pop(run_id, None)
            self._latest[run_id] = self._last = _Latest(model, task, state, examples)
            if time.monotonic() - self._written >= self._every:
                self._write()

    def leave(self, runs: Container[str]) -> None:
        """Train the device's own model of each run that is over, because it is not among `runs`."""
        for run_id in [each for each in self._latest if each not in runs]:
            self._own(self._latest.pop(run_id), run_id)

    def finish(self, *, over: bool) -> None:
        """Write what was trained last and, if all is over, train the device's own model of each run."""
        self._write()
        if over:
            self.leave(())

    def _own(self, latest: _Latest, run_id: str) -> None:
        if self._personal == "none" or not len(latest.examples):
            return
        state = personalise(latest.model, latest.task, latest.state, latest.examples, self._personal)
        for name in (personal_of(run_id), PERSONAL):
            self._keep(name, latest, state)

    def _write(self) -> None:
        if self._last is not None:
            self._keep(CURRENT, self._last, self._last.state)
        self._last, self._written = None, time.monotonic()

    def _keep(self, name: str, latest: _Latest, state: State) -> None:
        # Batch normalisation has no statistics of a single example.
        with suppress(ModelError):
            inputs = inputs_of(latest.examples.to(latest.model.dtype))
            data = as_file(latest.model, latest.task.spec, latest.task.round, state, inputs)
            if self._folder is not None:
                self._folder.write(name, data)


def personalise(model: ModelConfig, task: Task, state: State, examples: Examples, personal: Personal) -> State:
    """Return a sub-model's parameters after further training on the device's examples, as a task trains.

    Args:
        model: the global model.
        task: that the sub-model was last trained in; its settings hold here, and its seed with a name of its own.
        state: the sub-model's parameters.
        examples: the device's, to train on.
        personal: "head" for the layer that gives the outputs alone, "finetune" for all.

    Raises `ModelError` if the network has no such layer.

    """
    module = filled(model, task.spec, {name: tensor.clone() for name, tensor in state.items()})
    if personal == "head":
        _only_head(module, classifier(model))
    with reference_plan(), suppress(StoppedError):
        fit(module, examples.to(model.dtype), task.training, generator(task.seed, "personal"), task.progress)
    return state_of(module)


def _only_head(module: nn.Module, path: str) -> None:
    heads = [name for name, _ in module.named_parameters() if path and f".{path}." in f".{name}"]
    if not heads:
        raise ModelError(f"a {type(module).__name__} has no one layer that gives its outputs; use personal finetune")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in heads)
