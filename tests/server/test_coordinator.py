"""The round loop against a scripted link: what is admitted, what is quarantined, when a round counts."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from scripted import MODEL, TRAINING, ScriptedLink, examples, only, reported

from diastole.models.methods.registry import build, make_method
from diastole.models.networks.family import initial_state
from diastole.models.proxy import Proxy
from diastole.models.scoring import Score, evaluate
from diastole.models.seeds import derive_seed, generator
from diastole.models.state import state_of
from diastole.models.task import Update
from diastole.models.training import fit
from diastole.models.work import training_work
from diastole.proto.profile import Profile
from diastole.server import stopwatch
from diastole.server.coordinator import Coordinator
from diastole.server.errors import RoundError
from diastole.server.events import (
    DeviceLost,
    Event,
    RoundClosed,
    RoundStarted,
    RoundTimed,
    RunFinished,
    TaskDeclined,
    UpdateAccepted,
    UpdateQuarantined,
)
from diastole.server.link import Declined, Failure
from diastole.server.proxy import ProxyConfig
from diastole.server.settings import RoundConfig, Settings


def run(
    link: Any, method: str = "width", rounds: int = 1, quorum: float = 0.5, goal: int | None = None, **settings: Any
) -> tuple[Coordinator, list[Event]]:
    events: list[Event] = []
    coordinator = Coordinator(
        Settings(MODEL, TRAINING, RoundConfig(count=rounds, quorum=quorum, goal=goal), seed=3, **settings),
        make_method(method, MODEL, [1.0, 0.5], TRAINING),
        link,
        initial_state(MODEL, 0),
        proxy=Proxy(examples(20, 1), examples(10, 2)),
        test=examples(30, 3),
        observers=(events.append,),
    )
    coordinator.run()
    return coordinator, events


def spoil(device: str, change: Callable[[Update], Update | Failure | None]) -> Callable[[Update], Any]:
    return lambda update: change(update) if update.device == device else update


def broken(update: Update, value: float) -> Update:
    state = {name: tensor.clone() for name, tensor in update.state.items()}
    next(iter(state.values())).view(-1)[3] = value
    return replace(update, state=state)


FAULTS: dict[str, tuple[Callable[[Update], Update], str]] = {
    "nan": (lambda u: broken(u, float("nan")), "not finite"),
    "infinite": (lambda u: broken(u, float("inf")), "not finite"),
    "huge": (lambda u: broken(u, 1e9), "away from what was sent"),
    "wrong shape": (lambda u: replace(u, state={n: t[..., :1] for n, t in u.state.items()}), "expected"),
    "wrong dtype": (lambda u: replace(u, state={n: t.double() for n, t in u.state.items()}), "float64"),
    "missing": (lambda u: replace(u, state=dict(list(u.state.items())[1:])), "is missing"),
    "unknown": (lambda u: replace(u, state=u.state | {"extra": torch.zeros(1)}), "'extra' is unknown"),
    "too many examples": (lambda u: reported(u, examples=13), "13 examples; the device announced 12"),
    "no examples": (lambda u: reported(u, examples=0), "0 examples"),
    "nan loss": (lambda u: reported(u, loss=float("nan")), "both must be finite"),
}


@pytest.mark.parametrize("method", ["width", pytest.param("conv", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_update_is_quarantined_and_changes_nothing(method: str, fault: str) -> None:
    change, message = FAULTS[fault]
    with_fault, events = run(ScriptedLink(["a", "b", "c"], spoil("b", change)), method)
    (quarantined,) = only(events, UpdateQuarantined)
    assert quarantined.device == "b"
    assert message in quarantined.reason
    assert "\n" not in quarantined.reason
    assert with_fault.ledger["b"].quarantined == 1
    without, _ = run(ScriptedLink(["a", "b", "c"], spoil("b", lambda u: None)), method)
    assert all(torch.equal(with_fault.state[name], without.state[name]) for name in without.state)
    assert [event.device for event in only(events, UpdateAccepted)] == ["a", "c"]


@pytest.mark.parametrize("method", ["width", "conv"])
def test_the_order_of_arrival_does_not_matter(method: str) -> None:
    forwards, _ = run(ScriptedLink(["a", "b", "c", "d"]), method, rounds=2)
    backwards, _ = run(ScriptedLink(["d", "b", "c", "a"], reverse=True), method, rounds=2)
    assert all(torch.equal(forwards.state[name], backwards.state[name]) for name in forwards.state)


def test_a_round_below_its_quorum_leaves_the_global_model_alone() -> None:
    lost = lambda u: Failure(u.device, "gone", faulty=False)  # noqa: E731
    link = ScriptedLink(["a", "b", "c", "d"], lambda u: u if u.device == "a" else lost(u))
    coordinator, events = run(link, quorum=0.5)
    (closed,) = only(events, RoundClosed)
    assert closed.abandoned == "1 of 4 devices delivered; the quorum is 2"
    assert len(only(events, DeviceLost)) == 3
    start = initial_state(MODEL, 0)
    assert all(torch.equal(coordinator.state[name], start[name]) for name in start)


@pytest.mark.parametrize("method", ["width", "conv"])
def test_a_round_closes_at_its_goal_with_the_first_updates_that_pass(method: str) -> None:
    names = ["a", "b", "c", "d", "e"]
    link = ScriptedLink(names, spoil("b", lambda u: broken(u, math.nan)))
    coordinator, events = run(link, method, quorum=1.0, goal=3)
    (closed,) = only(events, RoundClosed)
    assert (closed.abandoned, closed.updates) == ("", 3)
    assert [event.device for event in only(events, UpdateAccepted)] == ["a", "c", "d"]
    assert [event.device for event in only(events, UpdateQuarantined)] == ["b"]
    assert only(events, DeviceLost) == []
    others, _ = run(ScriptedLink(names, lambda u: u if u.device in "acd" else None), method)
    assert all(torch.equal(coordinator.state[name], others.state[name]) for name in others.state)


def test_a_quorum_is_a_share_of_the_goal_if_there_is_one() -> None:
    for delivered, abandoned in (("ab", ""), ("a", "1 of 3 devices delivered; the quorum is 2")):
        link = ScriptedLink(["a", "b", "c", "d", "e"], lambda u, some=delivered: u if u.device in some else None)  # type: ignore[misc]
        _, events = run(link, quorum=0.5, goal=3)
        assert [closed.abandoned for closed in only(events, RoundClosed)] == [abandoned]


def test_a_goal_is_at_most_the_cohort() -> None:
    with pytest.raises(ValueError, match="goal: must be at most the cohort, 4, not 5"):
        RoundConfig(cohort=4, goal=5)
    assert RoundConfig(cohort=4, goal=4).goal == 4


def test_a_round_at_its_quorum_counts() -> None:
    link = ScriptedLink(["a", "b", "c", "d"], lambda u: u if u.device in "ab" else None)
    coordinator, events = run(link, quorum=0.5)
    (closed,) = only(events, RoundClosed)
    assert (closed.abandoned, closed.updates) == ("", 2)
    start = initial_state(MODEL, 0)
    assert not all(torch.equal(coordinator.state[name], start[name]) for name in start)


def test_too_few_devices_end_the_run_with_one_line() -> None:
    with pytest.raises(RoundError, match="1 of 2 devices"):
        run(ScriptedLink(["a"]), devices=2)


def test_stop_ends_the_run_after_the_round() -> None:
    link = ScriptedLink(["a", "b"])
    events: list[Event] = []

    def stop(event: Event) -> None:
        events.append(event)
        if isinstance(event, UpdateAccepted) and event.round == 2:
            coordinator.stop()

    coordinator = Coordinator(
        Settings(MODEL, TRAINING, RoundConfig(count=9), seed=3),
        make_method("width", MODEL, [1.0], TRAINING),
        link,
        initial_state(MODEL, 0),
        observers=(stop,),
    )
    coordinator.run()
    assert only(events, RunFinished) == [RunFinished(2, stopped=True)]
    assert [event.updates for event in only(events, RoundClosed)] == [2, 2]
    assert not link.interrupted


def test_stop_ends_the_wait_for_devices() -> None:
    link = ScriptedLink(["a"])
    coordinator = Coordinator(
        Settings(MODEL, TRAINING, RoundConfig(count=9), seed=3, devices=2),
        make_method("width", MODEL, [1.0], TRAINING),
        link,
        initial_state(MODEL, 0),
    )
    coordinator.stop()
    coordinator.run()
    assert link.interrupted
    assert coordinator.closed == []


def test_stop_now_abandons_the_round() -> None:
    link = ScriptedLink(["a", "b"])
    link.spoil = lambda update: (coordinator.stop(now=True), update)[1]
    events: list[Event] = []
    coordinator = Coordinator(
        Settings(MODEL, TRAINING, RoundConfig(count=9), seed=3),
        make_method("width", MODEL, [1.0], TRAINING),
        link,
        initial_state(MODEL, 0),
        observers=(events.append,),
    )
    state = coordinator.run()
    assert link.interrupted
    assert only(events, RoundClosed)[0].abandoned == "stopped by the operator"
    start = initial_state(MODEL, 0)
    assert all(torch.equal(state[name], start[name]) for name in start)


def test_a_device_that_misses_the_deadline_is_not_given_the_same_size_again() -> None:
    speed = 1e6

    class Slow(ScriptedLink):
        def devices(self) -> Mapping[str, Profile]:
            return {name: Profile("test", 12, macs_per_second=speed) for name in self.names}

    link = Slow(["fast", "slow"], lambda u: u if u.device == "fast" else None)
    settings = Settings(MODEL, TRAINING, RoundConfig(count=4, deadline=60.0), seed=3)
    method = make_method("width", MODEL, [1.0, 0.5], TRAINING)
    full = method.offers()[-1]
    speed = training_work(full.cost, TRAINING, 12) / 50.0
    Coordinator(settings, method, link, initial_state(MODEL, 0)).run()
    sizes = {name: [t.spec.options.width for t in link.tasks if t.device == name] for name in ("fast", "slow")}
    assert sizes["fast"] == [1.0] * 4
    assert sizes["slow"][0] == 1.0
    assert 1.0 not in sizes["slow"][1:]


def test_tasks_have_names_and_seeds_of_their_own() -> None:
    link = ScriptedLink(["a", "b"])
    run(link, rounds=3)
    assert len({task.task_id for task in link.tasks}) == len({task.seed for task in link.tasks}) == 6


def test_evaluation_is_done_when_it_is_due() -> None:
    events: list[Event] = []
    coordinator = Coordinator(
        Settings(MODEL, TRAINING, RoundConfig(count=5, evaluate_every=2), seed=3),
        make_method("width", MODEL, [1.0, 0.5], TRAINING),
        ScriptedLink(["a"]),
        initial_state(MODEL, 0),
        test=examples(30, 3),
        observers=(events.append,),
    )
    coordinator.run()
    assert [c.accuracy is not None for c in only(events, RoundClosed)] == [False, True, False, True, True]


def test_a_size_that_is_the_global_model_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[int] = []

    def count(module: torch.nn.Module, *how: Any) -> Score:
        evaluated.append(sum(weight.numel() for weight in module.parameters()))
        return evaluate(module, *how)

    monkeypatch.setattr("diastole.server.evaluation.evaluate", count)
    coordinator, events = run(ScriptedLink(["a", "b"]), rounds=2)
    large, small = sorted({*evaluated}, reverse=True)
    assert evaluated == [large, small] * 2
    for closed in only(events, RoundClosed):
        assert closed.tier_scores["width 1"] == closed.scores
    assert coordinator.evaluation.sizes()["width 1"] == coordinator.evaluation.whole()


def test_bytes_of_a_round_are_those_moved_in_it() -> None:
    _, events = run(ScriptedLink(["a", "b"]), rounds=2)
    # The scripted link counts one byte down and two up a task and device.
    assert [(c.bytes_down, c.bytes_up) for c in only(events, RoundClosed)] == [(4, 8), (4, 8)]


def test_a_round_tells_the_work_of_its_devices_and_the_time_the_server_itself_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Watch:
        now = 0.0

        def perf_counter(self) -> float:
            return self.now

        time = perf_counter

    watch = Watch()
    monkeypatch.setattr(stopwatch, "time", watch)

    def takes_ten_seconds(update: Update) -> Update:
        watch.now += 10.0
        return update

    link = ScriptedLink(["a", "b", "c"], spoil=takes_ten_seconds)
    coordinator, events = run(link, rounds=2)
    closed = only(events, RoundClosed)
    assert [event.wall_seconds for event in closed] == [30.0, 30.0]
    assert [event.server_seconds for event in closed] == [0.0, 0.0]
    timed = only(events, RoundTimed)
    assert [event.round for event in timed] == [1, 2]
    for event in timed:
        assert [phase.name for phase in event.phases if phase.seconds] == ["wait"]
        assert sum(phase.seconds for phase in event.phases) == 30.0
        names = [phase.name for phase in event.phases]
        assert sorted(names) == sorted(
            ("wait", "plan", "encode", "fold", "step", "learn", "prepare", "evaluate", "checkpoint")
        )
    assert sum(event.macs for event in closed) == sum(account.macs for account in coordinator.ledger.values()) > 0
    assert closed[0].macs == closed[1].macs


def test_work_that_was_refused_is_not_counted() -> None:
    _, events = run(ScriptedLink(["a", "b", "c"], spoil("b", lambda update: broken(update, float("nan")))))
    _, fewer = run(ScriptedLink(["a", "c"]))
    assert [event.macs for event in only(events, RoundClosed)] == [event.macs for event in only(fewer, RoundClosed)]


def test_a_method_that_offers_nothing_counts_its_rounds_without_any_device() -> None:
    settings = Settings(
        MODEL, TRAINING, RoundConfig(count=3), seed=3, devices=5, proxy_training=ProxyConfig(epochs=2, batch_size=8)
    )
    method, proxy = make_method("proxy", MODEL, [1.0, 0.5], TRAINING), Proxy(examples(20, 1), examples(10, 2))
    link, events = ScriptedLink([]), list[Event]()
    start = method.initial(7)
    coordinator = Coordinator(settings, method, link, start, proxy=proxy, observers=(events.append,))
    state = coordinator.run()
    assert [(closed.updates, closed.abandoned) for closed in only(events, RoundClosed)] == [(0, "")] * 3
    assert link.tasks == []
    module = build(MODEL)
    module.load_state_dict(start)
    for number in (1, 2, 3):
        fit(
            module,
            proxy.training,
            settings.proxy_training.training(settings.training),
            generator(derive_seed(3, number, "proxy")),
        )
    assert all(torch.equal(state[name], tensor) for name, tensor in state_of(module).items())


def test_a_device_that_declines_for_want_of_memory_is_given_a_smaller_size() -> None:
    def small_only(update: Update) -> Update | Failure:
        if update.spec.label == "width 0.5":
            return update
        return Failure("b", "too much", faulty=False, declined=Declined.MEMORY)

    coordinator, events = run(ScriptedLink("ab", spoil("b", small_only)), rounds=2)
    started = [event.specs["b"] for event in only(events, RoundStarted)]
    assert started == ["width 1", "width 0.5"]
    assert only(events, TaskDeclined) == [TaskDeclined(1, "b", "memory", "too much")]
    assert not only(events, DeviceLost)
    assert [closed.updates for closed in coordinator.closed] == [1, 2]
