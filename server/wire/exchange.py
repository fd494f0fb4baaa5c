"""The current round on the wire: tasks owed, objects to download, uploads under way."""

import hashlib
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from diastole.proto.errors import DiastoleError
from diastole.proto.payload import Payload
from diastole.server.link import Failure, Task

HEADER_BYTES = 4096
HEADER_BYTES_PER_TENSOR = 256


class UploadError(DiastoleError):
    """An upload that contradicts its header or its task."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = reason


class Outcome(Enum):
    """How an upload is answered."""

    ACCEPTED = "accepted"
    NOT_NEEDED = "not needed"
    UNKNOWN_TASK = "unknown task"


@dataclass(frozen=True, slots=True)
class Report:
    """What a device says of its training, beside the update."""

    examples: int
    loss: float
    seconds: float


@dataclass(slots=True)
class Upload:
    """One update on its way into a file. A device has at most one writer: a new call takes over from the last."""

    task: Task
    sha256: str
    size: int
    report: Report
    path: Path
    file: BinaryIO
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    received: int = 0
    writer: object | None = None


class Exchange:
    """What the services may hand out and take in; safe to use from several threads.

    Nothing here waits and nothing here calls a device. A task leaves the exchange when its upload is complete,
    when it is withdrawn, or when the round is closed; an upload for a task that has left is told so.
    """

    def __init__(self, spool: Path, tell: Callable[[Upload | Failure], None]) -> None:
        """Keep partial uploads in the folder `spool`; `tell` of each complete one and each task given up.

        `tell` is called under the lock, so that whoever finds no task open has been told of all of them.
        """
        self._spool = spool
        self._tell = tell
        self._lock = threading.RLock()
        self._owed: dict[str, Task] = {}
        self._objects: dict[str, Payload] = {}
        self._payloads: dict[str, Payload] = {}
        self._uploads: dict[str, Upload] = {}
        self._done: dict[tuple[str, str], Outcome] = {}
        self._old: set[tuple[str, str]] = set()
        self._prefix, self._round = "", 0

    def open(self, tasks: Iterable[tuple[Task, Payload]]) -> None:
        """Begin a round: these tasks are owed, and their payloads may be downloaded."""
        with self._lock:
            # Who is still uploading was asked in this round or in the one before.
            self._done = {key: value for key, value in self._done.items() if key not in self._old}
            self._old = set(self._done)
            for task, payload in tasks:
                self._prefix, self._round = task.task_id.removesuffix(f"r{task.round}-{task.device}"), task.round
                self._owed[task.task_id] = task
                self._objects[payload.sha256] = self._payloads[task.task_id] = payload

    def close(self) -> list[Task]:
        """End the round and return the tasks nobody delivered; what comes late is not needed."""
        with self._lock:
            rest = list(self._owed.values())
            for task in rest:
                self.withdraw(task)
            self._objects.clear()
            self._payloads.clear()
            return rest

    def withdraw(self, task: Task) -> None:
        """Give up a task; its upload, if one is under way, is dropped."""
        with self._lock:
            if self._owed.pop(task.task_id, None) is not None:
                self._done[task.device, task.task_id] = Outcome.NOT_NEEDED
                self._drop(task.task_id)

    def open_tasks(self) -> int:
        """Return the number of tasks nobody has delivered or given up."""
        with self._lock:
            return len(self._owed)

    def give_up(self, device: str, reason: str) -> None:
        """Withdraw what a device owes, because it is gone."""
        with self._lock:
            for task, _ in self.owed(device):
                self.withdraw(task)
                self._tell(Failure(device, reason, faulty=False))

    def owed(self, device: str) -> list[tuple[Task, Payload]]:
        """Return the tasks a device still owes, and what it downloads for each."""
        with self._lock:
            return [(t, self._payloads[t.task_id]) for t in self._owed.values() if t.device == device]

    def find(self, sha256: str) -> Payload | None:
        """Return the object of that digest, or None if the open round has none."""
        with self._lock:
            return self._objects.get(sha256)

    def limit(self, task: Task) -> int:
        """Return the most bytes an update of the task may have: its tensors and a header."""
        header = HEADER_BYTES + HEADER_BYTES_PER_TENSOR * len(task.state)
        return sum(tensor.numel() * tensor.element_size() for tensor in task.state.values()) + header

    def status(self, device: str, task_id: str, sha256: str) -> tuple[int, Outcome | None]:
        """Return the bytes received of an upload, and the outcome if nothing more is to be sent."""
        with self._lock:
            task = self._owed.get(task_id)
            if task is None or task.device != device:
                return 0, self._past(device, task_id)
            upload = self._uploads.get(task_id)
            return (upload.received if upload and upload.sha256 == sha256 else 0), None

    def begin(
        self, device: str, task_id: str, sha256: str, size: int, offset: int, report: Report, writer: object
    ) -> Upload | Outcome:
        """Start or resume an upload; an outcome instead means that nothing is to be sent.

        Raises `UploadError` with the reason UPLOAD_HEADER, UPLOAD_SIZE or UPLOAD_OFFSET.
        """
        with self._lock:
            task = self._owed.get(task_id)
            if task is None or task.device != device:
                return self._past(device, task_id)
            if len(sha256) != 64 or size < 1:
                raise UploadError("UPLOAD_HEADER", f"update of {size} bytes with digest {sha256!r}; not an object")
            if size > self.limit(task):
                raise UploadError("UPLOAD_SIZE", f"update of {size} bytes; task {task_id} takes {self.limit(task)}")
            upload = self._uploads.get(task_id)
            same = upload is not None and (upload.sha256, upload.size) == (sha256, size)
            standing = upload.received if upload is not None and same else 0
            if offset not in (0, standing):
                raise UploadError("UPLOAD_OFFSET", f"offset {offset}; the upload stands at {standing}")
            if upload is None or not same or offset == 0:
                self._drop(task_id)
                path = self._spool / f"{task_id}.part"
                upload = Upload(task, sha256, size, report, path, path.open("wb"))
                self._uploads[task_id] = upload
            upload.report, upload.writer = report, writer
            return upload

    def abandon(self, task_id: str) -> None:
        """Drop an upload that could not be stored; it starts again at 0."""
        with self._lock:
            self._drop(task_id)

    def write(self, upload: Upload, data: bytes, writer: object) -> None:
        """Append to an upload. Raises `UploadError` if it is too long or another call has taken it over."""
        with self._lock:
            self._check_writer(upload, writer)
            if upload.received + len(data) > upload.size:
                raise UploadError("UPLOAD_SIZE", f"more than the {upload.size} bytes announced")
            upload.file.write(data)
            upload.digest.update(data)
            upload.received += len(data)

    def finish(self, upload: Upload, writer: object) -> None:
        """Complete an upload: its task is no longer owed, and its file belongs to whoever was told.

        Raises `UploadError` with the reason UPLOAD_OFFSET if bytes are missing or another call has taken over,
        UPLOAD_DIGEST if the content is not what was announced; what arrived is then dropped.
        """
        with self._lock:
            task_id = upload.task.task_id
            self._check_writer(upload, writer)
            if upload.received < upload.size:
                raise UploadError("UPLOAD_OFFSET", f"ended at {upload.received} of {upload.size} bytes")
            if upload.digest.hexdigest() != upload.sha256:
                self._drop(task_id)
                raise UploadError("UPLOAD_DIGEST", f"content has digest {upload.digest.hexdigest()}")
            upload.file.close()
            del self._uploads[task_id], self._owed[task_id]
            self._done[upload.task.device, task_id] = Outcome.ACCEPTED
            self._tell(upload)

    def _check_writer(self, upload: Upload, writer: object) -> None:
        if upload.writer is not writer or self._uploads.get(upload.task.task_id) is not upload:
            raise UploadError("UPLOAD_OFFSET", "another call has taken this upload over, or it is not needed")

    def _past(self, device: str, task_id: str) -> Outcome:
        known = self._done.get((device, task_id))
        if known is not None:
            return known
        number = task_id.removeprefix(f"{self._prefix}r").removesuffix(f"-{device}")
        # A task of a round long past: its outcome is forgotten, but the device did nothing wrong.
        past = number.isdecimal() and 0 < int(number) < self._round
        mine = task_id == f"{self._prefix}r{number}-{device}"
        return Outcome.NOT_NEEDED if past and mine else Outcome.UNKNOWN_TASK

    def _drop(self, task_id: str) -> None:
        upload = self._uploads.pop(task_id, None)
        if upload is not None:
            # Closing flushes, which a full disk refuses; the file is not wanted any more.
            with suppress(OSError):
                upload.file.close()
            upload.path.unlink(missing_ok=True)
