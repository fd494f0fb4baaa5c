"""How a simulation starts Python processes that work for it."""

import os
import sys


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module with this Python, and nothing but `environment` for an import path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Return this process's environment for a process of one thread that finds the modules which this one finds."""
    # An empty entry is the working folder; left empty, it would be none at all if it were the only one.
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": path}
