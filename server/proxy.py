"""The server's own training on its proxy set, which every method may use."""

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from diastole.models.spec import STRICT
from diastole.models.training import TrainConfig


@validated(frozen=True, slots=True, config=STRICT)
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

    def training(self, devices: TrainConfig) -> TrainConfig:
        """Return how the server trains, if `epochs` is at least 1: by the loss of the devices' training."""
        return TrainConfig(
            loss=devices.loss,
            smoothing=devices.smoothing,
            class_weights=devices.class_weights,
            delta=devices.delta,
            balance=devices.balance,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
        )
