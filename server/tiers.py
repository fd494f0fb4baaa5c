"""Which tier a device belongs to: the operator decides, and what a device asks for can only narrow it."""

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from diastole.server.errors import TierError
from diastole.server.overrides import Overrides


class Tiers:
    """The tiers of a federation, and the devices that may be in each."""

    def __init__(self, names: Mapping[str, Sequence[str]], overrides: Overrides | None = None) -> None:
        """Take, for each tier, the largest devices' first, the patterns of the names of devices that may be in it.

        A pattern is as in a shell, such as `pi-*`; a tier without patterns is open to every device. The operator's
        `overrides` come before what a device asks for, and before the patterns.
        """
        self._overrides = overrides or Overrides()
        self._names = {tier: tuple(patterns) for tier, patterns in names.items()}

    @property
    def names(self) -> Collection[str]:
        """The tiers, from the largest to the smallest."""
        return self._names.keys()

    def open_to(self, device: str) -> list[str]:
        """Return the tiers that a device may be in, from the largest to the smallest.

        These are the tiers whose patterns name the device, and all smaller open ones. If no pattern names it, these are
        all open tiers.
        """
        named = [any(fnmatchcase(device, pattern) for pattern in patterns) for patterns in self._names.values()]
        first = named.index(True) if any(named) else 0
        return [
            tier
            for place, (tier, patterns) in enumerate(self._names.items())
            if place >= first and (named[place] or not patterns)
        ]

    def place(self, device: str, asked: str) -> str:
        """Return the tier of a device that asks for `asked`; if it asks for none, the smallest that it may be in.

        Raises `TierError` for a tier that does not exist, or that the device may not be in.
        """
        if fixed := self._overrides.of(device).tier:
            return fixed
        allowed = self.open_to(device)
        if asked in allowed:
            return asked
        if not asked and allowed:
            return allowed[-1]
        accepted = ", ".join(allowed) or "none"
        if asked and asked not in self._names:
            raise TierError(f"there is no tier {asked!r}; device {device!r} may be in: {accepted}")
        raise TierError(f"device {device!r} may not be in tier {asked or 'any'!r}; it may be in: {accepted}")
