"""A small UNet (Ronneberger et al., MICCAI 2015): down, and up again with what was before beside it."""

import torch
from torch import Tensor, nn


def pair(inside: int, outside: int) -> nn.Sequential:
    """Return two convolutions with their norms."""
    layers: list[nn.Module] = []
    for channels in (inside, outside):
        layers += [nn.Conv2d(channels, outside, 3, padding=1), nn.GroupNorm(outside // 4, outside), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Takes images `[n, 1, 20, 20]`, gives logits `[n, 6, 20, 20]` of each pixel's class."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.middle, self.coarse = pair(1, 16), pair(16, 32), pair(32, 32)
        self.pool = nn.MaxPool2d(2)
        self.up1, self.back1 = nn.ConvTranspose2d(32, 32, 2, 2), pair(64, 32)
        self.up0, self.back0 = nn.ConvTranspose2d(32, 16, 2, 2), pair(32, 16)
        self.head = nn.Conv2d(16, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        fine = self.fine(x)
        middle = self.middle(self.pool(fine))
        coarse = self.coarse(self.pool(middle))
        middle = self.back1(torch.cat([self.up1(coarse), middle], 1))
        return self.head(self.back0(torch.cat([self.up0(middle), fine], 1)))
