"""A socket of this machine at which other programs ask a device's model.

A client sends lines of JSON and gets a line for each. `{"x": [...]}` holds one example or several and is answered by
`{"outputs": [...], "labels": [...], "model": LABEL, "round": N}`; of a model that gives no classes, labels are null. Of
a stream (`--hop`), `{"samples": [...]}` holds what is new, `[channels][any number]`; outputs are those of the windows
that end in it. Every connection is a stream of its own, of the model that was there when the server started; otherwise
a model that is replaced is taken up by the next request. Whatever is wrong is answered by `{"error": "one line"}`.
"""

import json
import os
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diastole.client.errors import DataError
from diastole.client.inference import Predictor, as_tensor, labels
from diastole.client.streaming import Stream
from diastole.models.networks.config import ModelConfig
from diastole.proto.errors import DiastoleError
from diastole.proto.jsontext import from_json

LONGEST_LINE = 1 << 24
"""Bytes of a request: 16 MiB, some hundreds of images as text."""

MOST_CLIENTS = 16
"""Connections at a time: each has a thread, and may have a window of a stream."""


class Answering(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers requests at a Unix socket, which this user alone may open."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, path: Path, predictor: Predictor, hop: int | None = None, *, approximate: bool = False) -> None:
        """Listen at `path`; with `hop`, every connection is a stream.

        Raises `DataError` if it is something else than a socket that nobody listens at, and what `Predictor.stream`
        raises if the model cannot be streamed.
        """
        if hop is not None:
            predictor.stream(hop, approximate=approximate)
        self.predictor, self.hop, self.approximate = predictor, hop, approximate
        self.free = threading.Semaphore(MOST_CLIENTS)
        self._asked = threading.Lock()
        _vacate(path)
        before = os.umask(0o177)
        try:
            super().__init__(str(path), _Client)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; the path of a socket that can be made is accepted") from None
        finally:
            os.umask(before)

    def answer(self, line: bytes, stream: Stream | None) -> dict[str, Any]:
        """Return the answer to a request. Raises `DiastoleError`."""
        try:
            request = from_json(line)
        except ValueError:
            raise DataError('a line that is no JSON; an object such as {"x": [...]} is accepted') from None
        key = "x" if stream is None else "samples"
        if not isinstance(request, dict) or set(request) != {key}:
            raise DataError(f'a request that is no object with the one key "{key}"')
        # One at a time: a module is not made for several threads.
        with self._asked:
            predictor = self.predictor
            if stream is None:
                predictor.refresh()
                outputs = predictor.outputs(predictor.inputs(request[key]))
            else:
                outputs = _windows(stream, request[key], predictor.model)
            answer = {"outputs": outputs.tolist(), "labels": labels(outputs, predictor.model)}
            return answer | {"model": predictor.label, "round": predictor.round}


def _windows(stream: Stream, samples: Any, model: ModelConfig) -> Tensor:
    """Return the outputs `[windows, ...]` of what ends in samples `[channels, n]`."""
    found = stream.push(as_tensor(samples, (model.input_shape[0], -1), model)[0])
    return torch.cat(found) if found else torch.empty(0, *model.gives)


class _Client(socketserver.StreamRequestHandler):
    """One connection."""

    server: Answering

    def handle(self) -> None:
        """Answer line after line until the client has gone."""
        free = self.server.free
        if not free.acquire(blocking=False):
            self._say({"error": f"{MOST_CLIENTS} programs are connected, which is the most; try again later"})
            return
        try:
            with suppress(OSError):
                self._serve()
        finally:
            free.release()

    def _serve(self) -> None:
        server = self.server
        stream = None if server.hop is None else server.predictor.stream(server.hop, approximate=server.approximate)
        while line := self.rfile.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                self._say({"error": f"a line of more than {LONGEST_LINE} bytes, the most that is accepted"})
                return
            try:
                answer = server.answer(line, stream)
            except DiastoleError as error:
                answer = {"error": str(error)}
            self._say(answer)

    def _say(self, answer: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(answer).encode() + b"\n")


@contextmanager
def answering(server: Answering) -> Iterator[None]:
    """Answer in a thread for as long as the block runs, and remove the socket behind it."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        Path(str(server.server_address)).unlink(missing_ok=True)


def _vacate(path: Path) -> None:
    """Remove a socket that a process has left behind. Raises `DataError` if the path is in use."""
    if not (path.exists() or path.is_symlink()):
        return
    if not path.is_socket():
        raise DataError(f"{path}: is there already; the path of a socket that can be made is accepted")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
    raise DataError(f"{path}: another program answers here; give this one a path of its own")
