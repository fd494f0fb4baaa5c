"""The latest lines of a coordinator's log, as operators read them."""

import logging
import threading
from collections import deque
from collections.abc import Iterator

import grpc

from diastole.proto.about import About, mark
from diastole.proto.words import Reason, plain
from diastole.server.wire.refusal import refuse_operator
from diastole.v1 import admin_pb2 as pb
from diastole.v1 import admin_pb2_grpc

KEPT, LONGEST = 5_000, 2_000
"""Lines that are kept, and characters of one."""
WATCHERS = 8
ROOT = "diastole"


class Recent(logging.Handler):
    """Keeps the latest records of this process, numbered from the first, and lets others follow."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(mark)
        self._lines: deque[pb.LogLine] = deque(maxlen=KEPT)
        self._last, self._over = 0, False
        self._changed = threading.Condition()
        logging.getLogger(ROOT).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        found = getattr(record, "about", About())
        with self._changed:
            self._last += 1
            line = pb.LogLine(
                number=self._last,
                at=record.created,
                level=record.levelname.lower(),
                logger=record.name,
                run_id=found.run,
                round=found.round,
                device=plain(found.device),
                message=plain(record.getMessage(), LONGEST),
            )
            self._lines.append(line)
            self._changed.notify_all()

    def close(self) -> None:
        """Keep nothing more, and let nobody wait."""
        logging.getLogger(ROOT).removeHandler(self)
        with self._changed:
            self._over = True
            self._changed.notify_all()
        super().close()

    def follow(self, after: int, context: grpc.ServicerContext, *, wait: bool) -> Iterator[pb.LogLine]:
        """Yield the lines behind number `after`, and those that come if the caller will `wait`."""
        context.add_callback(self._wake)
        while context.is_active():
            with self._changed:
                while wait and self._last <= after and not self._over and context.is_active():
                    self._changed.wait()
                ready, over = [line for line in self._lines if line.number > after], self._over
            yield from ready
            after = ready[-1].number if ready else after
            if not wait or over:
                return

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class LogService(admin_pb2_grpc.LogServiceServicer):
    """Shows operators a coordinator's log."""

    def __init__(self, recent: Recent) -> None:
        """Show the lines in `recent`."""
        self._recent, self._watchers = recent, threading.Semaphore(WATCHERS)

    def Logs(self, request: pb.LogsRequest, context: grpc.ServicerContext) -> Iterator[pb.LogLine]:  # noqa: N802
        """Send the latest lines, and those that come."""
        if not self._watchers.acquire(blocking=False):
            text = f"{WATCHERS} others are reading already"
            refuse_operator(context, grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.WATCHERS, text)
        least = logging.getLevelNamesMapping().get(request.level.upper(), logging.NOTSET)
        try:
            for line in self._recent.follow(request.after, context, wait=request.follow):
                heavy = logging.getLevelNamesMapping().get(line.level.upper(), logging.INFO) >= least
                about = request.run_id in ("", line.run_id) and request.device in ("", line.device)
                if heavy and about:
                    yield line
        finally:
            self._watchers.release()
