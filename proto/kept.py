"""What is kept from one task to the next: the latest of several things, each under a key of its own."""

from collections.abc import MutableMapping
from typing import TypeVar

MOST_KEPT = 8
"""Things of a kind that a device keeps, such as untrained objects: one for each sub-model that it was given lately."""

T = TypeVar("T")


def keep(kept: MutableMapping[str, T], key: str, thing: T, most: int = MOST_KEPT) -> None:
    """Keep a thing as the latest, by its key, and forget the oldest of more than `most`."""
    kept.pop(key, None)
    kept[key] = thing
    while len(kept) > most:
        del kept[next(iter(kept))]
