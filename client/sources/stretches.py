"""Which windows of a signal a device trains on, and which it keeps for a test, so that they have no row in common."""

from dataclasses import dataclass
from math import ceil
from typing import Literal

WINDOWS = 20
"""Windows of a turn that are used, for each that overlaps a window from behind: a tenth of all is lost in the gaps."""

Side = Literal["training", "test", "gap"]


@dataclass(frozen=True, slots=True)
class Stretches:
    """The turns in which windows come: some to train on, a gap, some for a test, and a gap.

    A gap has the windows that overlap both of its sides. A window's side depends on nothing but its number from the
    beginning of the signal, so it is the same at every start.

    Attributes:
        training: windows of a turn to train on.
        test: windows of a turn that are kept for a test.
        gap: windows between the two, which are used for neither.

    """

    training: int
    test: int
    gap: int

    @staticmethod
    def of(window: int, hop: int, share: float) -> "Stretches":
        """Return those of windows of `window` rows that begin `hop` rows apart, with such a share for the test."""
        if not share:
            return Stretches(1, 0, 0)
        gap = ceil(window / hop) - 1
        used = max(WINDOWS * max(1, gap), ceil(1 / share))
        test = min(max(1, round(share * used)), used - 1)
        return Stretches(used - test, test, gap)

    def side(self, number: int) -> Side:
        """Return what the window of a number, from 0 on, is for."""
        place = number % (self.training + self.test + 2 * self.gap)
        if place < self.training:
            return "training"
        return "test" if 0 <= place - self.training - self.gap < self.test else "gap"
