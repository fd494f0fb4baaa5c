"""Models that answer over gRPC: one that is served, and one in parts on several devices whose answers are made one."""

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from diastole.client.errors import LinkError, ModelFileError, RefusedError
from diastole.client.inference import Predictor
from diastole.models.networks.config import ModelConfig
from diastole.models.scoring import EVALUATED
from diastole.models.spec import one_line
from diastole.proto.address import cause, channel_options
from diastole.proto.errors import DiastoleError
from diastole.proto.payload import decode, encode
from diastole.v1 import infer_pb2, infer_pb2_grpc

LARGEST = 16 << 20
"""Bytes of a request or an answer."""

SECONDS = 20.0
MOST_PARTS = 256
LARGEST_MANIFEST = 64 << 20


class _Service(infer_pb2_grpc.InferServiceServicer):
    """Answers one request after another with a model, which may be replaced."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor, self._lock = predictor, threading.Lock()

    def Answer(self, request: Any, context: Any) -> Any:  # noqa: N802 (gRPC names it so)
        """Answer inputs, or say which model answers."""
        try:
            with self._lock:
                self._predictor.refresh()
                if not request.inputs:
                    return infer_pb2.AnswerReply(model=self._predictor.label)
                x = decode(request.inputs).get("x")
                y = self._predictor.outputs(self._predictor.inputs(x))
                return infer_pb2.AnswerReply(outputs=encode({"y": y}), model=self._predictor.label)
        except DiastoleError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))


@contextmanager
def listening(address: str, predictor: Predictor, credentials: grpc.ServerCredentials | None = None) -> Iterator[int]:
    """Let a model answer at `host:port` inside the block, in plain text without credentials; yield the port.

    Raises `LinkError` if nobody can listen there.
    """
    options = [("grpc.max_receive_message_length", LARGEST), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(2), options=options, maximum_concurrent_rpcs=16)
    infer_pb2_grpc.add_InferServiceServicer_to_server(_Service(predictor), server)  # type: ignore[no-untyped-call]
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        raise LinkError(f"{address}: cannot be listened at; an address of this machine that is free is accepted")
    server.start()
    try:
        yield port
    finally:
        server.stop(1.0).wait()


class _Part(BaseModel):
    """One part of a split model, as its manifest names it."""

    model_config = ConfigDict(extra="ignore")

    model: str
    classes: list[int]


class Manifest(BaseModel):
    """What `diastole export --split` says of the parts, and how their answers are made one."""

    model_config = ConfigDict(extra="ignore")

    config: str
    model: str
    round: int
    parts: list[_Part]
    weight: list[list[float]]
    bias: list[float]

    @staticmethod
    def read(path: Path) -> "Manifest":
        """Read a manifest. Raises `ModelFileError` in one line if it is none."""
        try:
            if path.stat().st_size > LARGEST_MANIFEST:
                raise ModelFileError(f"{path}: too large for the manifest of a split model")
            found = Manifest.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ModelFileError(f"{path}: {error.strerror}; the split.json of diastole export is accepted") from None
        except ValidationError as error:
            raise ModelFileError(f"{path}: not the manifest of a split model: {one_line(error)}") from None
        classes = sum(len(part.classes) for part in found.parts)
        square = [len(row) for row in found.weight] == [classes] * classes
        if not (0 < len(found.parts) <= MOST_PARTS and square and len(found.bias) == classes):
            raise ModelFileError(f"{path}: not the manifest of a split model: its parts and its weights do not fit")
        return found


class Fused(Predictor):
    """A model in parts: every part is asked at the same time, and a linear layer makes one answer of theirs."""

    def __init__(
        self, manifest: Path, addresses: Sequence[str], credentials: Sequence[grpc.ChannelCredentials | None]
    ) -> None:
        """Call the parts of a manifest, at addresses in any order.

        Raises `ModelFileError`, `LinkError` if nobody answers, and `RefusedError` if it is somebody else.
        """
        self._found = Manifest.read(manifest)
        self._pool = ThreadPoolExecutor(max(1, len(addresses)))
        options = [("grpc.max_receive_message_length", LARGEST)]
        self._channels = {
            address: grpc.insecure_channel(address, options=[*options, *channel_options(address)])
            if secret is None
            else grpc.secure_channel(address, secret, options=[*options, *channel_options(address)])
            for address, secret in zip(addresses, credentials, strict=True)
        }
        there = {self._call(address, None)[1]: address for address in addresses}
        missing = [part.model for part in self._found.parts if part.model not in there]
        if missing or len(there) > len(self._found.parts):
            known = ", ".join(repr(part.model) for part in self._found.parts)
            raise RefusedError(f"{manifest}: its parts are {known}; at {', '.join(addresses)} answer {[*there]}")
        self._places = [there[part.model] for part in self._found.parts]
        super().__init__(manifest)

    def refresh(self) -> bool:
        """Return False: parts are replaced where they are."""
        return False

    def _read(self) -> None:
        self.model = ModelConfig.from_json(self._found.config)
        self.label, self.round = self._found.model, self._found.round
        self.module: nn.Module = _Asked(self)

    def fused(self, x: Tensor) -> Tensor:
        """Return the answer `[n, classes]` that is made of all parts'."""
        outputs = torch.cat([y for y, _ in self._pool.map(lambda place: self._call(place, x), self._places)], 1)
        if outputs.shape != (len(x), len(self._found.bias)):
            raise RefusedError(f"the parts answer {list(outputs.shape)}; {[len(x), len(self._found.bias)]} is due")
        return outputs @ torch.tensor(self._found.weight).T + torch.tensor(self._found.bias)

    def _call(self, address: str, x: Tensor | None) -> tuple[Tensor, str]:
        stub: Any = infer_pb2_grpc.InferServiceStub(self._channels[address])  # type: ignore[no-untyped-call]
        inputs = b"" if x is None else encode({"x": x})
        try:
            reply = stub.Answer(infer_pb2.AnswerRequest(inputs=inputs), timeout=SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            why = cause(address, error.details())
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise LinkError(f"no model answers at {address} ({why})") from None
            raise RefusedError(f"{address}: {why}") from None
        y = decode(reply.outputs).get("y") if reply.outputs else torch.empty(0)
        if y is None or (x is not None and (y.ndim != 2 or len(y) != len(x) or not y.is_floating_point())):
            raise RefusedError(f"{address}: answers that are none; [{0 if x is None else len(x)}, classes] is due")
        return y.float(), reply.model


class _Asked(nn.Module):
    """Asks the parts, for whatever takes modules."""

    def __init__(self, fused: Fused) -> None:
        super().__init__()
        self._fused = [fused]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._fused[0].fused(some) for some in torch.split(x, EVALUATED)])


def manifest_of(document: dict[str, Any]) -> bytes:
    """Return a manifest's content."""
    return (json.dumps(document) + "\n").encode()
