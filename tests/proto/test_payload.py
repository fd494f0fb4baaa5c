import hashlib
import json
import struct
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import torch as library
from torch import Tensor

from diastole.proto.payload import CHUNK_BYTES, FIRST_CHUNK, Payload, PayloadError, decode, encode
from diastole.proto.tensors import TYPES

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8]


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Equal to the bit, so that a NaN is equal to itself and minus zero is not zero."""
    return left.keys() == right.keys() and all(
        (left[name].dtype, left[name].shape, bits(left[name]))
        == (right[name].dtype, right[name].shape, bits(right[name]))
        for name in left
    )


@st.composite
def states(draw: st.DrawFn) -> dict[str, Tensor]:
    """Any bits at all as tensors of 0 to 4 axes, some of them empty."""
    names = draw(st.lists(st.text(max_size=8), max_size=4, unique=True))
    state = {}
    for name in names:
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 3), max_size=4))
        size = torch.Size(shape).numel() * dtype.itemsize
        raw = bytearray(draw(st.binary(min_size=size, max_size=size)))
        flat = torch.frombuffer(raw, dtype=dtype) if size else torch.empty(0, dtype=dtype)
        state[name] = flat.reshape(shape)
    return state


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


# Round trip


@given(states())
@settings(deadline=None, max_examples=100)
def test_tensors_come_back_to_the_bit(state: dict[str, Tensor]) -> None:
    data = encode(state)
    assert data == library.save({name: tensor.contiguous() for name, tensor in state.items()})
    assert same(decode(data), state)
    assert same(decode(memoryview(bytearray(data))), state)


def test_types_lie_in_the_order_of_the_library() -> None:
    state = {f"{len(TYPES) - rank:02}": torch.ones(rank, dtype=dtype) for rank, dtype in enumerate(TYPES.values())}
    assert encode(state) == library.save(state)
    assert same(decode(memoryview(bytearray(encode(state)))), state)


def test_tensors_of_a_view_share_its_memory() -> None:
    data = bytearray(encode({"w": torch.zeros(3), "half": torch.zeros(1, dtype=torch.float16)}))
    tensors = decode(memoryview(data))
    data[-2:], data[-6:-2] = struct.pack("<e", 2.0), struct.pack("<f", 3.0)
    assert (tensors["w"].tolist(), tensors["half"].tolist()) == ([0.0, 0.0, 3.0], [2.0])


def test_nan_payloads_infinities_and_minus_zero_survive() -> None:
    patterns = torch.tensor([0x7FC00001, 0x7F800001, -1, 0x7F800000, -(2**23), -(2**31), 1], dtype=torch.int32)
    state = {"w": patterns.view(torch.float32), "s": torch.tensor(float("nan"))}
    back = decode(encode(state))
    assert back["w"].view(torch.int32).tolist() == patterns.tolist()
    assert back["s"].shape == ()


@given(states())
@settings(deadline=None, max_examples=50)
def test_equal_tensors_are_equal_bytes_in_any_order_and_layout(state: dict[str, Tensor]) -> None:
    again = {name: tensor.clone() for name, tensor in reversed(state.items())}
    assert encode(again) == encode(state)
    assert encode(
        {name: tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor for name, tensor in state.items()}
    ) == (encode(state))


def test_a_parameter_is_encoded_as_its_values() -> None:
    parameter = torch.nn.Parameter(torch.arange(3.0))
    back = decode(encode({"w": parameter}))
    assert back["w"].tolist() == [0.0, 1.0, 2.0]
    assert not back["w"].requires_grad


def test_one_other_bit_is_another_digest() -> None:
    zero, minus = (Payload.of(encode({"w": torch.tensor([value])})) for value in (0.0, -0.0))
    assert zero.sha256 != minus.sha256


def test_decoded_tensors_may_be_written_and_share_nothing() -> None:
    data = encode({"w": torch.zeros(3)})
    one = decode(data)
    one["w"].fill_(7.0)
    assert decode(data)["w"].tolist() == [0.0, 0.0, 0.0]


# Malformed bytes

VALID = encode({"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5), "c": torch.zeros(0, 2)})


def check(data: bytes) -> None:
    """Decode whatever it is: tensors or a `PayloadError` of one line, and nothing else, and from a view the same."""
    found, messages = [], [""]
    for each in (data, memoryview(bytearray(data))):
        try:
            found.append(decode(each))
        except PayloadError as error:
            messages.append(str(error))
            found.append({"refused": torch.zeros(0)})
    assert all(len(message.splitlines()) <= 1 for message in messages)
    assert same(*found)


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
def test_random_bytes_are_refused(data: bytes) -> None:
    check(data)


@given(st.binary(max_size=120), st.binary(max_size=16))
@settings(deadline=None, max_examples=200)
def test_random_headers_are_refused(header: bytes, data: bytes) -> None:
    check(safetensors(header, data))


tensor_info = st.fixed_dictionaries(
    {
        "dtype": st.one_of(
            st.sampled_from(["F32", "F64", "BOOL", "U64", "F4", "C64", "F8_E5M2", "f32", ""]), st.text()
        ),
        "shape": st.lists(st.integers(-1, 3) | st.integers(2**31, 2**64), max_size=4),
        "data_offsets": st.lists(st.integers(-1, 16) | st.just(2**63), min_size=1, max_size=3),
    }
)


@given(st.dictionaries(st.text(max_size=4), tensor_info, max_size=2), st.binary(max_size=16))
@settings(deadline=None, max_examples=300)
def test_headers_that_lie_are_refused(header: dict[str, object], data: bytes) -> None:
    check(safetensors(header, data))


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=300)
def test_mutated_payloads_are_tensors_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(VALID)
    for position, value in changes:
        data[position] = value
    check(bytes(data))


@pytest.mark.parametrize("length", range(len(VALID)))
def test_truncated_payloads_are_refused(length: int) -> None:
    for data in (VALID[:length], memoryview(bytearray(VALID[:length]))):
        with pytest.raises(PayloadError, match=f"payload of {length} bytes"):
            decode(data)


def test_bytes_behind_the_end_are_refused() -> None:
    for data in (VALID + b"\0", memoryview(bytearray(VALID + b"\0"))):
        with pytest.raises(PayloadError):
            decode(data)


@pytest.mark.parametrize("shape", [[0, 2**63], [0, 2**64 - 1], [0, 2**62, 2**62]])
def test_an_empty_tensor_of_impossible_shape_is_refused(shape: list[int]) -> None:
    data = safetensors({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}})
    for each in (data, memoryview(bytearray(data))):
        with pytest.raises(PayloadError):
            decode(each)


@pytest.mark.parametrize(("dtype", "size"), [("F4", 4), ("F6_E2M3", 6)])
def test_numbers_smaller_than_a_byte_are_refused(dtype: str, size: int) -> None:
    with pytest.raises(PayloadError):
        decode(safetensors({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, size]}}, bytes(size)))


def test_a_refusal_is_one_line_even_if_the_payload_is_not() -> None:
    info = {"dtype": "F\n32", "shape": [1], "data_offsets": [0, 4]}
    with pytest.raises(PayloadError) as caught:
        decode(safetensors({"a": info}, b"\0" * 4))
    assert len(str(caught.value).splitlines()) == 1


def test_pickles_are_not_tensors(tmp_path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "state.pt")
    with pytest.raises(PayloadError):
        decode((tmp_path / "state.pt").read_bytes())


# Digests and chunks


@given(st.binary(max_size=100))
@settings(deadline=None, max_examples=50)
def test_a_payload_is_named_by_its_digest_and_size(data: bytes) -> None:
    payload = Payload.of(data)
    assert payload.sha256 == hashlib.sha256(data).hexdigest()
    ref = payload.ref()
    assert (ref.sha256, ref.size) == (payload.sha256, len(data))


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 7])
def test_chunks_from_any_offset_put_together_are_the_rest(size: int) -> None:
    data = torch.arange(size // 8 + 1).numpy().tobytes()[:size]
    payload = Payload.of(data)
    for offset in {0, 1, size // 2, CHUNK_BYTES - 1, CHUNK_BYTES, size - 1, size}:
        if 0 <= offset <= size:
            chunks = list(payload.chunks(offset))
            assert b"".join(chunks) == data[offset:]
            assert all(1 <= len(chunk) <= CHUNK_BYTES for chunk in chunks)
    assert list(payload.chunks(size + 1)) == []


def test_chunks_grow_while_they_go_out_quickly_and_shrink_when_they_do_not() -> None:
    # Two readings of the clock a chunk; a first dozen is quick, half a dozen is slow, and the rest is neither.
    took = [0.1] * 11 + [2.0] * 6 + [0.5] * 1000
    readings = chain.from_iterable((0.0, seconds) for seconds in took)
    sizes = [len(chunk) for chunk in Payload.of(bytes(12 * CHUNK_BYTES)).chunks(clock=readings.__next__)]
    grown = [FIRST_CHUNK << k for k in range(6)]
    assert sizes[:6] == grown
    assert sizes[5:12] == [CHUNK_BYTES] * 7
    assert sizes[12:17] == [*reversed(grown[:-1])]
    assert set(sizes[17:]) == {FIRST_CHUNK}
