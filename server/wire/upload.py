"""One update on its way into a file."""

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diastole.models.task import Report, Task


class Upload:
    """An update that arrives in pieces, over one call or several; the file is open only while a call writes to it.

    Attributes:
        task: whose update it is.
        sha256: of the whole.
        size: of the whole, in bytes.
        report: that came with it.
        path: of the file.
        received: bytes that have been written; a piece that cannot be written leaves them as they are.
        seconds: that its calls have taken so far.
        writer: the call that may write; a new call takes over from the last.

    """

    def __init__(self, task: Task, sha256: str, size: int, report: Report, path: Path) -> None:
        self.task, self.sha256, self.size, self.report, self.path = task, sha256, size, report, path
        self.received, self.seconds = 0, 0.0
        self.writer: object | None = None
        self._digest = hashlib.sha256()
        self._file: int | None = None
        self._lock = threading.Lock()
        self._gone = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let one thread at a time write, or finish."""
        try:
            with self._lock:
                yield
        finally:
            if self._gone:
                self._remove()

    def append(self, data: bytes | memoryview) -> None:
        """Write a piece, `held`. Raises `OSError` if it cannot be written; it may then be sent again."""
        if self._file is None:
            left = self.size - self.received
            if shutil.disk_usage(self.path.parent).free < left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        view, at = memoryview(data), self.received
        while view:
            # What an earlier try has written behind `received` is written over.
            wrote = os.pwrite(self._file, view, at)
            view, at = view[wrote:], at + wrote
        self._digest.update(data)
        self.received = at

    @property
    def digest(self) -> str:
        """SHA-256 of what has been written."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file, `held`. Raises `OSError` if what was written is lost."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def discard(self) -> None:
        """Remove the file, at once or when the thread that writes is done."""
        self._gone = True
        self._remove()

    def _remove(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                with suppress(OSError):
                    self.close()
                with suppress(OSError):
                    self.path.unlink(missing_ok=True)
            finally:
                self._lock.release()
