"""Very many devices in one process: sessions, heartbeats and transfers as agents have them, and no training.

Run as `python -m diastole.benchmarks.crowd COORDINATOR FIRST COUNT SHARED SCHEMA WHAT`: the devices are numbered from
`FIRST` on, and so many share a connection. Each does the tasks that it is given by sending back what it downloads, or
if `WHAT` is "read", by reading it and declining.
Every second a line of JSON is printed: the seconds that each heartbeat of that second took.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import grpc

from diastole.client.channel import TRANSIENT
from diastole.client.line import APART_BYTES
from diastole.proto.coding import known
from diastole.proto.payload import Payload
from diastole.proto.words import PROTOCOL_VERSION
from diastole.server.wire.many import hold_many
from diastole.v1 import common_pb2, device_pb2_grpc
from diastole.v1 import device_pb2 as pb

JOINING = 32
"""Devices that join at a time."""
RETRY_SECONDS = 0.2
AGAIN = (*TRANSIENT, grpc.StatusCode.INTERNAL)
"""The last is what `grpc.aio` says if a call is refused while a piece goes out."""
DELIVER, READ = "deliver", "read"
OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


class Crowd:
    """The devices, and what their heartbeats took since the last line."""

    def __init__(self, coordinator: str, schema: str, what: str) -> None:
        self._coordinator, self._schema = coordinator, schema
        self._do = self._read if what == READ else self._deliver
        self._places = asyncio.Semaphore(JOINING)
        self.took: list[float] = []

    async def device(self, stub: Any, name: str) -> None:
        """Be one device until the run is over, or the coordinator is gone."""
        with suppress(grpc.aio.AioRpcError):
            async with self._places:
                reply = await stub.Join(
                    pb.JoinRequest(
                        protocol_version=PROTOCOL_VERSION,
                        name=name,
                        model_schema=self._schema,
                        profile=common_pb2.DeviceProfile(tier="crowd", examples=1, codecs=known()),
                    )
                )
                stream = stub.Tasks(pb.TasksRequest(session=reply.session))
            beating = asyncio.create_task(self._beat(stub, reply))
            try:
                async for message in stream:
                    if message.HasField("train"):
                        await self._do(stub, reply.session, message.train)
                    elif message.HasField("finish"):
                        break
            finally:
                beating.cancel()
            await stub.Leave(pb.LeaveRequest(session=reply.session))

    async def _beat(self, stub: Any, joined: pb.JoinReply) -> None:
        lease = joined.lease_seconds
        await asyncio.sleep(random.uniform(0, lease / 3))  # noqa: S311 (nothing secret)
        with suppress(grpc.aio.AioRpcError):
            while True:
                began = time.perf_counter()
                reply = await stub.Heartbeat(pb.HeartbeatRequest(session=joined.session, lease_seconds=lease))
                self.took.append(time.perf_counter() - began)
                lease = reply.lease_seconds
                await asyncio.sleep(lease / 3)

    async def _read(self, stub: Any, session: str, task: pb.TrainTask) -> None:
        """Download a task's model, hold nothing of it, and decline the task with the number of its bytes."""
        request = pb.DownloadRequest(session=session, sha256=task.model.sha256)
        size = sum([len(chunk.data) async for chunk in stub.Download(request)])
        await stub.Decline(pb.DeclineRequest(session=session, task_id=task.task_id, message=f"{size}"))

    async def _deliver(self, stub: Any, session: str, task: pb.TrainTask) -> None:
        """Download a task's model and upload it, going on where it stood if the coordinator says others come first."""
        data, digest = bytearray(), task.model.sha256
        ask = pb.UploadStatusRequest(session=session, task_id=task.task_id, sha256=digest)
        header = pb.UploadHeader(
            session=session, task_id=task.task_id, update=task.model, examples=1, loss=1.0, train_seconds=1.0
        )
        while True:
            try:
                if len(data) < task.model.size:
                    request = pb.DownloadRequest(session=session, sha256=digest, offset=len(data))
                    async for chunk in stub.Download(request):
                        data += chunk.data
                status = await stub.UploadStatus(ask)
                if status.complete:
                    return
                header.offset = status.offset
                parts = _parts(header, Payload(memoryview(data), digest))
                if len(data) - status.offset < APART_BYTES:
                    await stub.Upload(parts)
                    return
                async with grpc.aio.insecure_channel(self._coordinator, OPTIONS) as channel:
                    await _stub(channel).Upload(parts)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() not in AGAIN:
                    return
                await asyncio.sleep(RETRY_SECONDS)


def _stub(channel: grpc.aio.Channel) -> Any:
    return device_pb2_grpc.DeviceServiceStub(channel)  # type: ignore[no-untyped-call]


async def _parts(header: pb.UploadHeader, payload: Payload) -> AsyncIterator[pb.UploadRequest]:
    yield pb.UploadRequest(header=header)
    for data in payload.chunks(header.offset):
        yield pb.UploadRequest(data=bytes(data))


async def run(coordinator: str, first: int, count: int, shared: int, schema: str, what: str) -> None:
    """Be `count` devices, `shared` of them on each connection, that do `what` with their tasks."""
    crowd, stub, devices = Crowd(coordinator, schema, what), None, []
    for number in range(count):
        if number % shared == 0:
            stub = _stub(grpc.aio.insecure_channel(coordinator, OPTIONS))
        devices.append(asyncio.create_task(crowd.device(stub, f"device-{first + number}")))
    over = asyncio.gather(*devices)
    while not over.done():
        await asyncio.sleep(1)
        sys.stdout.write(json.dumps(crowd.took) + "\n")
        sys.stdout.flush()
        crowd.took = []
    await over


def main(arguments: Sequence[str]) -> None:
    """Be the devices that the arguments describe."""
    coordinator, first, count, shared, schema, what = arguments
    # Else what is measured is how long this process stands still.
    hold_many()
    asyncio.run(run(coordinator, int(first), int(count), int(shared), schema, what))


if __name__ == "__main__":
    main(sys.argv[1:])
