"""Rows of a stack are checked and folded together, and come to the bits that they come to one by one."""

import pytest
import torch

from diastole.models import accumulator
from diastole.models.accumulator import Accumulator
from diastole.models.coordinates import Contribution, Region, Scalars, Slot, Slots
from diastole.models.errors import StateError
from diastole.models.rows import RowPatches, Stack, patches
from diastole.models.state import State

REFERENCE = {"conv.weight": (6, 4, 3), "conv.bias": (6,), "scale": (), "head": (5, 7), "bands": (6, 4)}
SLOTS: Slots = {
    "small.weight": Slot("conv.weight", Region.prefix((4, 2, 3))),
    "small.bias": Slot("conv.bias", Region((torch.tensor([4, 0, 2]),))),
    "scale": Slot("scale", Region(())),
    "head": Slot("head", Scalars(torch.tensor([3, 33, 8, 21]))),
    "bands[0]": Slot("bands", Region((slice(0, 2), slice(0, 1)))),
    "bands[1]": Slot("bands", Region((torch.tensor([2, 4, 5]), torch.tensor([2, 0, 1])))),
}


def reference(draws: torch.Generator) -> State:
    return {name: torch.randn(shape, generator=draws) for name, shape in REFERENCE.items()}


def stack(state: State, rows: int, draws: torch.Generator, scale: float = 1.0) -> Stack:
    sent = {name: slot.region.take(state[slot.source]) for name, slot in SLOTS.items()}
    return Stack.of(
        {name: tensor + scale * torch.randn(rows, *tensor.shape, generator=draws) for name, tensor in sent.items()},
        sent,
    )[0]


def plain(contribution: Contribution) -> Contribution:
    return dict(contribution)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 3e3])
def test_rows_are_folded_to_the_same_bits_as_one_by_one(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.Generator().manual_seed(1)
    state = reference(draws)
    first, second = stack(state, 7, draws, scale), stack(state, 3, draws, scale)
    together, apart, after = Accumulator(state), Accumulator(state), Accumulator(state)
    given = [*first.rows()[1:], *second.rows(), first.rows()[0]]
    for number, row in enumerate(given):
        # Some heavy weights, so that sums of float64 would not be exact.
        weight = 3.7 + 1e6 * (number % 2)
        found = patches(row, SLOTS)
        assert isinstance(found, RowPatches)
        together.fold(found, weight)
        apart.fold(plain(found), weight)
        after.fold(found if number % 3 else plain(found), weight)
        if number == 4:
            monkeypatch.setattr(accumulator, "ROWS", 30)
    assert together.count == apart.count == len(given)
    (ours, ours_there), (theirs, theirs_there), (mixed, _) = together.mean(), apart.mean(), after.mean()
    for name in state:
        assert torch.equal(ours[name], theirs[name])
        assert torch.equal(mixed[name], theirs[name])
        assert torch.equal(ours_there[name], theirs_there[name])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e6])
def test_a_row_that_cannot_be_folded_is_refused_alone(bad: float) -> None:
    draws = torch.Generator().manual_seed(1)
    state = reference(draws)
    whole = stack(state, 4, draws)
    whole.tensors["small.weight"][2, 0, 0, 0] = bad
    spoiled, _ = Stack.of(whole.tensors, whole.sent)
    together, apart = Accumulator(state), Accumulator(state)
    for number, row in enumerate(spoiled.rows()):
        if number == 2:
            with pytest.raises(StateError, match=r"conv\.weight.* away"):
                together.fold(patches(row, SLOTS), 2.0)
            continue
        together.fold(patches(row, SLOTS), 2.0)
        apart.fold(plain(patches(row, SLOTS)), 2.0)
    assert together.count == 3
    assert all(torch.equal(tensor, apart.mean()[0][name]) for name, tensor in together.mean()[0].items())
    with pytest.raises(StateError, match="weight"):
        together.fold(patches(spoiled.rows()[0], SLOTS), 2.0**26)


def test_moves_are_those_of_each_row() -> None:
    draws = torch.Generator().manual_seed(1)
    state = reference(draws)
    rows = stack(state, 3, draws)
    moves = rows.moves
    for number, row in enumerate(rows.rows()):
        away = torch.cat(
            [(tensor - SLOTS[name].region.take(state[SLOTS[name].source])).flatten() for name, tensor in row.items()]
        )
        assert moves.farthest[number] == float(away.abs().max())
        assert moves.lengths[number] == pytest.approx(float(away.double().square().mean().sqrt()), rel=1e-9)
        assert RowPatches(row, SLOTS).moved == (moves.farthest[number], moves.lengths[number])
    sent = rows.sent
    assert rows.alike(sent)
    assert not rows.alike({name: sent[name] for name in list(sent)[1:]})
    assert not rows.alike({**sent, "scale": sent["scale"].double()})


def test_a_part_of_a_sub_model_and_a_plain_state_contribute_what_they_have() -> None:
    draws = torch.Generator().manual_seed(1)
    row = stack(reference(draws), 2, draws).rows()[1]
    part = {name: row[name] for name in ("scale", "head")}
    assert not isinstance(patches(part, SLOTS), RowPatches)
    assert patches(part, SLOTS).keys() == {"scale", "head"}
    whole = patches(row, SLOTS)
    assert whole.keys() == REFERENCE.keys()
    single = {name: slot for name, slot in SLOTS.items() if slot.source != "bands"}
    assert all(torch.equal(whole[slot.source].values, row[name]) for name, slot in single.items())
    for some, there in (
        (whole, ["bands[0]", "bands[1]"]),
        (patches({"bands[1]": row["bands[1]"]}, SLOTS), ["bands[1]"]),
    ):
        found, expected = torch.full((6, 4), torch.nan), torch.full((6, 4), torch.nan)
        some["bands"].region.put_(found, some["bands"].values)
        for name in there:
            rows, columns = (
                axis.tolist() if isinstance(axis, torch.Tensor) else list(range(axis.start, axis.stop))
                for axis in SLOTS[name].region.axes
            )
            for i, line in zip(rows, row[name].tolist(), strict=True):
                for j, value in zip(columns, line, strict=True):
                    expected[i, j] = value
        assert torch.equal(found.nan_to_num(99.0), expected.nan_to_num(99.0))
        assert torch.equal(some["bands"].region.view(expected), some["bands"].values)
