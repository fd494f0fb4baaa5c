"""How figures of a kind are written in tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unit:
    """How figures of a kind are written: units from the largest to the smallest with their sizes, and decimals.

    Without `decimals` there are as many as the `significant` digits of a mean take, or else three, at most two.
    """

    sizes: Sequence[tuple[str, float]]
    decimals: int | None = None
    significant: int = 0

    def write(self, mean: float, deviation: float | None = None) -> str:
        """Return a mean, and a deviation if there is one, in the unit that suits the mean."""
        unit, size = next((pair for pair in self.sizes if mean >= pair[1]), self.sizes[-1])
        value, decimals = mean / size, self.decimals
        if self.significant:
            decimals = max(0, self.significant - 1 - (math.floor(math.log10(abs(value))) if value else 0))
        if decimals is None:
            decimals = 0 if value >= 100 or (value == round(value) and not deviation) else 1 if value >= 10 else 2
        spread = f" ± {deviation / size:.{decimals}f}" if deviation else ""
        return f"{value:.{decimals}f}{spread}{unit}"


BYTES = Unit(((" GB", 1e9), (" MB", 1e6), (" kB", 1e3), (" B", 1.0)))
COUNT = Unit(((" T", 1e12), (" G", 1e9), (" M", 1e6), (" k", 1e3), ("", 1.0)))
SECONDS = Unit(((" days", 86_400.0), (" h", 3600.0), (" min", 60.0), (" s", 1.0)))
SHARE = Unit((("%", 0.01),), 1)
NUMBER = Unit((("", 1.0),))
SCORE = Unit((("", 1.0),), significant=4)
