"""A folder that ends with its process: what one that was killed has left, the next one removes."""

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
        """Make it below `parent`, or where temporary files go, and remove those there that nobody has locked.

        Their names begin with `prefix`, and nothing else's may. A file system that knows no locks grants none, so
        nothing is removed from it.
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
        # Not before it is locked, so that nobody who looks for folders of this name finds it free.
        self.path = made.rename(parent / f"{prefix}{made.name}")

    def close(self) -> None:
        """Remove the folder with all that is in it; a second call does nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock.close()


def _remove(folder: Path) -> None:
    """Remove a folder. Raises `OSError` if somebody has locked it, or it is another user's."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(held)
