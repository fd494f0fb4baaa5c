"""Codecs: the exact one, and what a codec must be."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lossy import HALF, PACKED

from diastole.models.methods.registry import make_method
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.training import TrainConfig
from diastole.proto.codec import CODECS, EXACT, Codec, Exact, carried
from diastole.proto.payload import PayloadError, encode

MODEL = ModelConfig("cnn", (1, 8, 8), classes=3, widths=(8, 16))
RESNET = ModelConfig("resnet", (3, 8, 8), classes=4, widths=(8, 16), blocks=(1, 1))


@given(st.dictionaries(st.text(max_size=5), st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6), max_size=4))
@settings(max_examples=100)
def test_the_exact_codec_gives_every_bit_back(patterns: dict[str, list[int]]) -> None:
    state = {name: torch.tensor(bits, dtype=torch.int32).view(torch.float32) for name, bits in patterns.items()}
    back = EXACT.decode(EXACT.encode(state))
    assert {name: tensor.view(torch.int32).tolist() for name, tensor in back.items()} == patterns
    assert EXACT.encode(back) == EXACT.encode(state) == encode(state)


@pytest.mark.parametrize("model", [MODEL, RESNET], ids=lambda model: model.name)
@pytest.mark.parametrize("name", ["width", "fedrolex", "splitmix", "depthfl", "fiarse"])
def test_a_payload_has_the_bytes_that_are_told_before_it_is_made(name: str, model: ModelConfig) -> None:
    method = make_method(name, model, [1.0, 0.5], TrainConfig())
    method.prepare(method.initial(0), None, Moment())
    for size in method.offers():
        payload = EXACT.encode(method.compress(size.spec))
        assert EXACT.payload_bytes(size.cost.bytes_down, size.cost.header) == len(payload), size.spec.label


@pytest.mark.parametrize("data", [b"", b"not safetensors", bytes(64)])
def test_what_is_no_payload_is_one_line(data: bytes) -> None:
    with pytest.raises(PayloadError) as caught:
        EXACT.decode(data)
    assert "\n" not in str(caught.value)


def test_what_is_carried_is_what_a_codec_leaves_of_it() -> None:
    state = {"w": torch.tensor([1.0, 1 / 3]), "m": torch.tensor([3], dtype=torch.uint8)}
    assert carried(EXACT, state) is carried(PACKED, state) is state
    half = carried(HALF, state)
    assert half["w"].tolist() == [1.0, torch.tensor(1 / 3).half().item()]
    assert (half["w"].dtype, half["m"].dtype, half["m"].item()) == (torch.float32, torch.uint8, 3)


def test_codecs_are_found_by_name() -> None:
    assert CODECS["exact"] is EXACT
    assert Exact() == EXACT
    with pytest.raises(PayloadError, match=r"^unknown codec 'zip'; known: exact"):
        CODECS["zip"]


def test_a_codec_is_whatever_has_all_of_its_parts() -> None:
    parts: dict[str, Any] = {
        "name": "x",
        "exact": True,
        "encode": lambda self: None,
        "decode": lambda self: None,
        "payload_bytes": lambda self: None,
    }
    assert isinstance(type("Whole", (), parts)(), Codec)
    for part in parts:
        assert not isinstance(type("Part", (), {key: value for key, value in parts.items() if key != part})(), Codec)
