"""A small network for windows of vibration; it does not normalise, because the amplitude says how large a push is."""

from torch import nn


def make() -> nn.Module:
    """Return a network that takes windows `[n, 3, 64]` and gives two values `[n, 2]`."""
    return nn.Sequential(
        nn.Conv1d(3, 32, 9, padding=4),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(32, 32, 7, padding=3),
        nn.ReLU(),
        nn.MaxPool1d(4),
        nn.Flatten(),
        nn.Linear(32 * 8, 64),
        nn.ReLU(),
        nn.Linear(64, 2),
    )
