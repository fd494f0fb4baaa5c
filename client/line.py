"""The line to a coordinator: a channel that can be exchanged for another while calls are under way."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from diastole.client.channel import open_channel
from diastole.client.transfer import Moving
from diastole.v1 import device_pb2 as pb
from diastole.v1 import device_pb2_grpc

APART_BYTES = 1 << 18
"""From which on an object goes up over a connection of its own."""


class Line:
    """Calls go out over the latest channel; those that are under way end over the one before.

    Attributes:
        stub: for calls.
        moving: for objects.

    """

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None, *, enrolled: bool) -> None:
        """Open a channel; see `open_channel`."""
        self._address, self._enrolled = address, enrolled
        self._lock = threading.Lock()
        self._channels: list[grpc.Channel] = []
        self._next: tuple[str, Any] | None = None
        self._failed = False
        self.stub, self.moving = self._open(credentials)

    def tasks(self, session: str) -> Iterator[pb.Task]:
        """Yield the messages of a session's task stream, also behind a `move`."""
        stream = self._moved(session) or self.stub.Tasks(pb.TasksRequest(session=session))
        while stream is not None:
            yield from stream
            stream = self._moved(session)

    def move(self, credentials: grpc.ChannelCredentials, session: str) -> None:
        """Go on over a new channel.

        The session's task stream is opened there before it ends here, so that the device is there without a gap.
        """
        with self._lock:
            stub, moving = self._open(credentials)
            self._next = session, stub.Tasks(pb.TasksRequest(session=session))
            self.stub, self.moving = stub, moving
            while len(self._channels) > 2:
                self._channels.pop(0).close()

    @contextmanager
    def upward(self, size: int) -> Iterator[Moving]:
        """Yield what uploads so many bytes: if they are many, over a connection that is closed behind them.

        gRPC holds memory there to read as much at once as has come at once, while the connection is open. If such an
        upload fails, the next one goes over the connection that is there: the coordinator may let no more in.
        """
        if size < APART_BYTES or self._failed:
            self._failed = False
            yield self.moving
            return
        self._failed = True
        with open_channel(self._address, self._credentials, enrolled=self._enrolled, apart=True) as channel:
            yield Moving(channel)
        self._failed = False

    def close(self) -> None:
        """Release the channels."""
        with self._lock:
            for channel in self._channels:
                channel.close()

    def _open(self, credentials: grpc.ChannelCredentials | None) -> tuple[Any, Moving]:
        self._credentials = credentials
        channel = open_channel(self._address, credentials, enrolled=self._enrolled)
        self._channels.append(channel)
        return device_pb2_grpc.DeviceServiceStub(channel), Moving(channel)  # type: ignore[no-untyped-call]

    def _moved(self, session: str) -> Any:
        """Return the stream that has been opened for a session, once; None if there is none."""
        with self._lock:
            opened, self._next = self._next, None
        if opened is None or opened[0] == session:
            return opened and opened[1]
        opened[1].cancel()
        return None
