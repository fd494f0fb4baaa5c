"""FedRolex: windows of channels, against plain loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diastole.models.coordinates import covered
from diastole.models.methods.widths.fedrolex import FedRolexMethod, window
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.state import State
from diastole.models.training import TrainConfig

CNN = ModelConfig("cnn", (2, 9, 8), classes=3, widths=(8, 12), group=2)
RESNET = ModelConfig("resnet", (3, 8, 8), classes=3, widths=(4, 8), blocks=(2, 1), group=2)
TRAINING = TrainConfig(batch_size=4)
WIDTHS = (0.25, 0.5, 1.0)


def prepared(model: ModelConfig, state: State, number: int) -> FedRolexMethod:
    method = FedRolexMethod(model, WIDTHS, TRAINING)
    for each in range(1, number + 1):
        method.prepare(state, None, Moment(each, 50))
    return method


@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 40), st.data())
def test_a_window_is_consecutive_groups_on_a_ring(group: int, groups: int, offset: int, data) -> None:
    kept = data.draw(st.integers(1, groups))
    expected = []
    for place in range(kept):
        first = (offset + place) % groups * group
        expected += list(range(first, first + group))
    assert window(groups * group, kept * group, offset, group).tolist() == expected


def test_a_cnn_is_cut_out_as_plain_loops_would(random_state) -> None:
    state = random_state(CNN)
    first, second = state["stages.0.0.weight"], state["stages.1.0.weight"]
    for number in (1, 3, 4, 9):
        method = prepared(CNN, state, number)
        small = method.compress(method.offers()[1].spec)
        # Half of 4 and of 6 groups of two channels, from group number `number - 1` on.
        ones = [2 * ((number - 1 + k) % 4) + i for k in range(2) for i in range(2)]
        twos = [2 * ((number - 1 + k) % 6) + i for k in range(3) for i in range(2)]
        assert torch.equal(small["stages.0.0.weight"], torch.stack([first[o] for o in ones]))
        assert torch.equal(small["stages.0.1.bias"], torch.stack([state["stages.0.1.bias"][o] for o in ones]))
        rows = torch.stack([torch.stack([second[o, i] for i in ones]) for o in twos])
        assert torch.equal(small["stages.1.0.weight"], rows)
        # Every channel of the last map has 2 x 2 positions in the classifier's rows.
        columns = [4 * o + position for o in twos for position in range(4)]
        assert torch.equal(small["classifier.weight"], state["classifier.weight"][:, columns])
        assert torch.equal(small["classifier.bias"], state["classifier.bias"])


def test_all_that_adds_to_a_residual_stream_shares_its_window(random_state) -> None:
    state, number = random_state(RESNET), 4
    method = prepared(RESNET, state, number)
    small = method.compress(method.offers()[1].spec)
    # The stream of the first stage has 2 groups and the one of the second 4, and half of them are kept.
    one = [2, 3]
    two = [2 * ((number - 1 + k) % 4) + i for k in range(2) for i in range(2)]
    for name in ("norm", "stages.0.0.norm2", "stages.0.1.norm2"):
        assert torch.equal(small[f"{name}.weight"], state[f"{name}.weight"][one])
    for name in ("stages.1.0.norm2", "stages.1.0.shortcut.1"):
        assert torch.equal(small[f"{name}.weight"], state[f"{name}.weight"][two])
    shortcut = state["stages.1.0.shortcut.0.weight"]
    assert torch.equal(small["stages.1.0.shortcut.0.weight"], shortcut[two][:, one])
    assert torch.equal(small["classifier.weight"], state["classifier.weight"][:, two])


@pytest.mark.parametrize("model", [CNN, RESNET], ids=["cnn", "resnet"])
def test_a_full_turn_covers_every_channel_equally_often(model: ModelConfig, random_state) -> None:
    state = random_state(model)
    method = FedRolexMethod(model, WIDTHS, TRAINING)
    turn = 12  # A multiple of the groups of every set: 2, 4 and 6.
    for size in method.offers():
        times = {name: torch.zeros(tensor.shape, dtype=torch.int64) for name, tensor in state.items()}
        for number in range(1, turn + 1):
            method.prepare(state, None, Moment(number, turn))
            contribution = method.dilate(method.compress(size.spec), size.spec)
            for name, mask in covered(contribution, state).items():
                times[name] += mask
        for name, count in times.items():
            shape = method.compress(size.spec)[name].shape
            if count.dim() == 1:
                assert (count == turn * shape[0] // count.shape[0]).all()


def test_weights_between_opposite_sides_of_equal_rings_are_left_to_larger_sizes() -> None:
    model = ModelConfig("cnn", (1, 4, 4), classes=2, widths=(8, 8), group=2)
    method = FedRolexMethod(model, (0.5, 0.75), TRAINING)
    state = method.initial(0)
    for size, reached in zip(method.offers(), (1, 2), strict=True):
        seen = torch.zeros(8, 8, dtype=torch.bool)
        for number in range(1, 5):
            method.prepare(state, None, Moment(number, 4))
            contribution = method.dilate(method.compress(size.spec), size.spec)
            seen |= covered(contribution, state)["stages.1.0.weight"][:, :, 0, 0]
        for outer in range(8):
            for inner in range(8):
                apart = abs(outer // 2 - inner // 2)
                assert seen[outer, inner] == (min(apart, 4 - apart) <= reached)


@pytest.mark.parametrize("number", [1, 7])
def test_the_whole_model_is_everything_in_its_own_order(random_state, number: int) -> None:
    state = random_state(CNN)
    method = prepared(CNN, state, number)
    for spec in (method.whole, method.offers()[-1].spec):
        whole = method.compress(spec)
        assert all(torch.equal(whole[name], tensor) for name, tensor in state.items())


def test_a_run_that_goes_on_after_an_abandoned_round_has_the_same_windows(random_state) -> None:
    state = random_state(CNN)
    # Round 5 was abandoned, so nothing was prepared for round 6, which goes on with what was.
    first, resumed = prepared(CNN, state, 5), FedRolexMethod(CNN, WIDTHS, TRAINING)
    resumed.resume(state, None, Moment(6, 50), first.memory())
    for size in first.offers():
        sent, expected = resumed.compress(size.spec), first.compress(size.spec)
        assert all(torch.equal(sent[name], expected[name]) for name in expected)


def test_an_abandoned_round_makes_the_windows_pass_over_no_place(random_state) -> None:
    state = random_state(CNN)
    plain, disturbed = (FedRolexMethod(CNN, WIDTHS, TRAINING) for _ in range(2))
    spec, resumed = plain.offers()[0].spec, FedRolexMethod(CNN, WIDTHS, TRAINING)
    # Rounds 2 and 4 of the other run were abandoned, and it was killed behind round 4.
    for counted, number in ((1, 1), (2, 2), (3, 4), (4, 6), (5, 7)):
        if number == 6:
            resumed.resume(state, None, Moment(5, 50), disturbed.memory())
            disturbed = resumed
        plain.prepare(state, None, Moment(counted, 50))
        disturbed.prepare(state, None, Moment(number, 50))
        found, expected = disturbed.compress(spec), plain.compress(spec)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
