"""A device that delivers what it was given, and says how long that took: `python -m ... COORDINATOR PORT AUTHORITY`.

After each task it sends as many bytes through the bare stream at `PORT`, and prints the seconds of all four ways.
"""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc

from diastole.benchmarks.bytestream import Bare
from diastole.benchmarks.peers import PATIENCE_SECONDS, PROFILE
from diastole.client.connection import Connection
from diastole.models.task import Report
from diastole.proto.payload import Payload

T = TypeVar("T")


def main(arguments: Sequence[str]) -> None:
    """Be that device until the coordinator says that the run is over."""
    coordinator, port, authority = arguments
    bare = Bare(int(port))
    credentials = grpc.ssl_channel_credentials(Path(authority).read_bytes()) if authority else None
    connection = Connection(coordinator, "echo", PROFILE, patience=PATIENCE_SECONDS, credentials=credentials)
    report = Report(examples=1, loss=0.0, seconds=0.0)
    try:
        connection.join()
        for order in connection.tasks():
            task = order.task
            data, down = _timed(partial(connection.download, task.model))
            if data is None:
                continue
            # Of the bytes themselves, the bare stream's slices are what goes out.
            payload, sent = Payload(data, task.model.sha256), bytes(data)
            _, up = _timed(partial(connection.upload, task.task_id, payload, report))
            (_, bare_down), (_, bare_up) = _timed(bare.down), _timed(partial(bare.up, sent))
            sys.stdout.write(f"{down} {up} {bare_down} {bare_up}\n")
            sys.stdout.flush()
    finally:
        connection.close("the benchmark is over")


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    found = call()
    return found, time.perf_counter() - began


if __name__ == "__main__":
    main(sys.argv[1:])
