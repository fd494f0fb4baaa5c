"""A device's own work: train one sub-model on the local examples."""

from dataclasses import dataclass

import torch

from diastole.models.networks import ModelConfig, build
from diastole.models.seeds import generator, reference_plan
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, check_state, state_of
from diastole.models.training import Examples, TrainConfig, fit


@dataclass(frozen=True, slots=True)
class Trained:
    """The outcome of one task.

    Attributes:
        state: the trained parameters.
        loss: mean training loss of the last epoch.

    """

    state: State
    loss: float


def train(
    model: ModelConfig, spec: SubModelSpec, state: State, training: TrainConfig, seed: int, examples: Examples
) -> Trained:
    """Train the sub-model on one thread; the same arguments give the same bits.

    Raises `SpecError` if `model` cannot have the sub-model, `StateError` if `state` is not its parameters.
    """
    module = build(model, spec)
    check_state(state, state_of(module))
    module.load_state_dict(state)
    with reference_plan(), torch.enable_grad():
        loss = fit(module, examples, training, generator(seed))
    return Trained(state_of(module), loss)
