import math

import pytest
import torch
from torch import nn

from diastole.models.errors import StateError
from diastole.models.state import State, check_state, schema_hash, state_of, tensor_bytes


def example() -> State:
    return {"a": torch.zeros(2, 3), "b": torch.ones(()), "c": torch.zeros(0, 4)}


def test_state_of_is_a_detached_copy() -> None:
    module = nn.Linear(3, 2)
    state = state_of(module)
    assert set(state) == {"weight", "bias"}
    assert not any(tensor.requires_grad for tensor in state.values())
    kept = state["weight"].clone()
    assert torch.equal(kept, module.weight)
    with torch.no_grad():
        module.weight.fill_(5.0)
    assert torch.equal(state["weight"], kept)


def test_running_statistics_are_refused_by_name() -> None:
    with pytest.raises(StateError, match=r"Sequential has running statistics \('1'\)"):
        state_of(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def test_buffers_that_are_constants_are_no_part_of_the_state() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    module[0].register_buffer("positions", torch.arange(2))
    assert set(state_of(module)) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_the_schema_is_names_shapes_and_dtypes_and_nothing_else() -> None:
    base = schema_hash(example())
    assert len(base) == 64
    assert schema_hash(dict(reversed(example().items()))) == base
    assert schema_hash({name: tensor + 1 for name, tensor in example().items()}) == base
    with torch.device("meta"):
        assert schema_hash(example()) == base
    others = [
        example() | {"d": torch.zeros(1)},
        {name: tensor for name, tensor in example().items() if name != "b"},
        {"x" if name == "a" else name: tensor for name, tensor in example().items()},
        example() | {"a": torch.zeros(3, 2)},
        example() | {"a": torch.zeros(6)},
        example() | {"b": torch.ones(1)},
        example() | {"a": torch.zeros(2, 3, dtype=torch.float64)},
    ]
    assert len({base, *map(schema_hash, others)}) == 1 + len(others)


def test_a_state_like_the_expected_passes() -> None:
    check_state({name: tensor + 5 for name, tensor in example().items()}, example())
    with torch.device("meta"):
        expected = example()
    check_state(example(), expected)


def test_finite_values_whose_sum_overflows_are_accepted() -> None:
    largest = torch.full((9,), torch.finfo(torch.float32).max)
    check_state({"a": largest}, {"a": largest})
    with pytest.raises(StateError, match="'a' has values that are not finite"):
        check_state({"a": largest.index_fill(0, torch.tensor([4]), math.nan)}, {"a": largest})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"a": None}, "'a' is missing"),
        ({"z": torch.zeros(1)}, "'z' is unknown; expected a, b, c"),
        ({"a": torch.zeros(3, 2)}, r"'a' is torch.float32 \[3, 2\]; expected torch.float32 \[2, 3\]"),
        ({"a": torch.zeros(2, 3, 1)}, r"'a' is .*\[2, 3, 1\]"),
        ({"b": torch.ones(1)}, r"'b' is torch.float32 \[1\]; expected torch.float32 \[\]"),
        ({"a": torch.zeros(2, 3).half()}, "'a' is torch.float16"),
        ({"a": torch.zeros(2, 3).long()}, "'a' is torch.int64"),
        ({"b": torch.tensor(math.nan)}, "'b' has values that are not finite"),
        ({"b": torch.tensor(math.inf)}, "'b' has values that are not finite"),
        ({"a": torch.tensor([[0, 0, 0], [0, 0, -math.inf]])}, "'a' has values that are not finite"),
    ],
)
def test_what_is_wrong_is_named(changes: State, words: str) -> None:
    state = {name: tensor for name, tensor in (example() | changes).items() if tensor is not None}
    with pytest.raises(StateError, match=words):
        check_state(state, example())


def test_bytes_of_values() -> None:
    assert tensor_bytes({"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.float16)}) == 26
    assert tensor_bytes({}) == 0
