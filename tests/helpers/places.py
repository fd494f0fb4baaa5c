"""Networks of a user's own that answer every place of a map or of a sequence."""

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A residual block on maps of any number of axes."""

    def __init__(self, channels: int, axes: int) -> None:
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d)[axes - 1]
        self.norm, self.conv = nn.GroupNorm(channels // 2, channels), kind(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(self.norm(x)))


class Maps(nn.Module):
    """Gives a map `[answers, 8, 8]` for an image `[1, 8, 8]`, by way of one of half the height and width."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.stem, self.fine = nn.Conv2d(1, 8, 3, padding=1), Block(8, 2)
        self.down, self.coarse = nn.Conv2d(8, 16, 2, 2), nn.Sequential(Block(16, 2), Block(16, 2))
        self.up, self.head = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(8, answers, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up(self.coarse(self.down(self.fine(self.stem(x)))))))


class Sayer(nn.Module):
    """Gives `[length, 5]` for tokens `[length]`: classes last, as language models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.one, self.two = nn.Embedding(5, 8), Block(8, 1), Block(8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.letters(x).transpose(1, 2))).transpose(1, 2))


def segmenter() -> nn.Module:
    return Maps(3)


def painter() -> nn.Module:
    return Maps(1)
