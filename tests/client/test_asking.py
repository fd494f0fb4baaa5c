"""Models that answer over gRPC, whole and in parts."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import torch
from torch import Tensor, nn

from diastole.client.asking import Fused, Manifest, listening, manifest_of
from diastole.client.errors import LinkError, ModelFileError, RefusedError
from diastole.client.inference import Predictor
from diastole.models.networks.config import ModelConfig
from diastole.proto.payload import encode
from diastole.v1 import infer_pb2, infer_pb2_grpc

MODEL = ModelConfig("cnn", (1, 2, 2), 4, (4,), group=2)


class Part(Predictor):
    """Two of four outputs: the inputs, multiplied."""

    def __init__(self, label: str, start: int) -> None:
        self.label, self.model, self.round = label, MODEL, 3
        self.start, self.module = start, nn.Identity()

    def refresh(self) -> bool:
        return False

    def outputs(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self.start : self.start + 2] * 2


def document() -> dict[str, object]:
    parts = [{"file": "", "model": label, "classes": classes} for label, classes in (("a", [0, 1]), ("b", [2, 3]))]
    weight = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist()
    return {"config": MODEL.to_json(), "model": "all", "round": 3, "parts": parts, "weight": weight, "bias": [0.5] * 4}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    (tmp_path / "split.json").write_bytes(manifest_of(document()))
    return tmp_path / "split.json"


@pytest.fixture
def places() -> Iterator[list[str]]:
    with ExitStack() as stack:
        yield [
            f"127.0.0.1:{stack.enter_context(listening('127.0.0.1:0', part))}" for part in (Part("b", 2), Part("a", 0))
        ]


def test_the_parts_answers_are_made_one(manifest: Path, places: list[str]) -> None:
    fused, x = Fused(manifest, places, [None, None]), torch.randn(70, 1, 2, 2)
    wanted = x.flatten(1) * 2 * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 0.5
    assert torch.allclose(fused.outputs(x), wanted, atol=1e-6)
    assert (fused.label, fused.round, fused.refresh()) == ("all", 3, False)


def test_a_part_that_is_missing_or_another_model_is_named(manifest: Path, places: list[str]) -> None:
    with pytest.raises(RefusedError, match="its parts are 'a', 'b'; at"):
        Fused(manifest, places[:1], [None])
    with listening("127.0.0.1:0", Part("c", 0)) as port, pytest.raises(RefusedError, match="'c'"):
        Fused(manifest, [*places, f"127.0.0.1:{port}"], [None] * 3)


def test_wrong_inputs_are_told_in_one_line(places: list[str]) -> None:
    with grpc.insecure_channel(places[0]) as channel:
        stub = infer_pb2_grpc.InferServiceStub(channel)  # type: ignore[no-untyped-call]
        for inputs in (b"nonsense", encode({"x": torch.zeros(1, 3, 3)}), encode({"z": torch.zeros(1)})):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Answer(infer_pb2.AnswerRequest(inputs=inputs))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "\n" not in caught.value.details()


def test_an_address_that_is_taken_is_refused(places: list[str]) -> None:
    with pytest.raises(LinkError, match="cannot be listened at"), listening(places[0], Part("a", 0)):
        pass


@pytest.mark.parametrize(
    "change",
    [
        {"weight": [[1.0]]},
        {"bias": [1.0]},
        {"parts": []},
        {"parts": "none"},
        {"round": "three"},
    ],
)
def test_a_manifest_that_is_none_is_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({**document(), **change}))
    with pytest.raises(ModelFileError, match="not the manifest of a split model") as caught:
        Manifest.read(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelFileError, match=r"the split\.json of diastole export is accepted"):
        Manifest.read(tmp_path / "none.json")
