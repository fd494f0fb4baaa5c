"""The small CNN that pfl-research's CIFAR-10 benchmark trains."""

from collections.abc import Sequence

from torch import Tensor, nn

from diastole.models.dropout import Dropout


class SimpleCNN(nn.Module):
    """Two 3x3 convolutions without padding, 2x2 max-pooling, a hidden dense layer; ReLU, dropout, no normalisation.

    The network of Granqvist et al., pfl-research (NeurIPS 2024), `benchmarks/model/pytorch/cnn.py`: with widths 32,
    64 and 128 and CIFAR-10 it has 1,626,442 parameters. Weights start from Glorot's uniform distribution.
    Takes `[n, channels, height, width]`, gives logits `[n, classes]`.
    """

    def __init__(self, input_shape: Sequence[int], classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = input_shape
        first, second, hidden = widths
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, 3), nn.ReLU(), nn.Conv2d(first, second, 3), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.dropout = Dropout(0.25)
        self.hidden = nn.Linear(second * ((height - 4) // 2) * ((width - 4) // 2), hidden)
        self.hidden_dropout = Dropout(0.5)
        self.classifier = nn.Linear(hidden, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]`."""
        x = self.dropout(self.features(x).flatten(1))
        logits: Tensor = self.classifier(self.hidden_dropout(self.hidden(x).relu()))
        return logits
