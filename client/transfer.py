"""Transfers that end: at the announced size, when nothing moves, or when nobody needs them any more."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import grpc

from diastole.client.bounds import IDLE_SECONDS, IDLE_TRIES
from diastole.client.errors import MessageError
from diastole.proto.framing import read_chunk, write_part
from diastole.proto.pages import room
from diastole.proto.payload import Payload
from diastole.v1 import common_pb2
from diastole.v1 import device_pb2 as pb

LOOK_SECONDS = 0.1
ANSWER_SECONDS = 2.0
"""For which the answer to an upload that has gone out whole is waited for: it counts, though the run may be over."""
SMALL_BYTES = 1 << 16
"""Pieces that take less time to hash than to give to another thread."""

SERVICE = pb.DESCRIPTOR.services_by_name["DeviceService"].full_name


class Moving:
    """The two calls that move objects; pieces pass by protobuf (`proto/framing.py`)."""

    def __init__(self, channel: grpc.Channel) -> None:
        """Prepare the calls on a channel."""
        self.download: Any = channel.unary_stream(
            f"/{SERVICE}/Download",
            request_serializer=pb.DownloadRequest.SerializeToString,
            response_deserializer=read_chunk,
        )
        self.upload: Any = channel.stream_unary(
            f"/{SERVICE}/Upload",
            request_serializer=write_part,
            response_deserializer=pb.UploadReply.FromString,
        )


class Watch:
    """Looks at one call from a thread of its own, and cancels it when it stands still or is not wanted any more."""

    def __init__(self, stopped: Callable[[], bool], idle: float) -> None:
        self.call: Any = None
        self.idle = False
        self._stopped, self._limit = stopped, idle
        self._moved, self._whole = time.monotonic(), False
        self._done = threading.Event()

    def moved(self) -> None:
        """Note that bytes have moved."""
        self._moved = time.monotonic()

    def whole(self) -> None:
        """Note that all is on its way, and only the answer missing."""
        self.moved()
        self._whole = True

    def look(self) -> None:
        """Look until the block of `watched` has ended."""
        while not self._done.wait(LOOK_SECONDS):
            still = time.monotonic() - self._moved
            self.idle, due = still > self._limit, self._whole and still < ANSWER_SECONDS
            if (self.idle or (self._stopped() and not due)) and self.call is not None:
                self.call.cancel()
                return

    def end(self) -> None:
        """Stop looking."""
        self._done.set()


@contextmanager
def watched(stopped: Callable[[], bool], idle: float | None = None) -> Iterator[Watch]:
    """Watch a transfer, which the caller assigns to `call`, for as long as the block runs.

    Args:
        stopped: whether nobody needs the transfer any more.
        idle: seconds that it may stand still; `IDLE_SECONDS` by default.

    """
    watch = Watch(stopped, IDLE_SECONDS if idle is None else idle)
    threading.Thread(target=watch.look, daemon=True, name="diastole-transfer").start()
    try:
        yield watch
    finally:
        watch.end()


def result_of(call: Any) -> Any:
    """Return what a call comes to. Raises `grpc.RpcError`, also if this device has cancelled it."""
    try:
        return call.result()
    except grpc.FutureCancelledError:
        raise call from None


def parts(header: pb.UploadHeader, payload: Payload, watch: Watch) -> Iterator[pb.UploadRequest | memoryview]:
    """Yield an upload from its header's offset on; who watches it is told when a part is on its way."""
    yield pb.UploadRequest(header=header)
    for data in payload.chunks(header.offset):
        # Asked for only when the part before is on its way.
        watch.moved()
        yield data
    watch.whole()


class Download:
    """One object on its way in; it never takes more memory, or more of a file, than the object was announced with.

    Attributes:
        size: bytes that have come.

    """

    def __init__(self, ref: common_pb2.ObjectRef, part: Path | None = None) -> None:
        """Go on where the file `part` ends, if it is there, and write there what comes; None writes nothing.

        Raises `MemoryError`.
        """
        self._ref, self._part, self._stood = ref, part, 0
        self._held, self.size, self._digest = room(ref.size), 0, hashlib.sha256()
        if part is not None and part.is_file() and part.stat().st_size <= ref.size:
            self._add(part.read_bytes())
        self.resumed = bool(self.size)

    @property
    def data(self) -> memoryview:
        """What has come."""
        return self._held[: self.size]

    def take(self, open_at: Callable[[int], Any], stopped: Callable[[], bool]) -> bool:
        """Read on from where the last call ended; return whether all of it is there.

        Args:
            open_at: opens the stream of chunks from an offset on.
            stopped: whether nobody needs the object any more.

        Raises `MessageError` if the object goes on beyond its announced size, or stands still again and again, and what
        the stream raises.

        """
        before, hashed = self.size, Future[None]()
        hashed.set_result(None)
        # While a piece is hashed, the next one comes.
        with watched(stopped) as watch, ExitStack() as files, ThreadPoolExecutor(1, "diastole-digest") as hashing:
            file = self._open(files)
            try:
                watch.call = open_at(before)
                for piece in watch.call:
                    if not piece:
                        continue
                    if self.size + len(piece) > self._ref.size:
                        watch.call.cancel()
                        raise MessageError(f"{self._name} goes on beyond the {self._ref.size} bytes announced")
                    hashed.result()
                    if len(piece) < SMALL_BYTES:
                        self._digest.update(piece)
                    else:
                        hashed = hashing.submit(self._digest.update, piece)
                    self._hold(piece)
                    if file is not None:
                        file = self._written(file, piece)
                    watch.moved()
            finally:
                self._stood = self._stood + 1 if watch.idle and self.size == before else 0
                if self._stood >= IDLE_TRIES:
                    raise MessageError(f"{self._name} does not arrive: not a byte in {IDLE_TRIES} tries")
        return self.size == self._ref.size

    @property
    def whole(self) -> bool:
        """Whether the content has the digest that was announced."""
        return self._digest.hexdigest() == self._ref.sha256

    def drop(self) -> None:
        """Forget what has come."""
        self.size, self._digest = 0, hashlib.sha256()
        if self._part is not None:
            self._part.unlink(missing_ok=True)

    def _add(self, data: bytes) -> None:
        self._digest.update(data)
        self._hold(data)

    def _hold(self, data: bytes | memoryview) -> None:
        self._held[self.size : self.size + len(data)] = data
        self.size += len(data)

    @property
    def _name(self) -> str:
        return f"object {self._ref.sha256[:12]}..."

    def _open(self, files: ExitStack) -> BinaryIO | None:
        if self._part is None:
            return None
        try:
            if self._part.exists() and self._part.stat().st_size != self.size:
                self._part.unlink()
                self._part.write_bytes(self.data)
            return files.enter_context(self._part.open("ab", buffering=0))
        except OSError:
            self._unkept()
            return None

    def _written(self, file: BinaryIO, data: memoryview) -> BinaryIO | None:
        try:
            if file.write(data) == len(data):
                return file
        except OSError:
            pass
        self._unkept()
        return None

    def _unkept(self) -> None:
        """Go on in memory alone: the disk is full."""
        if self._part is not None:
            with suppress(OSError):
                self._part.unlink(missing_ok=True)
        self._part = None
