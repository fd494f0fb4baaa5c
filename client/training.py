"""A device's own work: train one sub-model on the local examples."""

from dataclasses import dataclass

import torch

from diastole.client.plan import Plan, arrange, keep_pages, memory_format
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
    model: ModelConfig,
    spec: SubModelSpec,
    state: State,
    training: TrainConfig,
    seed: int,
    examples: Examples,
    plan: Plan = "reference",
) -> Trained:
    """Train the sub-model on one thread; under the `reference` plan the same arguments give the same bits.

    Raises `SpecError` if `model` cannot have the sub-model, `StateError` if `state` is not its parameters.
    """
    with torch.device("meta"):
        module = build(model, spec)
    check_state(state, dict(module.named_parameters()))
    form = memory_format(module, plan)
    if plan == "fast":
        keep_pages()
    module.load_state_dict({name: arrange(tensor.clone(), form) for name, tensor in state.items()}, assign=True)
    with reference_plan(), torch.enable_grad():
        loss = fit(module, Examples(arrange(examples.x, form), examples.y), training, generator(seed))
    return Trained({name: tensor.contiguous() for name, tensor in state_of(module).items()}, loss)
