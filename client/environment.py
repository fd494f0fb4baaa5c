"""What has to be in the environment before torch is imported; this module must not import it."""

import os
from collections.abc import MutableMapping

from diastole.client.groups import cores, quota

SPINS = {"GOMP_SPINCOUNT": "1000"}
"""GNU OpenMP's idle threads spin, by default, for so long that one other busy process makes a step up to 55 times
slower; after a thousand turns they sleep, and a quiet machine is as fast as before."""

QUIET = {"GRPC_ENABLE_FORK_SUPPORT": "0", "GRPC_VERBOSITY": "NONE"}
"""A search for a plan forks while channels are open; the child never touches them, and gRPC would complain. What goes
wrong with a call is said by whoever makes it, in one line."""


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what is not set yet; has an effect on processes that import torch later, this one or those it starts."""
    for name, value in (SPINS | QUIET).items():
        environment.setdefault(name, value)
    if quota() is not None:
        # A container's quota hides no cores, and torch would start a thread on each.
        environment.setdefault("OMP_NUM_THREADS", str(cores()))
