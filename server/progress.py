"""How far a device is with its task of a round."""

from dataclasses import dataclass
from enum import StrEnum


class Part(StrEnum):
    """How far a device of a round's cohort is."""

    WAITING = "waiting"
    TOLD = "told"
    DOWNLOADING = "downloading"
    TRAINING = "training"
    UPLOADING = "uploading"
    DELIVERED = "delivered"
    FOLDED = "folded"
    QUARANTINED = "quarantined"
    DECLINED = "declined"
    LOST = "lost"
    LATE = "late"


DONE = frozenset((Part.FOLDED, Part.QUARANTINED, Part.DECLINED, Part.LOST, Part.LATE))
"""Of which nothing more comes in the round."""


@dataclass(frozen=True, slots=True)
class Moving:
    """A transfer of a task that is under way: so many bytes of so many have moved, up or down."""

    done: int
    total: int
