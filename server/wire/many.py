"""What Python does at intervals, set for a process that holds very many devices."""

import gc
import sys

COLLECT_AFTER = (50_000, 50, 100)
"""New objects, and collections of the younger generation, after which a generation is collected."""
SWITCH_SECONDS = 0.001


def hold_many() -> None:
    """Let this process hold objects by the million, and answer while other threads compute.

    A collection stops every thread, and looks at all that the devices' sessions have made; so it comes seldom, and what
    is there already, the libraries for the most part, is never looked at again. A thread that waits for the interpreter
    gets it after `SWITCH_SECONDS`.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    sys.setswitchinterval(SWITCH_SECONDS)
