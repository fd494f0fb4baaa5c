"""What samplers know of each device: how often a run has asked it, and what it brought."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from diastole.models.task import Report


@dataclass(frozen=True, slots=True)
class Past:
    """A device's part in the rounds that counted.

    Attributes:
        asked: rounds in whose cohort it was.
        last: the last of them; 0 if there is none.
        examples: that its last update counted.
        loss: mean training loss of the last epoch of that update.

    """

    asked: int = 0
    last: int = 0
    examples: int = 0
    loss: float = 0.0


NONE = Past()


class History:
    """The past of every device. A round that does not count leaves no trace, and the last one can be taken back."""

    def __init__(self) -> None:
        self._past: dict[str, Past] = {}
        self._before: dict[str, Past] = {}

    def of(self, device: str) -> Past:
        """Return the past of a device."""
        return self._past.get(device, NONE)

    def note(self, number: int, asked: Iterable[str], brought: Mapping[str, Report]) -> None:
        """Note a round that counts: its cohort, and what the devices said whose updates were folded in."""
        self._before = {}
        for device in sorted(asked):
            past = self._before[device] = self.of(device)
            examples, loss = past.examples, past.loss
            if (report := brought.get(device)) is not None:
                examples, loss = report.examples, report.loss
            self._past[device] = Past(past.asked + 1, number, examples, loss)

    def undo(self) -> None:
        """Take the last noted round back."""
        self._past |= self._before
        self._past = {device: past for device, past in self._past.items() if past != NONE}
        self._before = {}

    def memory(self) -> dict[str, Any]:
        """Return all of it, as JSON."""
        parts = {"past": self._past, "before": self._before}
        return {
            key: {device: (past.asked, past.last, past.examples, past.loss) for device, past in part.items()}
            for key, part in parts.items()
        }

    def resume(self, memory: Mapping[str, Any]) -> None:
        """Go on with another history's `memory()`."""
        self._past, self._before = (
            {device: Past(*past) for device, past in memory.get(key, {}).items()} for key in ("past", "before")
        )
