"""Group commit: what several threads bring while one writes is written together."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Grouped(Generic[T]):
    """Hands items to `write` in the order in which they came, in as few calls as that takes, one at a time."""

    def __init__(self, write: Callable[[Sequence[T]], None]) -> None:
        self._write = write
        self._waiting: deque[tuple[T, Future[None]]] = deque()
        self._lock = threading.Lock()

    def put(self, item: T) -> None:
        """Return when `write` has returned that was given this item, or raise what it has raised."""
        written = Future[None]()
        self._waiting.append((item, written))
        with self._lock:
            if not written.done():
                self._write_all()
        written.result()

    def _write_all(self) -> None:
        group = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            self._write([item for item, _ in group])
        except BaseException as error:  # noqa: BLE001 (each of the threads raises it)
            for _, written in group:
                written.set_exception(error)
        else:
            for _, written in group:
                written.set_result(None)
