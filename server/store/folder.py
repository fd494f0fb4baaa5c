"""The folder in which a coordinator keeps its state: one coordinator at a time, and a folder for each run."""

import os
import uuid
from pathlib import Path

from diastole.proto.locks import lock_folder
from diastole.server.errors import FolderError

DATABASE, LATEST = "coordinator.sqlite", "latest"


class StateFolder:
    """A coordinator's folder, which a lock keeps others out of for as long as this process lives.

    Attributes:
        path: of the folder.
        place: tells the folder from every other, wherever it is moved; a database may be shared by several.

    """

    def __init__(self, path: Path) -> None:
        """Take the folder, which is made if it is not there.

        Raises `FolderError` if it cannot be written, or if another coordinator has it.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = lock_folder(path)
        except OSError as error:
            raise FolderError(f"{path}: {error.strerror}; a folder that can be written is accepted") from None
        if lock is None:
            raise FolderError(f"{path}: another coordinator keeps its state here; give this one a folder of its own")
        self._lock = lock
        self._lock.seek(0)
        self.place = self._lock.read(64).decode(errors="replace").strip()
        if not self.place:
            self.place = uuid.uuid4().hex
            self._lock.write(self.place.encode())
            self._lock.flush()

    @property
    def objects(self) -> Path:
        """Return the folder of accepted contributions, which are named by their digests."""
        return self._made(self.path / "objects")

    def run(self, run_id: str) -> Path:
        """Return the folder of a run."""
        return self._made(self.path / "runs" / run_id)

    def point(self, run_id: str) -> None:
        """Let `latest` lead to a run's folder."""
        link = self.path / (LATEST + ".part")
        link.unlink(missing_ok=True)
        link.symlink_to(Path("runs") / run_id)
        os.replace(link, self.path / LATEST)

    def close(self) -> None:
        """Let another coordinator have the folder."""
        self._lock.close()

    def _made(self, path: Path) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        return path
