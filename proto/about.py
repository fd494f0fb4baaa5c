"""Which run, round and device a line of a log is about."""

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class About:
    """What is being worked on: a run, a round (0 for none) and a device, by their names."""

    run: str = ""
    round: int = 0
    device: str = ""


_ABOUT: ContextVar[About] = ContextVar("about", default=About())  # noqa: B039 (frozen)


@contextmanager
def about(run: str | None = None, number: int | None = None, device: str | None = None) -> Generator[None, None, None]:
    """Let what the block logs be about these; what is None stays as it is outside."""
    outside = _ABOUT.get()
    before = _ABOUT.set(
        About(
            outside.run if run is None else run,
            outside.round if number is None else number,
            outside.device if device is None else device,
        )
    )
    try:
        yield
    finally:
        _ABOUT.reset(before)


def mark(record: logging.LogRecord) -> bool:
    """Write on a record what it is about, as `record.about`; a filter for handlers, which lets every record pass."""
    record.about = _ABOUT.get()
    return True


def start(work: Callable[[], object], name: str) -> None:
    """Let a thread do some work, which is about the same; the process does not wait for it."""
    threading.Thread(target=copy_context().run, args=(work,), daemon=True, name=name).start()
