"""Where files lie that several processes map."""

import tempfile
from pathlib import Path

from diastole.server.spool import Spool

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (a fresh folder inside it is used)
PREFIX = "diastole-shared-"


def shared_folder() -> Spool:
    """Return a new folder in shared memory, or where temporary files go; what killed runs left there is removed."""
    return Spool(SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir()), PREFIX)
