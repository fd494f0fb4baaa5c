"""Devices that offend again and again are kept out, for longer each time; an operator may do the same by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted import MODEL, TRAINING, ScriptedLink, examples, only

from diastole.models.methods.registry import make_method
from diastole.models.networks.family import initial_state
from diastole.models.seeds import generator
from diastole.models.task import Update
from diastole.proto.profile import Profile
from diastole.server.admission import AdmissionConfig
from diastole.server.coordinator import Coordinator
from diastole.server.events import RoundClosed, RoundStarted, UpdateQuarantined
from diastole.server.settings import RoundConfig, Settings
from diastole.server.store.decisions import Decisions
from diastole.server.store.memory import MemoryStore
from diastole.server.store.sql import SqlStore
from diastole.server.store.store import Store
from diastole.server.suspensions import Suspension, Suspensions

NAMES = ("a", "b", "c", "d")


def coordinator(link: ScriptedLink, rounds: int, events: list[Any], **admission: Any) -> Coordinator:
    return Coordinator(
        Settings(MODEL, TRAINING, RoundConfig(count=rounds), seed=3, admission=AdmissionConfig(**admission)),
        make_method("width", MODEL, [1.0], TRAINING),
        link,
        initial_state(MODEL, 0),
        test=examples(10, 3),
        observers=(events.append,),
    )


def poison(update: Update) -> Update:
    """Let device b send what is no number."""
    if update.device == "b":
        next(iter(update.state.values())).view(-1)[0] = math.nan
    return update


def asked(events: list[Any]) -> list[str]:
    return ["".join(sorted(event.specs)) for event in only(events, RoundStarted)]


def test_a_device_that_offends_again_and_again_is_left_out_for_longer_each_time() -> None:
    events: list[Any] = []
    run = coordinator(ScriptedLink(NAMES, poison), 14, events, offences=2, suspension=2)
    run.run()
    out, there = ["acd"], ["abcd"]
    assert asked(events) == there * 2 + out * 2 + there * 2 + out * 4 + there * 2 + out * 2
    assert len(only(events, UpdateQuarantined)) == 6
    warnings = {closed.round: closed.warnings for closed in only(events, RoundClosed) if closed.warnings}
    assert warnings == {
        number: (f"b: it is suspended until round {until}: its last 2 updates were quarantined",)
        for number, until in ((2, 5), (6, 11), (12, 21))
    }
    assert "suspended until round 21" in run.planner.why_not("b", Profile("test", 12), run.sizes[0])
    assert not run.planner.able("b", Profile("test", 12))
    assert run.planner.able("a", Profile("test", 12))


def test_a_new_process_goes_on_with_the_suspensions_and_ends_with_the_same_bits() -> None:
    whole: list[Any] = []
    expected = coordinator(ScriptedLink(NAMES, poison), 8, whole, offences=2, suspension=3)
    expected.run()
    first: list[Any] = []
    run = coordinator(ScriptedLink(NAMES, poison), 3, first, offences=2, suspension=3)
    run.run()
    second: list[Any] = []
    again = coordinator(ScriptedLink(NAMES, poison), 8, second, offences=2, suspension=3)
    again.resume(run.snapshot())
    again.run()
    assert asked(first) + asked(second) == asked(whole)
    assert all(torch.equal(tensor, again.state[name]) for name, tensor in expected.state.items())


def test_a_round_that_does_not_count_is_nobodys_offence() -> None:
    events: list[Any] = []
    # Of one device alone nobody knows whether the model is at fault.
    coordinator(ScriptedLink(["b"], poison), 4, events, offences=1).run()
    assert asked(events) == ["b"] * 4
    assert all(closed.abandoned and not closed.warnings for closed in only(events, RoundClosed))


def by_hand(rounds: list[dict[str, bool | None]], offences: int, length: int) -> list[set[str]]:
    """Return who takes part in each round, of those that are there, worked out from the whole past each time.

    `rounds` says of each device whether its update would be accepted, quarantined (False), or would not come.
    """
    parts = list[set[str]]()
    for number in range(len(rounds)):
        out = set[str]()
        for device in rounds[number]:
            row, times, until = 0, 0, 0
            for before in range(number):
                if device not in parts[before] or rounds[before].get(device) is None:
                    continue
                row = 0 if rounds[before][device] else row + 1
                if row == offences:
                    row, times = 0, times + 1
                    until = before + 1 + length * 2 ** (times - 1)
            if until > number:
                out.add(device)
        parts.append(set(rounds[number]) - out)
    return parts


@pytest.mark.parametrize("seed", range(6))
def test_suspensions_follow_the_rule(seed: int) -> None:
    draws = torch.rand(40, 4, generator=generator(seed, "offences"))
    rounds = [
        {name: None if value < 0.1 else value < 0.45 for name, value in zip(NAMES, row.tolist(), strict=True)}
        for row in draws
    ]
    offences, length = 1 + seed % 3, 1 + seed // 3
    suspensions, found = Suspensions(offences, length), []
    for number, each in enumerate(rounds, 1):
        suspensions.begin(number)
        there = {name for name in each if not suspensions.why(name)}
        suspensions.note(
            number, {name for name in there if each[name] is False}, {name for name in there if each[name]}
        )
        found.append(there)
        # What goes through a file is all that there is.
        memory = json.loads(json.dumps(suspensions.memory()))
        suspensions = Suspensions(offences, length)
        suspensions.resume(memory)
    assert found == by_hand(rounds, offences, length)
    assert any(len(there) < 4 for there in found)


def test_nobody_is_suspended_without_offences_and_nobody_for_ever() -> None:
    never, often = Suspensions(0, 5), Suspensions(1, 5)
    assert never.note(1, {"b"}, set()) == {}
    lengths = []
    for number in range(1, 20):
        (found,) = often.note(number, {"b"}, set()).values()
        lengths.append(found.until - found.since - 1)
    assert lengths == [5, 10, 20, 40, 80, 160, 320, 640] + [1000] * 11


@pytest.fixture(params=["memory", "sql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else SqlStore(f"sqlite:///{tmp_path}/x.sqlite")


def test_what_an_operator_decides_outlasts_the_process_and_the_run(store: Store) -> None:
    suspensions = Suspensions(2, 5)
    decisions = Decisions(store, "place")
    decisions.begin("run", suspensions, lambda: 2)
    decisions.suspend("a", "it is being repaired")
    for number in (1, 2):
        suspensions.note(number, {"b", "c"}, set())
    assert suspensions.why("a") == "it is suspended until it is released: it is being repaired"
    assert decisions.release("b")
    assert not decisions.release("nobody")
    assert not suspensions.why("b")
    # The checkpoint is older than the release.
    memory = suspensions.memory() | {"out": {name: {"reason": "x", "since": 2, "until": 8} for name in "bc"}}
    again, other = Suspensions(2, 5), Suspensions(2, 5)
    again.resume(memory)
    Decisions(store, "place").begin("run", again)
    assert [bool(again.why(name)) for name in "abc"] == [True, False, True]
    # Another run of the folder knows of what holds for all.
    later = Decisions(store, "place")
    later.begin("other", other)
    later.begin("run", again)
    assert [bool(other.why(name)) for name in "abc"] == [True, False, False]
    assert later.release("a")
    assert not again.why("a")
    later.end("run")
    later.suspend("d", "by hand")
    assert not again.why("d")
    Decisions(store, "place").begin("third", third := Suspensions(2, 5))
    assert [bool(third.why(name)) for name in "ad"] == [False, True]
    # What came behind the release holds.
    again.resume({"out": {"b": {"reason": "x", "since": 3, "until": 9}}})
    Decisions(store, "place").begin("run", again)
    assert again.why("b") == str(Suspension("x", 3, 9))
