"""What the operator decides for devices by their names, whatever the planner would choose."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from pydantic.dataclasses import dataclass as validated

from diastole.models.errors import SpecError
from diastole.models.method import Size
from diastole.models.spec import STRICT

LARGEST, SMALLEST = "largest", "smallest"


@validated(frozen=True, slots=True, config=STRICT)
class Override:
    """`[overrides.PATTERN]`: what is decided for the devices whose names fit a pattern.

    Attributes:
        tier: whose limits hold for them; empty: that of their own.
        size: the one that they are given, if it fits: "largest" or "smallest" of those that fit, or a size's label;
            empty: the method chooses.
        exclude: whether they take no part.

    """

    tier: str = ""
    size: str = ""
    exclude: bool = False


NONE = Override()


def is_pattern(name: str) -> bool:
    """Return whether a name stands for more than one device."""
    return any(letter in name for letter in "*?[")


class Overrides:
    """Overrides by device name or pattern, such as `pi-*`. A name holds before any pattern, and then the first one."""

    def __init__(self, table: Mapping[str, Override] | None = None) -> None:
        self._table = dict(table or {})
        self._patterns = [(pattern, each) for pattern, each in self._table.items() if is_pattern(pattern)]

    def __bool__(self) -> bool:
        """Return whether anything is decided for any device."""
        return bool(self._table)

    def of(self, device: str) -> Override:
        """Return what is decided for a device."""
        if not self._table:
            return NONE
        if device in self._table:
            return self._table[device]
        return next((each for pattern, each in self._patterns if fnmatchcase(device, pattern)), NONE)

    def why_out(self, device: str) -> str:
        """Return why a device takes no part; empty if it may."""
        return "the operator excludes it by an override" if self.of(device).exclude else ""

    def may(self, device: str, size: Size) -> bool:
        """Return whether a device may be given a size, as far as labels say."""
        wanted = self.of(device).size
        return wanted in ("", LARGEST, SMALLEST, size.spec.label)

    def among(self, device: str, fitting: Sequence[Size]) -> Sequence[Size]:
        """Return which of the sizes that fit a device, smallest first, it may be given."""
        match self.of(device).size:
            case "":
                return fitting
            case "largest":
                return fitting[-1:]
            case "smallest":
                return fitting[:1]
            case _:
                return [size for size in fitting if self.may(device, size)]

    def check(self, sizes: Iterable[Size]) -> None:
        """Raise `SpecError` for a size that is not on offer."""
        labels = [size.spec.label for size in sizes]
        for pattern, each in self._table.items():
            if each.size not in ("", LARGEST, SMALLEST, *labels):
                accepted = ", ".join(map(repr, (LARGEST, SMALLEST, *labels)))
                raise SpecError(f"overrides.{pattern}.size: no size {each.size!r}; accepted: {accepted}")
