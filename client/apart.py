"""Work in a process of its own, whose memory is gone when it is done, and whose crash ends nobody else."""

import faulthandler
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import NoReturn

from diastole.models.errors import StoppedError

LOOK_SECONDS = 0.1
SILENT_SECONDS = 600.0
"""After which the process is given up; to build kernels takes minutes on a small device."""


def can_fork() -> bool:
    """Return whether work can be done apart here: torch survives a fork on Linux alone."""
    return sys.platform.startswith("linux")


def apart(work: Callable[[Callable[[], bool]], str], stopped: Callable[[], bool]) -> str:
    """Return the line that `work` returns, done in a fork of this process; empty if it came to nothing.

    Importing torch again would take seconds and hundreds of megabytes.

    Args:
        work: is given what it must ask now and then whether to stop; it may use several threads.
        stopped: asked all the time; `StoppedError` is raised once it says so.

    """
    reading, writing = os.pipe()
    made = list[int]()

    def begin() -> None:
        process = os.fork()
        if not process:
            os.close(reading)
            _do(work, writing)
        made.append(process)

    # A thread that has never computed: a fork of one that has would wait for its OpenMP team, which is not there.
    thread = Thread(target=begin)
    thread.start()
    thread.join()
    os.close(writing)
    try:
        return _heard(reading, stopped)
    finally:
        os.close(reading)
        for process in made:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            # What it has started itself.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _heard(reading: int, stopped: Callable[[], bool]) -> str:
    """Return what a process says until it ends, is silent for too long, or is not needed any more."""
    text, heard = b"", time.monotonic()
    while time.monotonic() - heard < SILENT_SECONDS:
        if stopped():
            raise StoppedError("what was done apart is not waited for")
        if not select.select([reading], [], [], LOOK_SECONDS)[0]:
            continue
        data = os.read(reading, 1 << 16)
        if not data:
            return text.decode().strip()
        text, heard = text + data, time.monotonic()
    return ""


def _do(work: Callable[[Callable[[], bool]], str], writing: int) -> NoReturn:
    """Do the work and end this process, whatever happens."""

    def stopped() -> bool:
        # This fails when nobody listens any more.
        return not os.write(writing, b"\n")

    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.disable()
        text = work(stopped).encode()
        while text:
            text = text[os.write(writing, text) :]
    finally:
        os._exit(0)
