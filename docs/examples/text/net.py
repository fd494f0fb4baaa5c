"""A small network for characters: an embedding, convolutions over the line, and the largest value of each channel."""

from torch import Tensor, nn


class Lines(nn.Module):
    """Takes tokens int64 `[n, 40]`, gives logits `[n, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(128, 24)
        self.near, self.far = nn.Conv1d(24, 48, 3, padding=1), nn.Conv1d(48, 48, 5, padding=2)
        self.norm = nn.GroupNorm(12, 48)
        self.classifier = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the words that may have stood in front of each line."""
        y = self.near(self.letters(x).transpose(1, 2)).relu()
        return self.classifier(self.norm(self.far(y)).relu().amax(2))
