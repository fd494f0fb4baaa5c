"""Files that are either whole or not there."""

import os
from pathlib import Path


def write_bytes(path: Path, data: bytes | memoryview, mode: int = 0o666) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part of either.

    `mode` is who may read and write it, less what the process's mask takes away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
