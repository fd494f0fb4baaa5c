"""Parameters that nobody trains, named by patterns."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def idle(names: Sequence[str], patterns: Iterable[str]) -> str | None:
    """Return the first pattern that matches none of the names, or None."""
    return next((pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)), None)


def freeze(module: nn.Module, patterns: Sequence[str]) -> None:
    """Let no gradient reach the parameters whose names match one of the patterns, in place."""
    for name, parameter in module.named_parameters():
        if matches(name, patterns):
            parameter.requires_grad_(False)
