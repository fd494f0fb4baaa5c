"""How far devices are trusted: what they may count for, and what one of them may say of itself."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripted import MODEL, TRAINING, ScriptedLink, only, reported

from diastole.models.methods.registry import make_method
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.family import initial_state
from diastole.models.state import State
from diastole.models.task import Report, Update
from diastole.models.work import training_work
from diastole.proto.profile import Profile
from diastole.server.admission import AdmissionConfig, most_examples
from diastole.server.coordinator import Coordinator
from diastole.server.events import Event, RoundClosed, UpdateAccepted, UpdateQuarantined
from diastole.server.ledger import Ledger
from diastole.server.link import Failure
from diastole.server.optimisers import ServerOptimiserConfig
from diastole.server.round import Rounds
from diastole.server.settings import RoundConfig, Settings
from diastole.server.snapshot import Snapshot


def obvious(counts: list[int], share: float) -> float:
    """Return the largest bound within a share of what all count for under it, by halving."""
    share = max(share, 2 / len(counts))
    low, high = 0.0, float(max(counts))
    for _ in range(100):
        middle = (low + high) / 2
        if middle <= share * sum(min(count, middle) for count in counts):
            low = middle
        else:
            high = middle
    return low


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=9), st.floats(0.01, 1.0))
def test_nobody_counts_for_more_than_a_share_of_what_all_count_for(counts: list[int], share: float) -> None:
    expected, found = obvious(counts, share), min(most_examples(counts, share), max(counts))
    assert found == pytest.approx(expected, rel=1e-6)


def test_what_one_device_announces_does_not_lift_its_own_bound() -> None:
    honest = [100] * 7
    assert most_examples([*honest, 1 << 23], 0.5) == most_examples([*honest, 1 << 40], 0.5) == 700
    assert most_examples([*honest, 1 << 40], 0.01) == pytest.approx(700 / 3)
    assert most_examples([5], 0.1) == most_examples([5, 1000], 0.1) == math.inf


class Claims(ScriptedLink):
    """One device announces, and counts, eight million examples."""

    def devices(self) -> Mapping[str, Profile]:
        return {name: Profile("test", 1 << 23 if name == "b" else 12) for name in self.names}


def play(link: Any, rounds: int = 1, **admission: Any) -> tuple[Coordinator, list[Event]]:
    events: list[Event] = []
    coordinator = Coordinator(
        Settings(MODEL, TRAINING, RoundConfig(count=rounds), seed=3, admission=AdmissionConfig(**admission)),
        make_method("width", MODEL, [1.0], TRAINING),
        link,
        initial_state(MODEL, 0),
        observers=(events.append,),
    )
    coordinator.run()
    return coordinator, events


def test_a_device_that_claims_millions_of_examples_has_its_share_of_the_mean() -> None:
    claims = lambda u: reported(u, examples=1 << 23) if u.device == "b" else u  # noqa: E731
    bounded, events = play(Claims("abcd", claims))
    assert {e.device: e.examples for e in only(events, UpdateAccepted)} == {"a": 12, "b": 36, "c": 12, "d": 12}
    start = initial_state(MODEL, 0)
    alone, _ = play(ScriptedLink("b"))
    others, _ = play(ScriptedLink("acd"))
    for name, tensor in bounded.state.items():
        expected = (alone.state[name] + others.state[name]) / 2
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)
        assert not torch.equal(tensor, start[name])


@pytest.mark.parametrize("examples", [1 << 23, 1 << 30])
def test_honest_devices_with_many_examples_are_averaged_like_those_with_few(examples: int) -> None:
    """All have as many, so that nobody has more than an equal share."""
    names = "abcdefghijkl"
    method = make_method("width", MODEL, [1.0], TRAINING)

    def rounds(each: int) -> tuple[State, int]:
        state = initial_state(MODEL, 0)
        made = Rounds(Settings(MODEL, TRAINING, RoundConfig(count=1), seed=3), method, state)
        made.prepare(1)
        opened = made.open(1, {name: Profile("test", each) for name in names})
        draws, failures = torch.Generator().manual_seed(0), list[Failure]()
        updates = []
        for task in sorted(opened.tasks, key=lambda task: task.device):
            sent = opened.states[task.spec]
            trained = {n: t + 0.1 * torch.randn(t.shape, generator=draws) for n, t in sent.items()}
            updates.append(Update(task, trained, Report(each, 1.0, 1.0)))
        closed = made.close(opened, made.admit(opened, updates, failures.append), lambda u: None, failures.append)
        assert not failures
        return made.state, closed.updates

    (many, there), (few, _) = rounds(examples), rounds(4)
    assert there == len(names)
    for name, tensor in many.items():
        torch.testing.assert_close(tensor, few[name], rtol=0, atol=1e-7)


def test_more_examples_than_can_be_counted_are_refused_in_one_line() -> None:
    link = Claims("b", lambda u: reported(u, examples=1 << 46))
    link.devices = lambda: {"b": Profile("test", 1 << 50)}  # type: ignore[method-assign]
    _, events = play(link)
    (quarantined,) = only(events, UpdateQuarantined)
    assert "counts 70368744177664 examples; in a cohort of 1, 35184372088832 are accepted" in quarantined.reason


@pytest.mark.parametrize("seconds", [1e308, math.nan, math.inf, -1.0])
def test_seconds_that_make_no_sense_are_quarantined_and_leave_the_planner_and_the_files_alone(seconds: float) -> None:
    spoil = lambda u: reported(u, seconds=seconds) if u.device == "b" else u  # noqa: E731
    coordinator, events = play(ScriptedLink("abc", spoil))
    (quarantined,) = only(events, UpdateQuarantined)
    assert "the seconds at most 1e+08" in quarantined.reason
    account = coordinator.ledger["b"]
    assert (account.seconds, account.quarantined) == (0.0, 1)
    json.dumps([account.seconds, coordinator.snapshot().planner], allow_nan=False)


def test_one_report_cannot_make_the_planner_forget_a_device() -> None:
    method = make_method("width", MODEL, [1.0, 0.5], TRAINING)
    speed = training_work(method.offers()[-1].cost, TRAINING, 12) / 50.0
    now = 0.0

    class Quick(ScriptedLink):
        def devices(self) -> Mapping[str, Profile]:
            return {name: Profile("test", 12, macs_per_second=speed) for name in self.names}

    def spoil(update: Update) -> Update:
        nonlocal now
        now += 10.0
        lies = update.task.round == 1 and update.device == "b"
        return reported(update, seconds=9e7 if lies else 10.0)

    settings = Settings(MODEL, TRAINING, RoundConfig(count=4, deadline=60.0), seed=3)
    link = Quick("ab", spoil)
    Coordinator(settings, method, link, initial_state(MODEL, 0), clock=lambda: now).run()
    # Predicted are 50 of 60 seconds; the report says three years, but the task was out for 20.
    assert [(task.round, task.spec.label) for task in link.tasks if task.device == "b"] == [
        (number, "width 1") for number in (1, 2, 3, 4)
    ]


def nonsense(update: Update) -> Update:
    return replace(update, state={name: torch.full_like(t, torch.nan) for name, t in update.state.items()})


def test_a_run_most_of_whose_updates_are_quarantined_ends_as_failed() -> None:
    coordinator, events = play(ScriptedLink("abc", lambda u: u if u.device == "a" else nonsense(u)), rounds=9)
    assert [closed.abandoned for closed in only(events, RoundClosed)] == [
        "the updates of 2 of 3 devices were quarantined",
        "the updates of 2 of 3 devices were quarantined",
        "the updates of 2 of 3 devices were quarantined, 3 rounds in a row; check the training's settings and the "
        "devices",
    ]
    assert coordinator.failed == coordinator.closed[-1].abandoned
    start = initial_state(MODEL, 0)
    assert all(torch.equal(tensor, start[name]) for name, tensor in coordinator.state.items())


def test_a_model_that_leads_devices_astray_is_taken_back(tmp_path: Path) -> None:
    """One update of round 2 passes and spoils the model; what honest devices make of it in round 3 is no number."""
    kept = list[Snapshot]()
    states = dict[int, Any]()

    def spoil(update: Update) -> Update:
        states.setdefault(update.task.round, coordinator.state)
        if update.task.round == 2 and update.device == "d":
            return replace(update, state={name: torch.full_like(t, 1e4) for name, t in update.state.items()})
        return nonsense(update) if update.task.round == 3 and update.device in "abc" else update

    def make() -> Coordinator:
        settings = Settings(
            MODEL,
            TRAINING,
            RoundConfig(count=5),
            seed=3,
            optimiser=ServerOptimiserConfig("fedavgm"),
            admission=AdmissionConfig(),
        )
        method, link = make_method("fedrolex", MODEL, [0.5], TRAINING), ScriptedLink("abcd", spoil)
        return Coordinator(
            settings, method, link, initial_state(MODEL, 0), observers=(events.append,), keep=kept.append
        )

    events = list[Event]()
    coordinator = make()
    coordinator.run()
    third = only(events, RoundClosed)[2].abandoned
    assert third == (
        "the updates of 3 of 4 devices were quarantined; back to the model before the last round that counted"
    )
    assert all(torch.equal(states[4][name], tensor) for name, tensor in states[2].items())
    assert not all(torch.equal(states[3][name], tensor) for name, tensor in states[2].items())
    assert [bool(closed.abandoned) for closed in coordinator.closed] == [False, False, True, False, False]
    assert coordinator.failed == ""
    # A coordinator that was killed behind the spoilt round goes back as far.
    expected = coordinator
    kept[1].write(tmp_path / "run", "label")
    coordinator = make()
    coordinator.resume(Snapshot.read(tmp_path / "run", lambda label: None))
    coordinator.run()
    assert [bool(closed.abandoned) for closed in coordinator.closed] == [False, False, True, False, False]
    assert all(torch.equal(coordinator.state[name], tensor) for name, tensor in expected.state.items())


def test_a_device_alone_may_have_all_the_weight_and_be_faulty_without_an_alarm() -> None:
    _, events = play(ScriptedLink("a", lambda u: nonsense(u) if u.task.round < 5 else u), rounds=5)
    assert [closed.updates for closed in only(events, RoundClosed)] == [0, 0, 0, 0, 1]


def test_names_that_came_and_brought_nothing_are_forgotten() -> None:
    ledger, profile = Ledger(), Profile("test", 12)
    for number in range(1000):
        ledger.meet({f"stranger-{number}": profile, "a": profile})
        ledger.accept("b", spec_of(1.0), Report(12, 1.0, 0.1), 1)
        ledger.quarantine("c")
    assert sorted(ledger) == ["a", "b", "c", "stranger-999"]
