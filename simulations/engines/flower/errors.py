"""What can be wrong with Flower; imports nothing of it."""

import os
from importlib.util import find_spec

from diastole.proto.errors import DiastoleError
from diastole.proto.missing import missing

NEEDED = ("flwr", "ray")


class FlowerError(DiastoleError):
    """Flower, or the Ray under it, is not installed, did not start, or ended in the middle of its work."""


def installed() -> bool:
    """Return whether everything the engine needs is installed."""
    return all(find_spec(name) is not None for name in NEEDED)


def require() -> None:
    """Check that the engine can be imported, and tell Flower and Ray not to report usage unless they were told to.

    Call it before the first import of flwr, which reads its environment then. Raises `FlowerError`.
    """
    for name in NEEDED:
        if find_spec(name) is None:
            raise FlowerError(missing("engine 'flower'", name, "diastole[flower]"))
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
