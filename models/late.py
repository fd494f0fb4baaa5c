"""Gradients that nobody writes: a layer adds them to its weight when the step is taken.

Plain SGD takes a multiple of the gradient from each weight and forgets it. Of a large dense layer, to write the
gradient, and to read it and the weight again, costs as much as to compute it. While a step's gradients are collected, a
layer may hand in a function in the place of its weight's.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Late = Callable[[float], None]
"""Adds so many times the gradient of a weight to it."""


class _Now(threading.local):
    collected: list[Late] | None = None


_NOW = _Now()


@contextmanager
def collected(late: list[Late] | None) -> Iterator[None]:
    """While the block runs in this thread, let layers add what they have to `late`; nothing if it is None."""
    before, _NOW.collected = _NOW.collected, late
    try:
        yield
    finally:
        _NOW.collected = before


def collecting() -> list[Late] | None:
    """Return where a layer may hand in a function; None where its gradient is asked for."""
    return _NOW.collected
