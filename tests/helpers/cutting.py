"""A network that is not to be relied on: a TCP proxy that delays what it passes on, and cuts connections."""

import socket
import threading
from contextlib import suppress

PIECE = 4096


class Network:
    """Passes bytes between agents and a coordinator's port, until it is cut for good.

    Attributes:
        port: where agents call.
        cuts: connections that it has cut so far, after `down` bytes to the agent, or `up` bytes from it.

    """

    def __init__(self, to: int, *, down: int = 0, up: int = 0, delay: float = 0.0) -> None:
        """Listen; a number of bytes that is 0 cuts nothing, another one cuts once."""
        self._to, self._delay = to, delay
        self._limits = {"down": down, "up": up}
        self._ended = threading.Event()
        self._guard = threading.Condition()
        self._open: list[socket.socket] = []
        self.cuts: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def comes_to(self, connections: list[bool], seconds: float = 10.0) -> bool:
        """Wait until agents have opened so many connections, and those that are True are open still."""
        with self._guard:
            return self._guard.wait_for(
                lambda: [near.fileno() != -1 for near in self._open[::2]] == connections, seconds
            )

    def close(self) -> None:
        """Cut every connection, and let nobody in again."""
        self._ended.set()
        with self._guard:
            for each in (self._listener, *self._open):
                _cut(each)

    def _accept(self) -> None:
        with suppress(OSError):
            while not self._ended.is_set():
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._to))
                except OSError:
                    # The coordinator is away.
                    near.close()
                    continue
                with self._guard:
                    self._open += [near, far]
                    self._guard.notify_all()
                for way, source, sink in (("up", near, far), ("down", far, near)):
                    threading.Thread(target=self._pass, args=(way, source, sink), daemon=True).start()

    def _pass(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(PIECE):
                self._ended.wait(self._delay)
                passed += len(data)
                if 0 < self._limits[way] < passed:
                    self._limits[way] = 0
                    self.cuts.append(way)
                    break
                sink.sendall(data)
        with self._guard:
            _cut(source)
            _cut(sink)
            self._guard.notify_all()


def _cut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
