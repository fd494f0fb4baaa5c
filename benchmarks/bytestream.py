"""A bare gRPC stream of bytes: no protobuf, no digest, no file, nothing checked."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from diastole.benchmarks.peers import HOST
from diastole.proto.payload import CHUNK_BYTES, Bytes

SERVICE = "diastole.benchmarks.Bare"


@contextmanager
def serving(data: bytes) -> Iterator[int]:
    """Serve `data` down, and take anything up, in plain text at the port that is yielded."""

    def down(request: bytes, context: Any) -> Iterator[Bytes]:
        return pieces(data)

    def up(requests: Iterator[bytes], context: Any) -> bytes:
        return str(sum(map(len, requests))).encode()

    handlers = {
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Up": grpc.stream_unary_rpc_method_handler(up),
    }
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port(f"{HOST}:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


class Bare:
    """The other end; each call returns the bytes that have moved."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.insecure_channel(f"{HOST}:{port}")
        self._down: Any = self._channel.unary_stream(f"/{SERVICE}/Down", None, None)
        self._up: Any = self._channel.stream_unary(f"/{SERVICE}/Up", None, None)

    def down(self) -> int:
        """Read the stream to its end."""
        return sum(map(len, self._down(b"")))

    def up(self, data: Bytes) -> int:
        """Send `data`."""
        return int(self._up(pieces(data)))


def pieces(data: Bytes) -> Iterator[Bytes]:
    """Cut bytes as a coordinator cuts them."""
    return (data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES))
