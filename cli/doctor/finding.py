"""What a check of a deployment comes to."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found.

    Attributes:
        check: what was looked at, one or two words.
        level: how bad it is.
        what: is the case.
        why: it matters, or came about; empty if all is well.
        todo: what mends it; likewise.

    """

    check: str
    level: Level
    what: str
    why: str = ""
    todo: str = ""


def ok(check: str, what: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, Level.OK, what)


def warning(check: str, what: str, why: str, todo: str) -> Finding:
    """Return a finding of what is not wrong yet."""
    return Finding(check, Level.WARNING, what, why, todo)


def fault(check: str, what: str, why: str, todo: str) -> Finding:
    """Return a finding of what is wrong."""
    return Finding(check, Level.FAULT, what, why, todo)
