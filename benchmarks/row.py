"""What a benchmark reports: one number, always beside the baseline of the same run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement; the fields are those of `diastole bench --json`.

    Attributes:
        name: stable over versions, `group.subject`.
        value: of the subject, in `unit`.
        unit: of `value` and `baseline`; may say how the baseline was taken.
        baseline: measured in the same run.
        ratio: `value / baseline`.
        better: which direction of `value`, and so of `ratio`, is an improvement.
        notes: lines for a person about how it came about; no part of the JSON.

    """

    name: str
    value: float
    unit: str
    baseline: float
    ratio: float
    better: Better
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, name: str, value: float, baseline: float, unit: str, better: Better, notes: Sequence[str] = ()
    ) -> "Row":
        """Return a row with its ratio."""
        return cls(name, value, unit, baseline, value / baseline, better, tuple(notes))

    def as_dict(self) -> dict[str, str | float]:
        """Return the row for JSON."""
        fields = asdict(self)
        del fields["notes"]
        return fields


def compare(
    subject: Callable[[], object],
    baseline: Callable[[], object],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Return the median seconds of `subject` and of `baseline`, each run `repeats` times, by turns.

    Taking turns lets whatever else the machine does disturb both alike. One run of each goes before and is not
    counted: it opens connections and touches memory for the first time.
    """

    def seconds(call: Callable[[], object]) -> float:
        began = clock()
        call()
        return clock() - began

    subject()
    baseline()
    taken = [(seconds(subject), seconds(baseline)) for _ in range(repeats)]
    return median(pair[0] for pair in taken), median(pair[1] for pair in taken)
