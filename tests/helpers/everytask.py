"""Every kind of task: a network, a loss, and targets that a small network can learn from the inputs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diastole.models.allowed import allow
from diastole.models.networks.config import ModelConfig, Named
from diastole.models.training import Examples, TrainConfig

IMAGE = (1, 8, 8)


def _cnn(classes: int) -> ModelConfig:
    return ModelConfig("cnn", IMAGE, classes=classes, widths=(8, 16), group=2)


def _own(
    name: str, shape: tuple[int, ...], classes: int, outputs: tuple[int, ...], stages: Named, vocabulary: int = 0
) -> ModelConfig:
    factory = f"places:{name}"
    allow(factory)
    return ModelConfig(
        "custom",
        shape,
        classes=classes,
        group=2,
        factory=factory,
        outputs=outputs,
        stages=stages,
        vocabulary=vocabulary,
    )


MAPS, CHAIN = (("fine",), ("coarse.0", "coarse.1")), (("one",), ("two",))


@dataclass(frozen=True)
class Kind:
    """One kind of task.

    Attributes:
        model: whose outputs answer it.
        loss: by name.
        targets: of inputs `[n, ...]`.
        metric: that it is judged by.

    """

    model: ModelConfig
    loss: str
    targets: Callable[[Tensor], Tensor]
    metric: str

    @property
    def training(self) -> TrainConfig:
        return TrainConfig(epochs=4, batch_size=16, learning_rate=0.01, loss=self.loss)

    def examples(self, count: int, seed: int = 0) -> Examples:
        """Return examples, the same for every call with the same seed."""
        draws, shape = torch.Generator().manual_seed(seed), (count, *self.model.input_shape)
        if self.model.tokens:
            x = torch.randint(self.model.vocabulary, shape, generator=draws)
        else:
            x = torch.randn(shape, generator=draws)
        return Examples(x, self.targets(x))


def _tokens(x: Tensor) -> Tensor:
    """Return what follows each token; one position does not count."""
    return ((2 * x + 1) % 5).index_fill(1, torch.tensor([1]), -100)


KINDS = {
    "classes": Kind(_cnn(4), "cross-entropy", lambda x: x.flatten(1)[:, :4].argmax(1), "accuracy"),
    "labels": Kind(_cnn(4), "multi-label", lambda x: (x.flatten(1)[:, :4] > 0).float(), "f1"),
    "value": Kind(_cnn(1), "huber", lambda x: x.flatten(1)[:, :3].sum(1), "mae"),
    "values": Kind(
        ModelConfig("resnet", IMAGE, classes=3, widths=(8, 16), blocks=(1, 1), group=2),
        "mse",
        lambda x: x.flatten(1)[:, :3],
        "rmse",
    ),
    "tokens": Kind(_own("Sayer", (8,), 5, (8, 5), CHAIN, vocabulary=5), "next-token", _tokens, "perplexity"),
    "pixels": Kind(
        _own("segmenter", IMAGE, 3, (3, 8, 8), MAPS),
        "cross-entropy",
        lambda x: (x[:, 0] > 0.5).long() + (x[:, 0] > -0.5).long(),
        "iou",
    ),
    "field": Kind(_own("painter", IMAGE, 1, IMAGE, MAPS), "mse", lambda x: 2 * x + 1, "rmse"),
}
