"""The newest windows of a signal, from a CSV file that grows, or from a FIFO."""

import os
import select
import stat
import threading
from pathlib import Path

from diastole.client.errors import DataError
from diastole.client.sources.cutter import Cutter
from diastole.client.sources.settings import Settings
from diastole.models.training import Examples

CHUNK = 1 << 20
LOOK_SECONDS = 0.5


class Windows:
    """Cuts what a sensor writes into windows, and keeps the newest.

    A file is read on when examples are asked for; if it is replaced or cut short, it is read anew from its beginning. A
    FIFO is read by a thread, so that who writes to it need not wait.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        """Begin to read. Raises `DataError` if there is no such file, or it lacks a column."""
        self._path = path
        self._cutter = Cutter(path, settings)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._file, self._offset = (0, 0), 0
        self._error: DataError | None = None
        self._fifo = self._is_fifo()
        self._thread = threading.Thread(target=self._drain, daemon=True, name="diastole-windows")
        if self._fifo:
            self._thread.start()
        self._read_on()

    def __len__(self) -> int:
        self._read_on()
        return len(self._cutter)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`[columns, window]`. Raises `DataError` before there is a header."""
        self._read_on()
        return self._cutter.input_shape

    def examples(self) -> Examples:
        """Return the newest windows, oldest first: x float32 `[n, columns, window]`. Raises `DataError`."""
        self._read_on()
        with self._lock:
            return self._cutter.examples()

    def kept(self) -> Examples:
        """Return the newest windows that are kept for a test, in the same form; perhaps none. Raises `DataError`."""
        self._read_on()
        with self._lock:
            return self._cutter.kept()

    def wait(self) -> None:
        """Return when there is a window. Raises `DataError`."""
        while not len(self) and not self._closed.is_set():
            self._closed.wait(LOOK_SECONDS)

    def close(self) -> None:
        """Stop reading."""
        self._closed.set()
        if self._fifo:
            self._thread.join()

    def _is_fifo(self) -> bool:
        try:
            return stat.S_ISFIFO(self._path.stat().st_mode)
        except OSError:
            raise DataError(f"{self._path}: no such file; a CSV file or a FIFO is accepted") from None

    def _read_on(self) -> None:
        """Take what has been written since the last time; of a FIFO the thread has done so."""
        if self._error is not None:
            raise self._error
        if self._fifo:
            return
        try:
            with self._lock, self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if (found.st_dev, found.st_ino) != self._file or found.st_size < self._offset:
                    self._cutter.begin()
                    self._file, self._offset = (found.st_dev, found.st_ino), 0
                file.seek(self._offset)
                while data := file.read(CHUNK):
                    self._offset += len(data)
                    self._cutter.feed(data)
        except FileNotFoundError:
            # Between two files of a log that is rotated there is none.
            return
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read ({error.strerror}); a CSV file is accepted") from None

    def _drain(self) -> None:
        # Open for writing as well: so there is no end between two writers, and nobody to wait for.
        pipe = os.open(self._path, os.O_RDWR | os.O_NONBLOCK)
        try:
            while not self._closed.is_set():
                if select.select([pipe], [], [], LOOK_SECONDS)[0]:
                    data = os.read(pipe, CHUNK)
                    with self._lock:
                        self._cutter.feed(data)
        except DataError as error:
            self._error = error
        finally:
            os.close(pipe)
