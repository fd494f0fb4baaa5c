"""The folder in which an agent keeps things between its starts.

Everything in it may be lost at any moment at no more cost than time. So a full disk ends nothing: what does not fit is
not kept. Only safetensors, JSON and raw parts of downloads are in it; nothing is unpickled.
"""

import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from diastole.client.errors import FolderError
from diastole.proto.files import write_bytes
from diastole.proto.locks import lock_folder

MOST_BYTES = 1 << 30
"""All that an agent keeps; the oldest goes first."""
KEEP_FREE = 1 << 26
"""Bytes of the disk that are left to others."""
NAME = re.compile(r"(link|object|step|update|seen|codec|model|personal)[A-Za-z0-9._-]{0,120}")
"""Names of files of an agent; others in the folder are somebody else's, and are left alone."""
KEY, LONGEST_KEY = "key", 64
PART = ".part"
"""How the name ends of a file that is not whole yet."""


def default_folder(name: str) -> Path:
    """Return the folder of the device `name`, for this user (XDG base directories). Raises `FolderError`."""
    return state_home() / re.sub(r"^\.|[^A-Za-z0-9._-]", "_", name)


def state_home() -> Path:
    """Return the folder of all that diastole keeps for this user (XDG base directories). Raises `FolderError`."""
    home = Path(os.environ.get("XDG_STATE_HOME", ""))
    try:
        return (home if home.is_absolute() else Path.home() / ".local" / "state") / "diastole"
    except RuntimeError:
        raise FolderError("this user has no home folder; --state takes a folder that can be written") from None


class StateFolder:
    """One agent's folder: files by name, each whole or not there, of at most `most` bytes together.

    A lock keeps a second agent out for as long as this one lives; it ends with the process, however that ends.

    Attributes:
        place: where it is.

    """

    def __init__(self, path: Path, most: int = MOST_BYTES) -> None:
        """Take the folder, which is made if it is not there, for this user alone.

        Raises `FolderError` if it cannot be written, or if another agent has it.
        """
        self.place, self._most = path, most
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)
            lock = lock_folder(path)
        except OSError as error:
            raise FolderError(f"{path}: {error.strerror}; --state takes a folder that can be written") from None
        if lock is None:
            raise FolderError(
                f"{path}: another agent keeps its state here; give this one a --name or a --state of its own"
            )
        self._lock = lock
        for part in self._files():
            # Of a write that a crash cut short; a download goes on where its part ends.
            if part.suffix == PART and not part.name.startswith("object"):
                part.unlink()

    @property
    def key(self) -> str:
        """The secret by which this agent, restarted, takes its own name over at the coordinator."""
        path = self.place / KEY
        try:
            if found := path.read_text(errors="replace")[:LONGEST_KEY].strip():
                return found
        except OSError:
            pass
        drawn = secrets.token_urlsafe(24)
        # On a full disk the key is for this start.
        with suppress(OSError), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(drawn)
        return drawn

    def path(self, name: str) -> Path:
        """Return where a file of that name is kept, whether it is there or not."""
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a name of an agent's file; expected {NAME.pattern}")
        return self.place / name

    def names(self, *kinds: str) -> list[str]:
        """Return the names of the files that begin with one of `kinds`."""
        return sorted(path.name for path in self._files() if path.name.startswith(kinds))

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None if there is none."""
        try:
            return self.path(name).read_bytes()
        except OSError:
            return None

    def write(self, name: str, data: bytes | memoryview) -> bool:
        """Replace a file as a whole; False if it cannot be kept, and then it is not there at all."""
        path = self.path(name)
        try:
            if self.make_room(len(data), name):
                write_bytes(path, data)
                path.chmod(0o600)
                return True
        except OSError:
            pass
        self.remove(name)
        return False

    def remove(self, name: str) -> None:
        """Forget a file, if it is there."""
        for each in (self.place / name, self.place / (name + PART)):
            with suppress(OSError):
                each.unlink()

    def make_room(self, size: int, name: str) -> bool:
        """Remove the oldest other files until `name` may have `size` bytes; False if it cannot have them."""
        return self._make_room(size, self.path(name))

    def close(self) -> None:
        """Let another agent have the folder."""
        self._lock.close()

    def _make_room(self, size: int, path: Path) -> bool:
        others = sorted((each for each in self._files() if each != path), key=lambda each: each.stat().st_mtime)
        taken = sum(each.stat().st_size for each in others)
        for each in others:
            if self._fits(taken + size, size):
                break
            taken -= each.stat().st_size
            each.unlink()
        return self._fits(taken + size, size)

    def _fits(self, taken: int, size: int) -> bool:
        return taken <= self._most and size + KEEP_FREE <= shutil.disk_usage(self.place).free

    def _files(self) -> list[Path]:
        found = (path for path in self.place.iterdir() if NAME.fullmatch(path.name))
        return [path for path in found if path.is_file() and not path.is_symlink()]
