"""How fast a payload goes to a device and comes back."""

import socket
from itertools import count

from diastole.benchmarks.models import WIDE_CNN
from diastole.benchmarks.peers import FULL, HOST, START_SECONDS, finish, receive, send, serving
from diastole.benchmarks.row import Row, compare
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.task import Task
from diastole.models.training import TrainConfig
from diastole.proto.payload import encode


def rows(model: ModelConfig = WIDE_CNN, repeats: int = 7) -> list[Row]:
    """Measure `transport.plain`: MB (10^6 bytes) a second of a payload's round trip, both directions added.

    One device in another process downloads the state of `model` over gRPC on loopback, without TLS, and uploads
    it untrained. Time runs from `GrpcLink.dispatch` to the update it yields, so it holds everything a round
    does with the bytes: encoding, SHA-256 at both ends of both ways, spooling the upload to a file, decoding.

    The baseline sends the same bytes there and back between the same two processes through one TCP socket, with
    SHA-256 at both ends of both ways, into buffers kept from run to run (the other end: a new one each time).

    Raises `BenchmarkError` if the device fails or the bytes change on their way.
    """
    state = initial_state(model, 0)
    data = encode(state)
    numbers = count(1)
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(START_SECONDS)
        with serving(model, state, 1, "echo", str(listener.getsockname()[1])) as link:
            plain, _ = listener.accept()
            with plain:
                plain.settimeout(None)
                buffer = bytearray(len(data))

                def over_grpc() -> None:
                    number = next(numbers)
                    task = Task(f"r{number}-echo", number, "echo", FULL, TrainConfig(), 0)
                    finish(link, [task], state)

                def over_tcp() -> None:
                    plain.sendall(len(data).to_bytes(8))
                    send(plain, data)
                    receive(plain, buffer)

                value, baseline = compare(over_grpc, over_tcp, repeats)
    moved = 2 * len(data) / 1e6
    return [Row.of("transport.plain", moved / value, moved / baseline, "MB/s", "higher")]
