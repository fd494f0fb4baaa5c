"""A folder that lasts as long as its process. If a process is killed, the next one removes its folder."""

import fcntl
import os
import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

UPLOADS = "diastole-uploads-"


class Spool:
    """A new folder, at `path`, that is locked for as long as this process lives; `close` removes it."""

    def __init__(self, parent: Path | None = None, prefix: str = UPLOADS) -> None:
        """Make the folder below `parent`, by default where temporary files go, and remove the unlocked ones there.

        The names of all these folders begin with `prefix`, and no other name there may. On a file system without locks
        no folder is removed, because none can be locked first.
        """
        parent = parent or Path(tempfile.gettempdir())
        for left in parent.glob(f"{prefix}*"):
            with suppress(OSError):
                _remove(left)
        made = Path(tempfile.mkdtemp(dir=parent))
        held = os.open(made, os.O_RDONLY)
        self._unlock = ExitStack()
        self._unlock.callback(os.close, held)
        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        # Renamed only now that it is locked, so that no other process finds a folder of this name unlocked.
        self.path = made.rename(parent / f"{prefix}{made.name}")

    def close(self) -> None:
        """Remove the folder with all that is in it; a second call does nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock.close()


def _remove(folder: Path) -> None:
    """Remove a folder. Raises `OSError` if another process has locked it, or it is another user's."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(held)
