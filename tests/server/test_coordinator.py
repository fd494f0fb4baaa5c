"""The round loop against a scripted link: what is admitted, what is quarantined, when a round counts."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from diastole.client.training import train
from diastole.models.methods.registry import build, make_method
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.proxy import Proxy
from diastole.models.seeds import derive_seed, generator
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, state_of
from diastole.models.task import Task, Update
from diastole.models.training import Examples, Score, TrainConfig, evaluate, fit
from diastole.models.work import training_work
from diastole.proto.profile import Profile
from diastole.server import stopwatch
from diastole.server.coordinator import Coordinator
from diastole.server.errors import RoundError
from diastole.server.events import (
    DeviceJoined,
    DeviceLeft,
    DeviceLost,
    Event,
    RoundClosed,
    RoundStarted,
    RunFinished,
    RunStarted,
    UpdateAccepted,
    UpdateQuarantined,
)
from diastole.server.link import Failure, Traffic
from diastole.server.proxy import ProxyConfig
from diastole.server.settings import RoundConfig, Settings
from diastole.server.snapshot import Snapshot

MODEL = ModelConfig(name="cnn", input_shape=(1, 8, 8), classes=3, widths=(4, 8))
TRAINING = TrainConfig(batch_size=8)


def examples(count: int = 12, seed: int = 0) -> Examples:
    draws = torch.Generator().manual_seed(seed)
    return Examples(torch.randn(count, 1, 8, 8, generator=draws), torch.randint(0, 3, (count,), generator=draws))


def reported(update: Update, **changes: Any) -> Update:
    return replace(update, report=replace(update.report, **changes))


@dataclass
class ScriptedLink:
    """Trains honestly, then lets `spoil` change what comes back."""

    names: Sequence[str]
    spoil: Callable[[Update], Update | Failure | None] = lambda update: update
    reverse: bool = False
    tasks: list[Task] = field(default_factory=list)
    interrupted: bool = False
    tell: Callable[[DeviceJoined | DeviceLeft], None] = lambda event: None

    def devices(self) -> Mapping[str, Profile]:
        return {name: Profile("test", 12) for name in self.names}

    def seen(self) -> Mapping[str, Profile]:
        return self.devices()

    def wait(self, count: int, seconds: float) -> bool:
        return len(self.names) >= count

    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        self.tasks += tasks
        for task in reversed(tasks) if self.reverse else tasks:
            update = train(MODEL, task, states[task.spec], examples())
            outcome = self.spoil(reported(update, seconds=0.1))
            if outcome is not None:
                yield outcome

    def interrupt(self) -> None:
        self.interrupted = True

    def observe(self, tell: Callable[[DeviceJoined | DeviceLeft], None]) -> None:
        self.tell = tell

    def traffic(self) -> Mapping[str, Traffic]:
        return dict.fromkeys(self.names, Traffic(len(self.tasks), 2 * len(self.tasks)))


def run(
    link: Any, method: str = "width", rounds: int = 1, quorum: float = 0.5, **settings: Any
) -> tuple[Coordinator, list[Event]]:
    events: list[Event] = []
    coordinator = Coordinator(
        Settings(MODEL, TRAINING, RoundConfig(count=rounds, quorum=quorum), seed=3, **settings),
        make_method(method, MODEL, [1.0, 0.5], TRAINING),
        link,
        initial_state(MODEL, 0),
        proxy=Proxy(examples(20, 1), examples(10, 2)),
        test=examples(30, 3),
        observers=(events.append,),
    )
    coordinator.run()
    return coordinator, events


def only(events: list[Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


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


@pytest.mark.parametrize("method", ["width", "conv"])
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


def test_a_round_at_its_quorum_counts() -> None:
    link = ScriptedLink(["a", "b", "c", "d"], lambda u: u if u.device in "ab" else None)
    coordinator, events = run(link, quorum=0.5)
    (closed,) = only(events, RoundClosed)
    assert (closed.abandoned, closed.updates) == ("", 2)
    start = initial_state(MODEL, 0)
    assert not all(torch.equal(coordinator.state[name], start[name]) for name in start)


def test_too_few_devices_end_the_run_with_one_line() -> None:
    with pytest.raises(RoundError, match="1 devices online after waiting 60 s; needed 2"):
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

    def count(module: torch.nn.Module, data: Examples) -> Score:
        evaluated.append(sum(weight.numel() for weight in module.parameters()))
        return evaluate(module, data)

    monkeypatch.setattr("diastole.server.coordinator.evaluate", count)
    coordinator, events = run(ScriptedLink(["a", "b"]), rounds=2)
    large, small = sorted({*evaluated}, reverse=True)
    assert evaluated == [large, small] * 2
    for closed in only(events, RoundClosed):
        assert closed.tier_accuracy["width 1"] == closed.accuracy
    assert coordinator.tier_accuracy()["width 1"] == coordinator.accuracy()


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
    assert sum(event.macs for event in closed) == sum(account.macs for account in coordinator.ledger.values()) > 0
    assert closed[0].macs == closed[1].macs


def test_work_that_was_refused_is_not_counted() -> None:
    _, events = run(ScriptedLink(["a", "b", "c"], spoil("b", lambda update: broken(update, float("nan")))))
    _, fewer = run(ScriptedLink(["a", "c"]))
    assert [event.macs for event in only(events, RoundClosed)] == [event.macs for event in only(fewer, RoundClosed)]


def federation(link: Any, **more: Any) -> Coordinator:
    settings = Settings(MODEL, TRAINING, RoundConfig(count=2), seed=3)
    return Coordinator(settings, make_method("width", MODEL, [1.0], TRAINING), link, initial_state(MODEL, 0), **more)


def test_an_observer_that_raises_is_logged_and_dropped_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Event] = []
    heard: list[Event] = []

    def broken_pipe(event: Event) -> None:
        told.append(event)
        if isinstance(event, UpdateAccepted):
            raise BrokenPipeError("nobody reads this any more")

    coordinator = federation(ScriptedLink(["a", "b"]), observers=(broken_pipe, heard.append))
    coordinator.run()
    assert heard[-1] == RunFinished(2, stopped=False)
    # Nothing is told again behind the one that failed.
    assert [type(event) for event in told] == [RunStarted, RoundStarted, UpdateAccepted]
    assert len(only(heard, UpdateAccepted)) == 4
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "broken_pipe" in record.getMessage()
    assert "nobody reads this any more" in caplog.text


def test_an_observer_may_end_the_run_as_whoever_interrupts_it_does() -> None:
    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federation(ScriptedLink(["a"]), observers=(interrupted,)).run()


def test_a_snapshot_that_cannot_be_kept_ends_the_run_before_the_round_is_told() -> None:
    kept: list[Snapshot] = []
    events: list[Event] = []

    def keep(snapshot: Snapshot) -> None:
        kept.append(snapshot)
        if len(snapshot.closed) == 2:
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        federation(ScriptedLink(["a"]), observers=(events.append,), keep=keep).run()
    assert [len(snapshot.closed) for snapshot in kept] == [1, 2]
    assert [closed.round for closed in only(events, RoundClosed)] == [1]
    assert not only(events, RunFinished)


def test_a_kept_snapshot_is_what_the_next_coordinator_goes_on_from() -> None:
    kept: list[Snapshot] = []
    whole = federation(ScriptedLink(["a", "b"]), keep=kept.append).run()
    again = federation(ScriptedLink(["a", "b"]))
    again.resume(kept[0])
    assert again.last[0] == 1
    state = again.run()
    assert all(torch.equal(state[name], whole[name]) for name in whole)


def test_devices_that_come_and_go_are_told_and_their_profiles_kept() -> None:
    events: list[Event] = []
    link = ScriptedLink(["a"])
    link.spoil = lambda update: (link.tell(DeviceJoined("b", "test", 12)), link.tell(DeviceLeft("b", "x")), update)[2]
    coordinator = federation(link, observers=(events.append,))
    coordinator.run()
    assert only(events, DeviceJoined) == [DeviceJoined("b", "test", 12)] * 2
    assert only(events, DeviceLeft) == [DeviceLeft("b", "x")] * 2
    assert coordinator.ledger["a"].profile == Profile("test", 12)


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
        fit(module, proxy.training, settings.proxy_training.training, generator(derive_seed(3, number, "proxy")))
    assert all(torch.equal(state[name], tensor) for name, tensor in state_of(module).items())
