"""Real time, and the part of it that was spent waiting."""

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """Counts real seconds from when it is made, whatever clock a run goes by."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._waited = 0.0

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._began

    @property
    def worked(self) -> float:
        """Seconds so far that were not spent waiting."""
        return self.seconds - self._waited

    @contextmanager
    def waiting(self) -> Generator[None, None, None]:
        """Count the block as waiting."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - began

    def awaited(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; the time until each comes counts as waiting."""
        source = iter(items)
        while True:
            with self.waiting():
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item
