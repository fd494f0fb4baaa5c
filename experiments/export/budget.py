"""What a sub-model may take: bytes of parameters, multiply-accumulates, milliseconds."""

import re
from dataclasses import dataclass

from diastole.experiments.errors import ExportError

_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_MACS = {"mac": 1, "kmac": 10**3, "mmac": 10**6, "gmac": 10**9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_KINDS: dict[str, dict[str, float]] = {"size": {**_BYTES}, "macs": {**_MACS}, "seconds": _SECONDS}
_UNITS = {unit: (kind, factor) for kind, units in _KINDS.items() for unit, factor in units.items()}
_ITEM = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([a-z]{1,5})")
ACCEPTED = 'up to three of bytes, multiply-accumulates and a time, such as "2 MB, 50 MMAC, 20 ms"'


@dataclass(frozen=True, slots=True)
class Budget:
    """What a sub-model may take at most; None for any amount.

    Attributes:
        size: bytes of its parameters, as float32.
        macs: multiply-accumulates of answering one example.
        seconds: of answering one example, measured on this machine with one thread.

    """

    size: float | None = None
    macs: float | None = None
    seconds: float | None = None

    def __bool__(self) -> bool:
        return self != Budget()

    def allows(self, size: float, macs: float) -> bool:
        """Return whether a sub-model fits, but for its time."""
        return (self.size is None or size <= self.size) and (self.macs is None or macs <= self.macs)

    @staticmethod
    def parse(text: str) -> "Budget":
        """Return the budget in "2 MB, 50 MMAC, 20 ms". Raises `ExportError`."""
        found: dict[str, float] = {}
        for item in text.lower().split(","):
            match = _ITEM.fullmatch(item.strip())
            unit = match[2] if match else ""
            # As it stands, or without the s of the plural.
            kind, factor = next((_UNITS[name] for name in (unit, unit.removesuffix("s")) if name in _UNITS), ("", 0))
            if match is None or not kind or kind in found:
                raise ExportError(f"budget {text!r}: {item.strip()!r} is not understood; {ACCEPTED} is accepted")
            found[kind] = float(match[1]) * factor
        return Budget(**found)
