"""A coordinator that says what it is told to say, over a real socket, and an agent that meets it."""

import queue
import threading
from collections.abc import Iterator
from concurrent import futures
from importlib.metadata import version
from typing import Any

import grpc
from agents import MODEL, SPEC, states

from diastole.models.training import TrainConfig
from diastole.proto.payload import Payload, encode
from diastole.proto.words import PROTOCOL_VERSION
from diastole.v1 import device_pb2 as pb
from diastole.v1 import device_pb2_grpc

MODEL_DATA = Payload.of(encode(states()[SPEC]))


def order(task_id: str = "r1-one", **changes: Any) -> pb.TrainTask:
    """Return a task that makes sense, but for the fields that are changed."""
    fields = {
        "task_id": task_id,
        "round": 1,
        "spec_json": SPEC.to_json(),
        "model": MODEL_DATA.ref(),
        "training_json": TrainConfig().to_json(),
        "seed": 1,
        **changes,
    }
    return pb.TrainTask(**fields)


class Evil(device_pb2_grpc.DeviceServiceServicer):  # type: ignore[misc]
    """Answers as an honest coordinator would, but for what a test replaces."""

    def __init__(self) -> None:
        self.model_json, self.lease, self.session, self.run_id = MODEL.to_json(), 5.0, "secret", "run"
        self.version = version("diastole")
        self.messages: Iterator[pb.Task] = iter(())
        self.chunks: Any = None
        self.takes: Any = None
        self.joins: Any = None
        self.heartbeats = self.downloads = 0
        self.kept: queue.SimpleQueue[float] = queue.SimpleQueue()
        self.declined: list[pb.DeclineRequest] = []
        self.uploads: list[str] = []
        self.left: list[str] = []
        self.answer = threading.Semaphore(0)
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        device_pb2_grpc.add_DeviceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()

    def Hello(self, request: Any, context: Any) -> pb.HelloReply:  # noqa: N802
        named = {"protocol_version": PROTOCOL_VERSION, "version": self.version}
        return pb.HelloReply(run_id=self.run_id, model_json=self.model_json, **named)

    def Join(self, request: Any, context: Any) -> pb.JoinReply:  # noqa: N802
        if self.joins is not None:
            return self.joins(request, context)
        return pb.JoinReply(session=self.session, lease_seconds=self.lease)

    def Tasks(self, request: Any, context: Any) -> Iterator[pb.Task]:  # noqa: N802
        yield from self.messages
        yield pb.Task(finish=pb.Finish(message="over"))

    def Download(self, request: Any, context: Any) -> Iterator[pb.Chunk]:  # noqa: N802
        self.downloads += 1
        if self.chunks is not None:
            yield from self.chunks(request, context)
            return
        for data in map(bytes, MODEL_DATA.chunks(request.offset)):
            yield pb.Chunk(data=data)

    def UploadStatus(self, request: Any, context: Any) -> pb.UploadStatusReply:  # noqa: N802
        return pb.UploadStatusReply()

    def Upload(self, requests: Iterator[pb.UploadRequest], context: Any) -> pb.UploadReply:  # noqa: N802
        task_id = next(requests).header.task_id
        if self.takes is not None:
            self.takes(task_id, context)
        for _ in requests:
            pass
        self.uploads.append(task_id)
        self.answer.release()
        return pb.UploadReply(outcome=pb.UploadReply.OUTCOME_ACCEPTED)

    def Heartbeat(self, request: Any, context: Any) -> pb.HeartbeatReply:  # noqa: N802
        self.heartbeats += 1
        self.kept.put(request.lease_seconds)
        return pb.HeartbeatReply(lease_seconds=self.lease)

    def Leave(self, request: Any, context: Any) -> pb.LeaveReply:  # noqa: N802
        self.left.append(request.message)
        return pb.LeaveReply()

    def Decline(self, request: Any, context: Any) -> pb.DeclineReply:  # noqa: N802
        self.declined.append(request)
        self.answer.release()
        return pb.DeclineReply()
