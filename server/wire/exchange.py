"""The current round on the wire: tasks owed, objects to download, uploads under way."""

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from diastole.models.task import Report, Task
from diastole.proto.codec import EXACT
from diastole.proto.errors import DiastoleError
from diastole.proto.payload import Payload
from diastole.proto.words import Reason
from diastole.server.link import Declined, Failure
from diastole.server.wire.upload import Upload
from diastole.v1 import device_pb2 as pb


class UploadError(DiastoleError):
    """An upload that contradicts its header or its task."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Answer(Enum):
    """How an upload is answered."""

    ACCEPTED = "accepted"
    NOT_NEEDED = "not needed"
    UNKNOWN_TASK = "unknown task"
    WAIT = "wait"
    """The round is about to be opened again, and nobody knows yet."""


@dataclass(frozen=True, slots=True)
class OwedTask:
    """A task as it goes out.

    Attributes:
        task: what is to be done.
        payload: what the device trains.
        most: the most bytes that its update may have.
        untrained: the rest of the sub-model, which the device may have kept; None if there is none.
        codec: how `payload` is encoded.
        coding: how the update is to be, and what may be downloaded in the place of `payload`.
        steps: the objects of the latter.

    """

    task: Task
    payload: Payload
    most: int
    untrained: Payload | None = None
    codec: str = EXACT.name
    coding: pb.Coding | None = None
    steps: tuple[Payload, ...] = ()


class Exchange:
    """What the services hand out and take in; safe to use from several threads.

    Only `write`, `finish` and `rest` touch the disk, and no other call waits for them. Nothing here calls a device. A
    task leaves the exchange when its upload is complete, when it is withdrawn, or when the round is closed; an upload
    for a task that has left is told so.
    """

    def __init__(
        self,
        spool: Path,
        tell: Callable[[Upload | Failure], None],
        aside: Callable[[Callable[[], None]], object] = lambda work: work(),
        keep: Callable[[Upload], None] = lambda upload: None,
        settled: Callable[[str], None] = lambda device: None,
    ) -> None:
        """Keep partial uploads in the folder `spool`; call `tell` with each complete upload and each task given up.

        `tell` is called under the lock, so a caller that finds no task open has been told of every one. `aside` is
        given what may take a while and nobody waits for; by default it is done at once. `keep` is called with each
        complete upload before anybody is told; if it raises, the upload has not come. `settled` is told of each device
        of which a task is not owed any more, under the lock too.
        """
        self._keep, self._settled = keep, settled
        self._coming = 0
        self._spool = spool
        self._tell, self._aside = tell, aside
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._final: set[str] = set()
        self._owed: dict[str, OwedTask] = {}
        self._of: dict[str, dict[str, OwedTask]] = {}
        self._objects: dict[tuple[str, str], Payload] = {}
        self._uploads: dict[str, Upload] = {}
        self._done: dict[tuple[str, str], Answer] = {}
        self._old: set[tuple[str, str]] = set()
        self._prefix, self._round, self._number = "", 0, 0
        self._undone: tuple[str, ...] = ()

    def resume(
        self, prefix: str, number: int, past: Mapping[tuple[str, str], Answer], undone: Iterable[str] = ()
    ) -> None:
        """Go on with a run whose tasks' names begin with `prefix`, before round `number` is opened.

        `past` is how uploads of the round before were answered, by device and task; nothing more is needed for tasks
        whose names begin with one of `undone`.
        """
        with self._lock:
            self._undone = tuple(f"{name}-r" for name in undone)
            self._prefix, self._round, self._coming, self._done = prefix, number, number, dict(past)

    @property
    def round(self) -> int:
        """The round that was opened last; 0 before the first."""
        return self._round

    @property
    def coming(self) -> bool:
        """Whether a round is about to be opened that devices may have had tasks of."""
        return bool(self._coming)

    def open(self, orders: Iterable[OwedTask], settled: Mapping[tuple[str, str], Answer] | None = None) -> None:
        """Begin a round: these tasks are owed, and their payloads may be downloaded; others are `settled` already."""
        with self._lock:
            # A device that is still uploading got its task in this round or in the one before.
            self._done = {key: value for key, value in self._done.items() if key not in self._old}
            self._old, self._coming = set(self._done), 0
            self._done.update(settled or {})
            for order in orders:
                task = order.task
                self._prefix, self._round = task.task_id.removesuffix(f"r{task.round}-{task.device}"), task.round
                self._owed[task.task_id] = order
                self._of.setdefault(task.device, {})[task.task_id] = order
                for payload in filter(None, (order.payload, order.untrained, *order.steps)):
                    self._objects[task.device, payload.sha256] = payload

    def close(self) -> list[Task]:
        """End the round and return the tasks nobody delivered; what comes late is not needed.

        Waits for uploads that are complete and are being kept.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._final)
            rest = [order.task for order in self._owed.values()]
            for task in rest:
                self.withdraw(task)
            self._objects.clear()
            return rest

    def withdraw(self, task: Task) -> None:
        """Give up a task; its upload, if one is under way, is dropped."""
        with self._lock:
            if self._settle(task):
                self._done[task.device, task.task_id] = Answer.NOT_NEEDED
                self._drop(task.task_id)

    def open_tasks(self) -> int:
        """Return the number of tasks nobody has delivered or given up."""
        with self._lock:
            return len(self._owed)

    def give_up(self, device: str, reason: str) -> None:
        """Withdraw what a device owes, because it is gone."""
        with self._lock:
            for order in self.owed(device):
                if order.task.task_id not in self._final:
                    self.withdraw(order.task)
                    self._tell(Failure(device, reason, faulty=False))

    def decline(self, device: str, task_id: str, why: Declined, reason: str) -> None:
        """Withdraw a task because its device will not do it; a task that the device does not owe is ignored."""
        with self._lock:
            order = self._owed.get(task_id)
            if order is not None and order.task.device == device and task_id not in self._final:
                self.withdraw(order.task)
                self._tell(Failure(device, reason, faulty=False, declined=why))

    def owed(self, device: str) -> list[OwedTask]:
        """Return the tasks that a device still owes."""
        with self._lock:
            return list(self._of.get(device, {}).values())

    def standing(self) -> tuple[list[OwedTask], dict[str, Upload]]:
        """Return the tasks that are owed, and the uploads under way by the names of their tasks."""
        with self._lock:
            return list(self._owed.values()), dict(self._uploads)

    def find(self, device: str, sha256: str) -> Payload | None:
        """Return the object of that digest, or None if no task of the open round gave it to the device."""
        with self._lock:
            return self._objects.get((device, sha256))

    def status(self, device: str, task_id: str, sha256: str) -> tuple[int, Answer | None]:
        """Return the bytes received of an upload, and the outcome if nothing more is to be sent."""
        with self._lock:
            order = self._owed.get(task_id)
            if order is None or order.task.device != device:
                return 0, self._past(device, task_id)
            upload = self._uploads.get(task_id)
            return (upload.received if upload and upload.sha256 == sha256 else 0), None

    def left(self, task_id: str) -> int:
        """Return the most bytes that the rest of a task's update may have; 0 if nobody owes it."""
        with self._lock:
            order, upload = self._owed.get(task_id), self._uploads.get(task_id)
            return order.most - (upload.received if upload else 0) if order else 0

    def begin(
        self, device: str, task_id: str, sha256: str, size: int, offset: int, report: Report, writer: object
    ) -> Upload | Answer:
        """Start or resume an upload; an `Answer` instead means that nothing is to be sent.

        Raises `UploadError` with the reason UPLOAD_HEADER, UPLOAD_SIZE or UPLOAD_OFFSET.
        """
        with self._lock:
            order = self._owed.get(task_id)
            if order is None or order.task.device != device:
                return self._past(device, task_id)
            if len(sha256) != 64 or size < 1:
                raise UploadError(Reason.UPLOAD_HEADER, f"update of {size} bytes with digest {sha256!r}; not an object")
            if size > order.most:
                raise UploadError(Reason.UPLOAD_SIZE, f"update of {size} bytes; task {task_id} takes {order.most}")
            upload = self._uploads.get(task_id)
            same = upload is not None and (upload.sha256, upload.size) == (sha256, size)
            standing = upload.received if upload is not None and same else 0
            if offset not in (0, standing):
                raise UploadError(Reason.UPLOAD_OFFSET, f"offset {offset}; the upload stands at {standing}")
            if upload is None or not same or offset == 0:
                self._drop(task_id)
                self._number += 1
                # Removing the file of an earlier upload, which may come late, must not touch this one's.
                path = self._spool / f"{task_id}.{self._number}.part"
                upload = self._uploads[task_id] = Upload(order.task, sha256, size, report, path)
            upload.report, upload.writer = report, writer
            return upload

    def write(self, upload: Upload, data: bytes | memoryview, writer: object) -> None:
        """Append to an upload.

        Raises `UploadError` if it is too long or another call has taken it over, and `OSError` if it cannot be stored;
        what was stored before is kept.
        """
        with upload.held():
            self._check_writer(upload, writer)
            if upload.received + len(data) > upload.size:
                raise UploadError(Reason.UPLOAD_SIZE, f"more than the {upload.size} bytes announced")
            upload.append(data)

    def finish(self, upload: Upload, writer: object) -> None:
        """Complete an upload: its task is no longer owed, and whoever got it from `tell` owns its file.

        Raises `UploadError` with the reason UPLOAD_OFFSET if bytes are missing or another call has taken over,
        UPLOAD_DIGEST if the content is not what was announced; what arrived is then dropped. Raises `OSError` likewise.
        """
        with upload.held():
            task_id = upload.task.task_id
            self._check_writer(upload, writer)
            if upload.received < upload.size:
                raise UploadError(Reason.UPLOAD_OFFSET, f"ended at {upload.received} of {upload.size} bytes")
            upload.close()
            if upload.digest != upload.sha256:
                with self._lock:
                    self._drop(task_id)
                raise UploadError(Reason.UPLOAD_DIGEST, f"content has digest {upload.digest}")
            with self._lock:
                # Its round may have ended meanwhile; from here on it waits.
                self._check_writer(upload, writer)
                self._final.add(task_id)
            try:
                self._keep(upload)
            except OSError:
                if not upload.path.exists():
                    with self._lock:
                        self._drop(task_id)
                raise
            else:
                with self._lock:
                    del self._uploads[task_id]
                    self._settle(upload.task)
                    self._done[upload.task.device, task_id] = Answer.ACCEPTED
                    self._tell(upload)
            finally:
                with self._changed:
                    self._final.discard(task_id)
                    self._changed.notify_all()

    def rest(self, upload: Upload, writer: object) -> None:
        """Close the file of an upload whose call has ended before it was complete; it may be resumed."""
        with upload.held(), suppress(OSError):
            if upload.writer is writer:
                upload.close()

    def _check_writer(self, upload: Upload, writer: object) -> None:
        if upload.writer is not writer or self._uploads.get(upload.task.task_id) is not upload:
            raise UploadError(Reason.UPLOAD_OFFSET, "another call has taken this upload over, or it is not needed")

    def _past(self, device: str, task_id: str) -> Answer:
        known = self._done.get((device, task_id))
        if known is not None:
            return known
        number = task_id.removeprefix(f"{self._prefix}r").removesuffix(f"-{device}")
        # A task of a round long past: its outcome is forgotten, but the device did nothing wrong.
        past = number.isdecimal() and 0 < int(number) < self._round
        mine = task_id == f"{self._prefix}r{number}-{device}"
        if mine and number == str(self._coming):
            return Answer.WAIT
        return Answer.NOT_NEEDED if (past and mine) or task_id.startswith(self._undone) else Answer.UNKNOWN_TASK

    def _settle(self, task: Task) -> bool:
        """Note that a task is not owed any more; return whether it was."""
        if self._owed.pop(task.task_id, None) is None:
            return False
        left = self._of[task.device]
        del left[task.task_id]
        if not left:
            del self._of[task.device]
        self._settled(task.device)
        return True

    def _drop(self, task_id: str) -> None:
        upload = self._uploads.pop(task_id, None)
        if upload is not None:
            self._aside(upload.discard)
