"""Codecs: what each keeps of tensors, the bytes that it says it takes, and what it refuses."""

import zlib
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import torch as safetensors
from torch import Tensor

from diastole.models.methods.registry import apart, make_method
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.training import TrainConfig
from diastole.proto.codec import CODECS, EXACT, Codec, Exact, find
from diastole.proto.codecs.integers import by_channel
from diastole.proto.codecs.packing import flat, inflated, shapes_of
from diastole.proto.coding import Coding
from diastole.proto.payload import PayloadError, encode

MODEL = ModelConfig("cnn", (1, 8, 8), classes=3, widths=(8, 16))
RESNET = ModelConfig("resnet", (3, 8, 8), classes=4, widths=(8, 16), blocks=(1, 1))
LOSSY = ["fp16", "bf16", "int8", "int4", "top-k", "top-k:0.01", "top-k:1"]
SHAPES = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 20)),
        st.tuples(st.integers(0, 5), st.integers(0, 12)),
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
        st.just(()),
    ),
    max_size=4,
)


def drawn(shapes: Any, seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    # Names that sort otherwise than they come.
    return {f"{9 - number}.w": scale * torch.randn(shape, generator=draws) for number, shape in enumerate(shapes)}


def plain_bytes(state: Mapping[str, Tensor]) -> int:
    return len(encode(state))


@given(st.dictionaries(st.text(max_size=5), st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6), max_size=4))
@settings(max_examples=100)
def test_the_exact_codec_gives_every_bit_back(patterns: dict[str, list[int]]) -> None:
    state = {name: torch.tensor(bits, dtype=torch.int32).view(torch.float32) for name, bits in patterns.items()}
    back = EXACT.decode(EXACT.encode(state, 0), state)
    assert {name: tensor.view(torch.int32).tolist() for name, tensor in back.items()} == patterns
    assert EXACT.encode(back, 1) == EXACT.encode(state, 0) == encode(state)


@pytest.mark.parametrize("name", ["exact", *LOSSY])
@given(shapes=SHAPES)
def test_names_shapes_and_types_come_back_and_the_bytes_are_those_that_are_told(name: str, shapes: Any) -> None:
    codec, state = find(name), drawn(shapes)
    state |= {name: tensor.double() for name, tensor in list(state.items())[:1] if not codec.exact}
    data = codec.encode(state, 5)
    assert len(data) == codec.payload_bytes(shapes_of(state), plain_bytes(state))
    assert data == codec.encode(dict(reversed(state.items())), 5)
    back = codec.decode(data, state)
    assert {n: (t.shape, t.dtype) for n, t in back.items()} == {n: (t.shape, t.dtype) for n, t in state.items()}
    if not codec.exact:
        assert list(back) == list(state)


@pytest.mark.parametrize("model", [MODEL, pytest.param(RESNET, marks=pytest.mark.slow)], ids=lambda model: model.name)
@pytest.mark.parametrize("name", ["width", "fedrolex", "depthfl", "fiarse"])
def test_a_payload_has_the_bytes_that_are_told_before_it_is_made(name: str, model: ModelConfig) -> None:
    method = make_method(name, model, [1.0, 0.5], TrainConfig())
    method.prepare(method.initial(0), None, Moment())
    for size in method.offers():
        moving, still = apart(model, size.spec, method.compress(size.spec))
        for codec in map(find, ("exact", *LOSSY)):
            told = codec.payload_bytes(size.cost.shapes, size.cost.up)
            assert told == len(codec.encode(moving, 0)), (size.spec.label, codec.name)
        assert size.cost.untrained == (len(encode(still)) if still else 0)


@pytest.mark.parametrize(("name", "digits", "least"), [("fp16", 11, 2.0**-14), ("bf16", 8, 2.0**-126)])
@given(numbers=st.lists(st.floats(-65504, 65504, width=32), max_size=20))
def test_floats_are_rounded_to_the_nearest(name: str, digits: int, least: float, numbers: list[float]) -> None:
    state = {"w": torch.tensor(numbers)}
    back = find(name).decode(find(name).encode(state, 0), state)["w"].double()
    near = state["w"].double()
    assert bool(((back - near).abs() <= 2.0**-digits * near.abs().clamp(min=least)).all())


def test_fp16_sends_its_largest_number_for_a_larger_one_and_keeps_what_is_not_finite() -> None:
    state = {"w": torch.tensor([1e6, -1e6, torch.inf, torch.nan])}
    back = find("fp16").decode(find("fp16").encode(state, 0), state)["w"]
    assert back[:3].tolist() == [65504, -65504, torch.inf]
    assert back[3].isnan()


@pytest.mark.parametrize(("name", "most"), [("int8", 127), ("int4", 7)])
@given(shapes=SHAPES, seed=st.integers(0, 5), scale=st.sampled_from([1.0, 1e-30, 1e-44, 1e30]))
def test_integers_are_within_a_step_of_their_channel(
    name: str, most: int, shapes: Any, seed: int, scale: float
) -> None:
    codec, state = find(name), drawn(shapes, seed, scale)
    back = codec.decode(codec.encode(state, seed), state)
    for key, tensor in state.items():
        if not by_channel(tensor.shape):
            assert torch.equal(back[key], tensor)
            continue
        rows, found = (t.double().reshape(len(tensor), -1) for t in (tensor, back[key]))
        step = rows.abs().amax(1, keepdim=True) / most
        # Below float32's smallest normal number a scale has few bits, or none.
        assert bool(((found - rows).abs() <= step * (1 + 1e-5) + 1e-37).all())


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_rounding_is_unbiased_and_drawn_from_the_seed(name: str) -> None:
    codec, state = find(name), {"w": torch.randn(3, 16, generator=torch.Generator().manual_seed(1))}
    found = torch.stack([codec.decode(codec.encode(state, seed), state)["w"] for seed in range(200)]).double()
    step = state["w"].abs().amax(1, keepdim=True).double() / codec.most
    # The standard deviation of a rounded number is at most half a step; of the mean of 200, 14 times less.
    assert bool(((found.mean(0) - state["w"].double()).abs() < step * 0.5 / 200**0.5 * 5).all())
    assert codec.encode(state, 1) == codec.encode(state, 1) != codec.encode(state, 2)


@given(shapes=SHAPES, share=st.sampled_from([0.01, 0.1, 0.3, 1.0]), seed=st.integers(0, 3))
def test_the_largest_numbers_are_sent_and_the_others_are_zero(shapes: Any, share: float, seed: int) -> None:
    codec, state = find(f"top-k:{share}"), drawn(shapes, seed)
    state = {name: (tensor * 4).round() for name, tensor in state.items()}  # so that some are equal
    numbers, back = flat(state).tolist(), flat(codec.decode(codec.encode(state, 0), state)).tolist()
    many = -(-round(share * 100) * len(numbers) // 100)
    order = sorted(range(len(numbers)), key=lambda place: (-abs(numbers[place]), place))
    assert back == [value if place in order[:many] else 0 for place, value in enumerate(numbers)]


def hostile(codec: Codec, parts: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> str:
    with pytest.raises(PayloadError) as caught:
        codec.decode(safetensors.save(dict(parts)), like)
    assert "\n" not in str(caught.value)
    return str(caught.value)


LIKE = {"a": torch.zeros(3, 9), "b": torch.zeros(5)}


@pytest.mark.parametrize("name", LOSSY)
@given(data=st.data())
def test_whatever_else_arrives_is_refused_or_has_the_shapes_that_are_expected(name: str, data: st.DataObject) -> None:
    codec = find(name)
    good = codec.encode(drawn([(3, 9), (5,)]), 0)
    like = {"9.w": LIKE["a"], "8.w": LIKE["b"]}
    spoilt = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        spoilt[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(spoilt[: data.draw(st.sampled_from([len(good), len(good) - 1, 9, 0]))])
    try:
        found = codec.decode(cut, like)
    except PayloadError:
        found = like
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in like.items()}


def test_hostile_parts_are_one_line_that_says_what_is_wrong() -> None:
    int8, int4, topk, few = find("int8"), find("int4"), find("top-k:0.5"), find("top-k:0.03")
    good = safetensors.load(int8.encode(drawn([(3, 9), (5,)]), 0))
    assert "a value of -128; the smallest is -127" in hostile(int8, good | {"values": good["values"] * 0 - 128}, LIKE)
    for scale in (torch.nan, torch.inf, -1.0, 3e38):
        told = hostile(int8, good | {"scales": torch.full((3,), scale)}, LIKE)
        assert told == "codec int8: scales must be finite and at least 0"
    assert "payload of " in hostile(int8, good | {"more": torch.zeros(1)}, LIKE)
    assert "part 'scales' is missing" in hostile(
        int8, {name.replace("scales", "scalez"): part for name, part in good.items()}, LIKE
    )
    assert "part 'scales' is torch.int32 [3]; expected torch.float32 [3]" in hostile(
        int8, good | {"scales": torch.zeros(3, dtype=torch.int32)}, LIKE
    )
    four = safetensors.load(int4.encode(drawn([(3, 9), (5,)]), 0))
    zeros = four["values"] * 0
    zeros[-1] = 8 << 4
    assert "a value of -8; the smallest is -7" in hostile(int4, four | {"values": zeros}, LIKE)
    last = four["values"].clone()
    last[-1] = (last[-1] & 15) | (9 << 4)
    assert "the last half of a byte" in hostile(int4, four | {"values": last}, LIKE)
    bits = safetensors.load(topk.encode(drawn([(3, 9), (5,)]), 0))
    assert "32 places for 16 values" in hostile(topk, bits | {"where": bits["where"] * 0 + 255}, {"a": torch.zeros(32)})
    assert "values must be finite" in hostile(topk, bits | {"values": bits["values"] * torch.inf}, LIKE)
    wide = {"a": torch.zeros(100)}
    places = safetensors.load(few.encode(drawn([(100,)]), 0))
    assert places["where"].dtype == torch.int32
    for where in ([5, 5, 6], [6, 5, 7], [-1, 2, 3], [1, 2, 100]):
        told = hostile(few, places | {"where": torch.tensor(where, dtype=torch.int32)}, wide)
        assert told == "codec top-k:0.03: places must be rising, from 0 to 99"


@pytest.mark.parametrize("name", ["int8", "int4", "top-k"])
def test_numbers_that_are_not_finite_are_refused_where_they_arrive(name: str) -> None:
    for value in (torch.nan, torch.inf):
        state = {"w": torch.full((2, 10), value)}
        with pytest.raises(PayloadError, match="must be finite"):
            find(name).decode(find(name).encode(state, 0), state)


@pytest.mark.parametrize("data", [b"", b"not safetensors", bytes(64)])
def test_what_is_no_payload_is_one_line(data: bytes) -> None:
    for codec in (EXACT, find("int8")):
        with pytest.raises(PayloadError) as caught:
            codec.decode(data, {})
        assert "\n" not in str(caught.value)


def test_codecs_are_found_by_name() -> None:
    assert CODECS["exact"] is find("exact") is EXACT
    assert Exact() == EXACT
    assert find("top-k:0.25").name == "top-k:0.25"
    for text, told in {
        "zip": r"^unknown codec 'zip'; known: exact, fp16, bf16, int8, int4, top-k",
        "top-k:0": r"^codec top-k: the share must be above 0 and at most 1, not '0'",
        "top-k:nan": r"not 'nan'",
        "int8:3": r"^codec 'int8' has no option, not '3'",
        "x" * 65: r"^a codec's name of 65 characters; at most 64 are accepted",
    }.items():
        with pytest.raises(PayloadError, match=told):
            find(text)


def test_a_coding_says_what_a_device_must_know() -> None:
    coding = Coding.of("top-k:0.1", "delta:int8")
    assert coding.needs == {"top-k", "int8", "delta"}
    assert coding.words == "delta:int8 down, top-k:0.1 up"
    assert Coding.of("exact", "delta").down is EXACT
    assert Coding.of("exact", "exact").plain
    with pytest.raises(PayloadError, match=r"on the way down use delta:top-k:0.1"):
        Coding.of("exact", "top-k:0.1")


def test_a_codec_is_whatever_has_all_of_its_parts() -> None:
    parts: dict[str, Any] = {
        "name": "x",
        "exact": True,
        "feedback": False,
        "encode": lambda self: None,
        "decode": lambda self: None,
        "payload_bytes": lambda self: None,
    }
    assert isinstance(type("Whole", (), parts)(), Codec)
    for part in parts:
        assert not isinstance(type("Part", (), {key: value for key, value in parts.items() if key != part})(), Codec)


def test_what_inflates_stops_where_its_tensors_end() -> None:
    like = drawn([(300, 7), (), (5,)])
    whole = encode(like)
    packed = zlib.compress(whole)
    assert inflated(packed, like, "zip") == whole
    bomb = zlib.compress(bytes(1 << 26))
    for data in (packed[:-1], bomb, b""):
        with pytest.raises(PayloadError, match="codec zip: payload is cut short, or inflates to more than"):
            inflated(data, like, "zip")
    with pytest.raises(PayloadError, match="codec zip: Error -3"):
        inflated(b"nothing of the kind", like, "zip")
