"""A lock on a folder, which ends with the process that has it, however that ends."""

import fcntl
from pathlib import Path
from typing import BinaryIO

LOCK = "lock"


def lock_folder(path: Path) -> BinaryIO | None:
    """Take the lock of a folder for as long as the file that is returned is open; None if another process has it.

    Raises `OSError` if there is no such folder, or it cannot be written.
    """
    file = (path / LOCK).open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
