"""Waiting for what a process does."""

import subprocess
import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], object], process: subprocess.Popen[Any], seconds: float = 120.0) -> None:
    """Wait until a condition holds; fail if the process ends first, or after `seconds`."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"it did not come to that in {seconds:g} s"
        # The end of the process is waited for, for a moment at a time.
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        assert condition(), f"the process ended first, with {process.returncode}"
