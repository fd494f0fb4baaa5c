"""Trying things in a process of its own: what is broken may crash or hang.

The process is a fork of this one: importing torch again would take seconds, and hundreds of megabytes. It computes on
one thread, and does nothing but what is tried. A process that ends, or is silent for too long, is replaced by another
that goes on behind what it was trying.
"""

import faulthandler
import json
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NoReturn, TypeVar

import torch

J = TypeVar("J")

PATIENCE = 2.0
"""Seconds that one trial may take."""

BUSY = 3

Found = Mapping[str, float]


def tried(trial: Callable[[J], Found], jobs: Sequence[J], seconds: float, patience: float = PATIENCE) -> list[Found]:
    """Return what `trial` finds for each job, in a process of its own.

    Nothing is found by a trial that raises, ends its process or is silent for `patience` seconds, nor by those for
    which `seconds` of a processor are not enough. If others want it, `BUSY` times as many may pass.
    """
    found: list[Found] = []
    ends = time.monotonic() + BUSY * seconds
    while len(found) < len(jobs) and time.monotonic() < ends:
        found += _in_one_process(trial, jobs[len(found) :], seconds, ends, patience)
        if len(found) < len(jobs):
            found.append({})  # what it was trying when it ended
    return [*found, *[{}] * (len(jobs) - len(found))]


def _in_one_process(
    trial: Callable[[J], Found], jobs: Sequence[J], seconds: float, ends: float, patience: float
) -> list[Found]:
    """Return what a process found until it was done, ended by itself, or was killed."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        os.close(reading)
        _work(trial, jobs, writing, seconds, ends)
    os.close(writing)
    text = b""
    try:
        while text.count(b"\n") < len(jobs):
            left = min(patience, ends - time.monotonic())
            if not select.select([reading], [], [], max(left, 0))[0]:
                break
            data = os.read(reading, 1 << 16)
            if not data:
                break
            text += data
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(reading)
    return [json.loads(line) for line in text.split(b"\n")[:-1]]


def _work(trial: Callable[[J], Found], jobs: Sequence[J], writing: int, seconds: float, ends: float) -> NoReturn:
    """Do the trials and end this process, whatever happens."""
    try:
        # Nobody may be left to kill it.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(max(1, int(ends - time.monotonic()) + 2))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.disable()
        # The threads of the other process are not here; asking for more than one would wait for them for ever.
        torch.set_num_threads(1)
        with torch.no_grad():
            for job in jobs:
                try:
                    found = trial(job) if time.thread_time() < seconds else {}
                except Exception:  # noqa: BLE001 (whatever it is, it is not to be used)
                    found = {}
                os.write(writing, (json.dumps(found) + "\n").encode())
    finally:
        os._exit(0)
