"""The server's own training on its proxy set, which every method may use."""

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from diastole.models.networks import ModelConfig, build
from diastole.models.seeds import generator
from diastole.models.state import State, state_of
from diastole.models.training import Examples, TrainConfig, fit


@validated(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ProxyConfig:
    """Supervised training of the global model on the proxy set at the end of each round.

    Attributes:
        epochs: passes a round; 0 for none.
        batch_size: examples a step.
        learning_rate: of SGD.
        momentum: of SGD.

    """

    epochs: int = Field(default=0, ge=0)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=0.02, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)


def train_on_proxy(model: ModelConfig, state: State, examples: Examples, config: ProxyConfig, seed: int) -> State:
    """Return the global state after `config.epochs` passes over `examples`, drawn from `seed`."""
    if not config.epochs or not len(examples):
        return state
    module = build(model)
    module.load_state_dict(state)
    training = TrainConfig(
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
    )
    with torch.enable_grad():
        fit(module, examples, training, generator(seed))
    return state_of(module)
