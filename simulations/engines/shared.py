"""Where files lie that several processes map."""

import logging
import shutil
import tempfile
from collections.abc import Iterable
from mmap import PAGESIZE
from pathlib import Path

from diastole.proto.errors import DiastoleError
from diastole.server.wire.spool import Spool

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (a fresh folder inside it is used)
PREFIX = "diastole-shared-"
_LOG = logging.getLogger(__name__)


class SpaceError(DiastoleError):
    """No place for what processes share."""


def shared_folder(sizes: Iterable[int]) -> Spool:
    """Return a new folder for files of so many bytes each; what killed runs left beside it is removed.

    It is in shared memory, or where temporary files go if that is missing or too small, which is logged. Raises
    `SpaceError` if there is no room in either.
    """
    needed, places = sum(-(-size // PAGESIZE) * PAGESIZE for size in sizes), [Path(tempfile.gettempdir())]
    if SHARED_MEMORY.is_dir():
        places.insert(0, SHARED_MEMORY)
    found: list[str] = []
    for place in places:
        spool = Spool(place, PREFIX)
        free = shutil.disk_usage(spool.path).free
        if needed <= free:
            if found:
                _LOG.warning("%s, %s needed: it goes to %s, which may be slower", *found, _told(needed), place)
            return spool
        spool.close()
        found.append(f"{place} has {_told(free)} free")
    raise SpaceError(
        f"{', '.join(found)}, and processes would share {_told(needed)}: make room, let TMPDIR name a folder that has"
        " it, give a container more (Docker: --shm-size, or shm_size in a compose file), or take engine loop"
    )


def _told(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
