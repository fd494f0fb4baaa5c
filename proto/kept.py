"""What a device keeps from one task to the next: the latest objects of tensors that it is sent and does not train."""

from collections.abc import MutableMapping
from typing import TypeVar

MOST_KEPT = 8
"""Objects that a device keeps; it has one for each sub-model that it was given lately."""

T = TypeVar("T")


def keep(kept: MutableMapping[str, T], digest: str, thing: T) -> None:
    """Keep a thing as the latest, by its digest, and forget the oldest of more than `MOST_KEPT`."""
    kept.pop(digest, None)
    kept[digest] = thing
    while len(kept) > MOST_KEPT:
        del kept[next(iter(kept))]
