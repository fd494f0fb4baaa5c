"""Norm bounds: honest updates are left alone to the bit, long ones are shortened, absurd ones are refused."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scripted import MODEL, TRAINING, ScriptedLink, only

from diastole.models.coordinates import Patch, Region, full_region
from diastole.models.errors import StateError
from diastole.models.methods.registry import make_method
from diastole.models.networks.family import initial_state
from diastole.models.state import State
from diastole.models.task import Report, Update
from diastole.server.admission import AdmissionConfig
from diastole.server.coordinator import Coordinator
from diastole.server.events import Event, UpdateQuarantined
from diastole.server.opened import Opened
from diastole.server.robust.norms import Norms, change, magnitude, shortened
from diastole.server.settings import RoundConfig, Settings
from diastole.server.trust import Trust

STATE: State = {"a": torch.randn(5, 3), "b": torch.randn(4)}


def test_the_norm_is_over_what_an_update_speaks_for() -> None:
    part = Region((slice(0, 2), slice(0, 3)))
    moved = {"a": Patch(part, part.take(STATE["a"]) + 2.0), "b": Patch(full_region(STATE["b"]), STATE["b"] - 1.0)}
    assert change(moved, STATE) == pytest.approx(math.sqrt((6 * 4.0 + 4 * 1.0) / 10), rel=1e-6)
    assert change({}, STATE) == 0.0
    values = torch.cat([tensor.flatten() for tensor in STATE.values()])
    assert magnitude(STATE) == pytest.approx(values.square().mean().sqrt().item(), rel=1e-6)
    assert change(shortened(moved, STATE, 0.25), STATE) == pytest.approx(change(moved, STATE) / 4, rel=1e-6)


def test_the_bound_is_a_multiple_of_the_median_of_the_round_or_of_past_rounds() -> None:
    norms = Norms(4.0, [1.0, 2.0, 3.0], math.inf)
    assert norms.near("a", 8.0)
    assert not norms.near("b", 8.1)
    # The highest of the medians: rounds may become longer, and an update is shortened only if all of them are passed.
    assert norms.share("b") == 1.0
    for name in "cdef":
        norms.near(name, 1.0)
    assert norms.median() == 1.0
    norms.near("g", 24.0)
    assert norms.share("g") == 0.5
    for name in "ijk":
        norms.near(name, 1.0)
    norms.near("h", 121.0)
    with pytest.raises(StateError, match=r"by 121 \(root mean square\), 121 times the median; up to 40 times"):
        norms.share("h")


def test_before_there_is_a_past_only_what_exceeds_the_weights_waits_for_the_others() -> None:
    norms = Norms(10.0, [], 0.5)
    assert [norms.near(name, norm) for name, norm in (("a", 0.4), ("b", 0.6), ("c", 0.4))] == [True, False, True]
    assert norms.share("b") == 1.0
    with pytest.raises(StateError, match="more than can be counted"):
        norms.near("d", math.inf)


def play(spoil: Any = lambda update: update, names: str = "abcd", **admission: Any) -> tuple[State, list[Event]]:
    events: list[Event] = []
    coordinator = Coordinator(
        Settings(MODEL, TRAINING, RoundConfig(count=2), seed=3, admission=AdmissionConfig(**admission)),
        make_method("width", MODEL, [1.0, 0.5], TRAINING),
        ScriptedLink(names, spoil, reverse=names[0] > names[-1]),
        initial_state(MODEL, 0),
        observers=(events.append,),
    )
    coordinator.run()
    return coordinator.state, events


def longer(times: float) -> Any:
    start = initial_state(MODEL, 0)

    def spoil(update: Update) -> Update:
        if update.device != "d" or update.task.round > 1:
            return update
        state = {name: start[name] + times * (tensor - start[name]) for name, tensor in update.state.items()}
        return replace(update, state=state)

    return spoil


def same(one: State, other: State) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("spoil", [longer(1.0), longer(5.0)])
def test_honest_updates_are_folded_as_without_a_bound_to_the_bit(spoil: Any) -> None:
    assert same(play(spoil)[0], play(spoil, norm=0.0)[0])


def test_an_update_that_is_much_longer_than_the_others_is_shortened_in_any_order() -> None:
    bounded, events = play(longer(90.0))
    assert not only(events, UpdateQuarantined)
    assert same(bounded, play(longer(90.0), "dcba")[0])
    free, tame = play(longer(90.0), norm=0.0)[0], play()[0]
    far = lambda state: sum((state[name] - tame[name]).square().sum().item() for name in tame)  # noqa: E731
    assert far(bounded) < far(free) / 25


def test_an_update_that_is_longer_by_far_is_quarantined_and_counts_for_nothing() -> None:
    bounded, events = play(longer(500.0))
    (quarantined,) = only(events, UpdateQuarantined)
    assert quarantined.device == "d"
    assert "times the median; up to 100 times is shortened" in quarantined.reason
    without, _ = play(lambda update: None if update.device == "d" and update.task.round == 1 else update)
    assert same(bounded, without)


@pytest.mark.parametrize("fold", ["trimmed-mean", "median", "multi-krum"])
def test_a_run_folds_as_it_is_told_and_one_liar_moves_it_no_further_than_the_honest(fold: str) -> None:
    honest, lied = play(fold=fold)[0], play(longer(-60.0), fold=fold)[0]
    mean = play(longer(-60.0))[0]
    far = lambda state: sum((state[name] - honest[name]).square().sum().item() for name in honest)  # noqa: E731
    assert far(lied) < far(mean) / 10


def weighed(
    *norms: tuple[str, float, int], most: float = 10.0, past: tuple[float, ...] = (), highest: float = 0.0
) -> str:
    found = Norms(most, past, 0.0, highest)
    for device, norm, _ in norms:
        found.near(device, norm)
    return found.outweighing({device: Report(count, 1.0, 1.0) for device, _, count in norms})


HONEST = tuple((f"d{k}", 1.0 + k / 10, 10) for k in range(7))


def test_one_that_is_long_and_weighs_much_is_told() -> None:
    # Shortened to 10 times the median of 1.4 and 8: 14 of 14 + 9.1.
    assert "x: its update is 10 times as long as the median, and weighs 61%" in weighed(*HONEST, ("x", 80.0, 10))
    # The same by examples: 5 times 40 of 200 + 91.
    assert "x: its update is 3.6 times as long as the median, and weighs 69%" in weighed(*HONEST, ("x", 5.0, 40))


@pytest.mark.parametrize(
    "norms",
    [
        HONEST,
        # Many examples alone are no harm, nor is an update that is long but not decisive.
        (*HONEST, ("x", 3.9, 1000)),
        (*HONEST, ("x", 5.0, 5)),
        # Of two nobody knows which is long.
        (("a", 1.0, 10), ("x", 9.0, 10)),
        (),
    ],
)
def test_honest_rounds_are_told_nothing_of(norms: tuple[tuple[str, float, int], ...]) -> None:
    assert weighed(*norms) == ""


def test_late_in_a_run_one_that_still_learns_is_not_told_and_one_that_means_harm_is() -> None:
    """Lengths of a run of demo, whose median was 0.0687 in its first round."""
    late = tuple((f"d{k}", 0.017, 200) for k in range(7))
    assert weighed(*late, ("x", 0.0752, 194), highest=0.0687) == ""
    assert "x: its update is 10 times" in weighed(*late, ("x", 0.9, 62), highest=0.0687)
    # Where honest updates have been no longer, the same is told.
    assert "x: its update is 4.4 times" in weighed(*late, ("x", 0.0752, 194), highest=0.02)


def test_the_longest_median_of_a_run_is_kept() -> None:
    trust = Trust(AdmissionConfig())
    for median in (1.0, 3.0, 2.0):
        norms = Norms(10.0, trust.norms, 0.0, trust.highest)
        norms.near("a", median)
        trust.count(Opened(1, [], {}, {}), norms)
    other = Trust(AdmissionConfig())
    other.resume(trust.memory())
    assert other.highest == trust.highest == 3.0


def test_what_was_refused_outweighs_nobody() -> None:
    found = Norms(10.0, (), 0.0)
    for device, norm, _ in (*HONEST, ("x", 80.0, 10)):
        found.near(device, norm)
    assert found.outweighing({device: Report(count, 1.0, 1.0) for device, _, count in HONEST}) == ""
