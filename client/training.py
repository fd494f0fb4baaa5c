"""A device's own work: train one sub-model on the local examples."""

import threading
from dataclasses import dataclass

import torch
from torch import nn

from diastole.client.plan import Plan, accelerate, keep_pages
from diastole.models.methods.registry import build
from diastole.models.networks.config import ModelConfig
from diastole.models.seeds import generator, reference_plan
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, check_state
from diastole.models.training import Examples, TrainConfig, fit

MODULES_KEPT = 32
_THREAD = threading.local()


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
    progress: float = 0.0,
) -> Trained:
    """Train the sub-model on one thread; under the `reference` plan the same arguments give the same bits.

    `progress` is the share of the run's rounds that lies behind, in [0, 1].
    Raises `SpecError` if `model` cannot have the sub-model, `StateError` if `state` is not its parameters.
    """
    module = _module(model, spec, plan)
    check_state(state, dict(module.named_parameters()))
    module.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    with reference_plan(), torch.enable_grad():
        loss = fit(module, examples, training, generator(seed), progress)
    # The next task assigns tensors of its own, so these need no copy.
    return Trained({name: parameter.detach() for name, parameter in module.named_parameters()}, loss)


def _module(model: ModelConfig, spec: SubModelSpec, plan: Plan) -> nn.Module:
    """Return this thread's module for a sub-model: building one costs as much as a small training step."""
    if not hasattr(_THREAD, "modules"):
        _THREAD.modules = {}
    modules: dict[tuple[ModelConfig, SubModelSpec, Plan], nn.Module] = _THREAD.modules
    key = (model, spec, plan)
    if key not in modules:
        if len(modules) >= MODULES_KEPT:
            modules.clear()
        with torch.device("meta"):
            module = build(model, spec)
        if plan == "fast":
            keep_pages()
            accelerate(module)
        modules[key] = module
    return modules[key]
