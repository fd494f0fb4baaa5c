"""The folder of uploads under way; what a coordinator that was killed has left of its own, the next one removes."""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "diastole-uploads-"


class Spool:
    """A new folder, at `path`, that is locked for as long as this process lives; `close` removes it."""

    def __init__(self, parent: Path | None = None) -> None:
        """Make it below `parent`, or where temporary files go, and remove those there that nobody has locked.

        A file system that knows no locks grants none, so nothing is removed from it.
        """
        parent = parent or Path(tempfile.gettempdir())
        for left in parent.glob(f"{PREFIX}*"):
            with suppress(OSError):
                _remove(left)
        made = Path(tempfile.mkdtemp(dir=parent))
        self._held = os.open(made, os.O_RDONLY)
        with suppress(OSError):
            fcntl.flock(self._held, fcntl.LOCK_EX)
        # Not before it is locked, so that nobody who looks for folders of this name finds it free.
        self.path = made.rename(parent / f"{PREFIX}{made.name}")

    def close(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._held)


def _remove(folder: Path) -> None:
    """Remove a folder. Raises `OSError` if somebody has locked it, or it is another user's."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(held)
