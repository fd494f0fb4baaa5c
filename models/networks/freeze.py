"""Parameters that nobody trains, named by patterns."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn


def freeze(module: nn.Module, patterns: Sequence[str]) -> None:
    """Let no gradient reach the parameters whose names match one of the patterns, in place."""
    for name, parameter in module.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)


def idle(names: Sequence[str], patterns: Sequence[str]) -> str | None:
    """Return the first pattern that matches none of the names, or None."""
    return next((pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)), None)
