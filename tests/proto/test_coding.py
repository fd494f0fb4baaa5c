"""Updates on the way up: what the coordinator makes of them, and what they leave out."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diastole.proto.codec import find
from diastole.proto.codecs.packing import Shapes
from diastole.proto.coding import decode_update, decoded, encode_update
from diastole.proto.kept import MOST_KEPT
from diastole.proto.payload import PayloadError
from diastole.proto.residuals import Residuals
from diastole.proto.versions import advance

State = dict[str, Tensor]


def drawn(seed: int, scale: float = 1.0) -> State:
    draws = torch.Generator().manual_seed(seed)
    return {"a": scale * torch.randn(3, 20, generator=draws), "b": scale * torch.randn(7, generator=draws)}


def plus(left: State, right: State) -> State:
    return {name: left[name] + right[name] for name in left}


@pytest.mark.parametrize("name", ["exact", "fp16", "int8", "int4", "top-k:1"])
def test_what_the_way_down_lost_is_not_taken_for_a_change(name: str) -> None:
    sent, lost, change = drawn(0), drawn(1, 0.5), drawn(2, 0.01)
    received = plus(sent, lost)
    data, _ = encode_update(find(name), plus(received, change), received, 3)
    arrived = decode_update(find(name), data, sent, received)
    for key in sent:
        moved = arrived[key] - sent[key]
        step = 0.03 / 7 if name == "int4" else 0.03 / 127
        torch.testing.assert_close(moved, change[key], rtol=0.01, atol=step + 2e-6)


def test_without_any_loss_the_bits_of_the_trained_state_arrive() -> None:
    sent, trained = drawn(0), drawn(1)
    data, _ = encode_update(find("exact"), trained, sent, 3)
    assert all(
        torch.equal(tensor, trained[key]) for key, tensor in decode_update(find("exact"), data, sent, sent).items()
    )


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"a": torch.zeros(3, 20)}, "tensor 'b' is missing"),
        ({"a": torch.zeros(3, 20), "b": torch.zeros(7), "c": torch.zeros(1)}, "tensor 'c' is unknown"),
        (
            {"a": torch.zeros(3, 20), "b": torch.zeros(1)},
            r"tensor 'b' is torch.float32 \[1\]; expected torch.float32 \[7\]",
        ),
    ],
)
def test_an_exact_update_of_other_tensors_is_refused_before_it_is_compared(wrong: State, told: str) -> None:
    data = find("exact").encode(wrong, 0)
    with pytest.raises(PayloadError, match=told):
        decode_update(find("exact"), data, drawn(0), drawn(1))


class Bomb:
    """A codec of somebody else's, which makes of any bytes what it was told to."""

    name, feedback = "bomb", False

    def __init__(self, found: Any, *, exact: bool) -> None:
        self.found, self.exact = found, exact

    def encode(self, state: Mapping[str, Tensor], seed: int) -> bytes:
        return b""

    def decode(self, data: bytes, like: Mapping[str, Tensor]) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def payload_bytes(self, shapes: Shapes, plain: int) -> int:
        return 0


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"a": torch.zeros(()).expand(10**9), "b": torch.zeros(7)}, r"'a' is torch.float32 \[1000000000\]"),
        ({"a": torch.zeros(3, 20, dtype=torch.float64), "b": torch.zeros(7)}, "'a' is torch.float64"),
        ({**drawn(0), "c": torch.zeros(1)}, "tensor 'c' is unknown"),
        ({"a": [0.0], "b": torch.zeros(7)}, "^codec bomb: AttributeError: "),
        (None, "^codec bomb: TypeError: |^codec bomb: AttributeError: "),
        (MemoryError("no room\nfor it"), r"^codec bomb: MemoryError: no room\?for it$"),
        (ValueError("not mine"), "^codec bomb: ValueError: not mine$"),
    ],
)
def test_a_codec_of_another_package_may_make_anything_of_bytes(found: Any, told: str, exact: bool) -> None:
    codec, base = Bomb(found, exact=exact), drawn(0)
    for read in (
        lambda: decode_update(codec, b"x", base, base),
        lambda: decode_update(codec, b"x", base, drawn(1)),
        lambda: advance(codec, b"x", base),
        lambda: decoded(codec, b"x", base),
    ):
        with pytest.raises(PayloadError, match=told) as caught:
            read()
        assert "\n" not in str(caught.value)


@given(share=st.sampled_from([0.05, 0.2, 0.5]), seeds=st.lists(st.integers(0, 100), min_size=1, max_size=6))
def test_what_was_sent_and_what_is_left_are_all_changes_together(share: float, seeds: list[int]) -> None:
    codec, residuals, base = find(f"top-k:{share}"), Residuals(), drawn(0)
    given_, sent = ({key: torch.zeros_like(tensor) for key, tensor in base.items()} for _ in range(2))
    for number, seed in enumerate(seeds):
        trained = plus(base, drawn(seed, 0.1))
        data = residuals.encode(codec, "spec", trained, base, number)
        residuals.taken()
        given_ = plus(given_, {key: trained[key] - base[key] for key in base})
        sent = plus(sent, codec.decode(data, base))
    listed, tensors = residuals.memory()
    left = {key: tensors[f"0 after:{key}"] for key in base}
    for key in base:
        torch.testing.assert_close(sent[key] + left[key], given_[key], rtol=0, atol=1e-5)
    assert listed == [["spec", len(seeds) - 1, True]]


def test_a_residual_waits_for_its_sub_model_and_moves_on_only_if_the_update_was_taken() -> None:
    codec, base = find("top-k:0.1"), drawn(0)

    def update(residuals: Residuals, spec: str, number: int) -> bytes:
        return residuals.encode(codec, spec, plus(base, drawn(number, 0.1)), base, number)

    one, two = Residuals(), Residuals()
    first = update(one, "wide", 1)
    assert update(two, "wide", 1) == first
    one.taken()
    two.taken()
    # The other sub-model knows nothing of it, and leaves it alone.
    assert update(one, "narrow", 2) == update(Residuals(), "narrow", 2)
    one.taken()
    lost = update(one, "wide", 3)
    assert lost != update(Residuals(), "wide", 3)
    # That update was lost: what it held is gone, what it would have left is not added to the next.
    assert update(one, "wide", 4) == update(two, "wide", 4)
    two.taken()
    # A coordinator that lost the update asks for it again.
    assert update(two, "wide", 4) == update(one, "wide", 4)
    for number in range(MOST_KEPT):
        update(two, f"other {number}", number)
        two.taken()
    assert update(two, "wide", 5) == update(Residuals(), "wide", 5)


def test_residuals_that_go_on_with_the_memory_of_others_are_those_others() -> None:
    codec, base, one = find("top-k:0.1"), drawn(0), Residuals()
    for number, spec in enumerate(["a", "b", "a"]):
        one.encode(codec, spec, plus(base, drawn(number)), base, number)
        one.taken()
    other = Residuals.of(*one.memory("x "), "x ")
    for spec, seed in (("a", 2), ("a", 9), ("b", 9)):
        assert one.encode(codec, spec, drawn(3), base, seed) == other.encode(codec, spec, drawn(3), base, seed)
