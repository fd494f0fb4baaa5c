"""The virtual clock: the order, the time and the price of everything, and no real waiting."""

import json
import re
import time
import tomllib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from diastole.cli import tables
from diastole.experiments.errors import ExperimentError
from diastole.experiments.report.report import time_to_target
from diastole.experiments.result import Result
from diastole.models.cost import Cost
from diastole.models.methods.registry import make_method
from diastole.models.methods.widths.width import width_cost
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Report, Task, Update
from diastole.models.training import TrainConfig
from diastole.models.work import training_work
from diastole.proto.payload import encode
from diastole.proto.profile import Profile
from diastole.server.errors import RoundError
from diastole.server.events import Change, RoundClosed
from diastole.server.link import Failure, Traffic
from diastole.simulations.devices import SLACK, Federation, make_federation
from diastole.simulations.field.availability import DAY, HOUR, Always, Battery, Churn, DayNight, uniform
from diastole.simulations.field.clock import FieldLink, FieldTask, Spent, VirtualClock
from diastole.simulations.field.populations import POPULATIONS, DeviceClass, FieldDevice, draw
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

MODEL = ModelConfig("cnn", (1, 8, 8), 3, (4, 8))
TRAINING = TrainConfig(batch_size=8)
PLAIN = DeviceClass("plain", 1.0, 1e9, 1.0, 1e6, 1e6, watts=2.0, radio_watts=0.5)
# The population of their own that the documentation shows.
SHOWN = re.search(
    r"```toml\n(\[\[population\.classes.*?)```",
    (Path(__file__).parents[3] / "docs" / "simulations.md").read_text(),
    re.DOTALL,
)
OWN: list[dict[str, Any]] = tomllib.loads(SHOWN[1])["population"]["classes"] if SHOWN else []


@dataclass
class Inner:
    """An engine that trains nothing: it hands back what it was sent, in any order."""

    examples: Mapping[str, int]
    backwards: bool = False
    fail: Sequence[str] = ()
    trained: list[str] = field(default_factory=list)
    deadlines: list[float | None] = field(default_factory=list)
    interrupted: bool = False
    closed: bool = False

    def devices(self) -> Mapping[str, Profile]:
        return {name: Profile("test", count) for name, count in self.examples.items()}

    def wait(self, count: int, seconds: float) -> bool:
        raise AssertionError("the field waits by itself")

    def seen(self) -> Mapping[str, Profile]:
        return self.devices()

    def observe(self, tell: Callable[[Change], None]) -> None:
        raise AssertionError("the field tells by itself")

    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        self.deadlines.append(deadline)
        try:
            for task in reversed(tasks) if self.backwards else tasks:
                if self.interrupted:
                    return
                self.trained.append(task.device)
                if task.device in self.fail:
                    yield Failure(task.device, "broken", faulty=True)
                else:
                    yield Update(task, states[task.spec], Report(self.examples[task.device], 1.0, 1e-3))
        finally:
            self.closed = True

    def enough(self) -> bool:
        raise AssertionError("the field is closed")

    def interrupt(self) -> None:
        self.interrupted = True

    def traffic(self) -> Mapping[str, Traffic]:
        raise AssertionError("the field counts by itself")


@cache
def sent() -> dict[SubModelSpec, State]:
    """Return what each size is sent as, smallest first."""
    method = make_method("width", MODEL, [1.0, 0.5], TRAINING)
    method.prepare(initial_state(MODEL, 0), None, Moment())
    return {size.spec: method.compress(size.spec) for size in method.offers()}


def tasks(names: Sequence[str], number: int = 1) -> list[Task]:
    specs = list(sent())
    return [Task(f"r{number}-{name}", number, name, specs[k % 2], TRAINING, k) for k, name in enumerate(names)]


def in_the_field(
    devices: Mapping[str, FieldDevice], now: float = 0.0, pause: float = 0.0, goal: int | None = None, **inner: Any
) -> tuple[FieldLink, VirtualClock, Inner]:
    clock = VirtualClock(now)
    engine = Inner({name: 5 + 7 * k for k, name in enumerate(devices)}, **inner)
    return FieldLink(engine, devices, clock, MODEL, pause=pause, goal=goal), clock, engine


def plain(count: int, **changes: Any) -> dict[str, FieldDevice]:
    """Return devices of which each is half as fast as the one before."""
    kind = replace(PLAIN, **changes)
    return {f"d{k}": FieldDevice(kind, 100 + k, 1e9 / 2**k, 1e6, 5e5) for k in range(count)}


def arrivals(link: FieldLink, clock: VirtualClock, work: Sequence[Task], deadline: float | None = None) -> list[Any]:
    return [(clock.now, outcome) for outcome in link.dispatch(work, sent(), deadline)]


@pytest.mark.parametrize("backwards", [False, True])
def test_a_field_with_a_goal_trains_no_more_than_it_is_asked_for(backwards: bool) -> None:
    devices = plain(5)
    whole, clock, _ = in_the_field(devices)
    expected = [(now, name_of(outcome)) for now, outcome in arrivals(whole, clock, tasks(list(devices)))]
    link, clock, engine = in_the_field(devices, backwards=backwards, goal=3)
    assert link.enough() is False
    with closing(link.dispatch(tasks(list(devices)), sent(), 1e9)) as outcomes:
        found = [(name_of(next(outcomes)), clock.now) for _ in range(4)]
    assert found == [(name, now) for now, name in expected[:4]]
    assert clock.now == expected[3][0]
    # The goal at once; one more because it was asked for.
    first = [name for _, name in expected[:4]]
    assert engine.trained == (first[2::-1] if backwards else first[:3]) + first[3:]
    # Who was out has spent what it could until then.
    assert 0 < link.cost().devices["d4"].seconds < whole.cost().devices["d4"].seconds


def name_of(outcome: Update | Failure) -> str:
    return outcome.device


# A slow, obvious account of the same: each task on its own, phase by phase.


@dataclass
class Told:
    arrives: float = 0.0
    delivered: bool = False
    training: float = 0.0
    transfer: float = 0.0
    down: float = 0.0
    up: float = 0.0


@cache
def cost_of(spec: SubModelSpec) -> Cost:
    return width_cost(MODEL, spec.options.width, TRAINING)


def tell(task: Task, device: FieldDevice, examples: int, deadline: float | None) -> Told:
    """Return what happens to one task: download, train, upload, unless the device is lost or time is up."""
    cost = cost_of(task.spec)
    payload = len(encode(sent()[task.spec]))
    work = training_work(cost, TRAINING, examples)
    slow = device.kind.slowdown if uniform(device.seed, task.task_id, "straggler") < device.kind.straggler else 1.0
    phases = [payload / device.down, slow * work / device.macs_per_second, payload / device.up]
    stop = float("inf")
    lost = uniform(device.seed, task.task_id, "drop-out") < device.kind.dropout
    if lost:
        stop = sum(phases) * uniform(device.seed, task.task_id, "drop-out at")
    arrives = min(stop, sum(phases))
    if deadline is not None:
        stop = min(stop, deadline)
    told = Told(arrives, delivered=not lost and (deadline is None or arrives <= deadline))
    left = stop
    for kind, seconds in zip(("down", "train", "up"), phases, strict=True):
        used = min(seconds, left)
        left -= used
        if kind == "train":
            told.training += used
        else:
            told.transfer += used
            setattr(told, kind, payload * used / seconds)
    return told


@pytest.mark.parametrize("preset", ["phones", "pi", "wearables", "mixed", "bandwidth-limited"])
@pytest.mark.parametrize("backwards", [False, True])
def test_the_timeline_is_that_of_a_slow_obvious_account(preset: str, backwards: bool) -> None:
    for seed in range(2):
        # Far more goes wrong here than in the preset.
        devices = {
            f"d{k}": replace(device, kind=replace(device.kind, dropout=0.3, straggler=0.3, slowdown=4.0))
            for k, device in enumerate(draw(POPULATIONS[preset], 12, seed))
        }
        link, clock, engine = in_the_field(devices, now=1000.0, backwards=backwards)
        joules = dict.fromkeys(devices, 0.0)
        traffic = {name: [0.0, 0.0] for name in devices}
        for number in (1, 2, 3):
            work = tasks(list(devices)[number:], number)
            limits = sorted(tell(t, devices[t.device], engine.examples[t.device], None).arrives for t in work)
            deadline = None if number == 1 else limits[len(limits) // 2] * 1.001
            told = {t.device: tell(t, devices[t.device], engine.examples[t.device], deadline) for t in work}
            engine.trained.clear()
            began = clock.now
            found = arrivals(link, clock, work, deadline)
            due = {n: t for n, t in told.items() if deadline is None or t.arrives <= deadline}
            expected = sorted(due, key=lambda name: due[name].arrives)
            assert [name_of(outcome) for _, outcome in found] == expected
            for at, outcome in found:
                mine = told[name_of(outcome)]
                assert at - began == pytest.approx(mine.arrives)
                assert isinstance(outcome, Update) == mine.delivered
                if isinstance(outcome, Update):
                    assert outcome.report.seconds == pytest.approx(mine.training)
                else:
                    assert not outcome.faulty
            # Only what arrives is trained.
            assert sorted(engine.trained) == sorted(name for name, mine in told.items() if mine.delivered)
            last = max(mine.arrives for mine in told.values())
            assert clock.now - began == pytest.approx(last if deadline is None else min(last, deadline))
            spent = 0.0
            for name, mine in told.items():
                kind = devices[name].kind
                energy = kind.watts * mine.training + kind.radio_watts * mine.transfer
                joules[name] += energy
                spent += energy
                traffic[name][0] += mine.down
                traffic[name][1] += mine.up
            assert link.cost().rounds[number].joules == pytest.approx(spent)
        for name, cost in link.cost().devices.items():
            assert cost.joules == pytest.approx(joules[name])
            assert [cost.down, cost.up] == pytest.approx(traffic[name], abs=3)
            assert link.traffic()[name] == Traffic(cost.down, cost.up)
        assert set(engine.deadlines) == {None}


def test_the_parts_add_up() -> None:
    devices = plain(6, dropout=0.4, straggler=0.4, slowdown=5.0)
    link, clock, _ = in_the_field(devices)
    for number in (1, 2, 3, 4):
        list(link.dispatch(tasks(list(devices), number), sent(), 0.05))
    cost = link.cost()
    by_device, by_round = sum(cost.devices.values(), Spent()), sum(cost.rounds.values(), Spent())
    for key in ("training", "transfer", "joules", "down", "up"):
        assert getattr(by_device, key) == pytest.approx(getattr(by_round, key))
    assert cost.seconds == clock.now
    assert by_device.joules == pytest.approx(2.0 * by_device.training + 0.5 * by_device.transfer)
    assert by_device.seconds == by_device.training + by_device.transfer


def test_an_errand_is_paid_for_as_far_as_it_got() -> None:
    whole = FieldTask(
        tasks(["d0"])[0],
        plain(1)["d0"],
        download=2.0,
        training=10.0,
        upload=4.0,
        bytes_down=1000,
        bytes_up=400,
        lost=None,
    )
    assert whole.ends == 16.0
    assert replace(whole, lost=3.5).ends == 3.5
    assert whole.spent(0.0) == Spent()
    assert whole.spent(1.0) == Spent(0.0, 1.0, 0.5, 500, 0)
    assert whole.spent(7.0) == Spent(5.0, 2.0, 11.0, 1000, 0)
    assert whole.spent(13.0) == Spent(10.0, 3.0, 21.5, 1000, 100)
    assert whole.spent(16.0) == whole.spent(99.0) == Spent(10.0, 6.0, 23.0, 1000, 400)


def test_a_deadline_that_everybody_meets_is_not_waited_for() -> None:
    devices = plain(3)
    free, one, _ = in_the_field(devices)
    bound, other, _ = in_the_field(devices)
    assert len(arrivals(free, one, tasks(list(devices)))) == 3
    assert len(arrivals(bound, other, tasks(list(devices)), 1e6)) == 3
    assert one.now == other.now < 10


def test_nobody_in_time_costs_the_whole_deadline() -> None:
    devices = plain(3)
    link, clock, engine = in_the_field(devices)
    assert arrivals(link, clock, tasks(list(devices)), 1e-4) == []
    assert clock.now == pytest.approx(1e-4)
    assert engine.trained == []
    assert all(spent.joules > 0 and spent.up == 0 for spent in link.cost().devices.values())


def test_a_round_without_tasks_lasts_a_minute() -> None:
    link, clock, _ = in_the_field(plain(2))
    assert list(link.dispatch([], {}, 5.0)) == []
    assert clock.now == 60.0


def test_a_pause_follows_every_round() -> None:
    devices = plain(2)
    link, clock, _ = in_the_field(devices, pause=500.0)
    last = max(at for at, _ in arrivals(link, clock, tasks(list(devices))))
    assert clock.now == pytest.approx(last + 500)


def test_a_caller_that_has_enough_ends_the_round_there() -> None:
    devices = plain(4)
    whole, _, _ = in_the_field(devices)
    list(whole.dispatch(tasks(list(devices)), sent(), None))
    link, clock, engine = in_the_field(devices)
    with closing(link.dispatch(tasks(list(devices)), sent(), None)) as outcomes:
        next(outcomes)
        at = clock.now
    assert clock.now == at
    assert engine.closed
    # Those still out have spent what they could until then, and no more.
    cost, full = link.cost().devices, whole.cost().devices
    assert cost["d0"] == full["d0"]
    for name in ("d1", "d2", "d3"):
        assert cost[name].seconds == pytest.approx(at)
        assert cost[name].joules < full[name].joules


def test_a_failure_of_the_engine_is_passed_on_in_its_place() -> None:
    devices = plain(3)
    link, clock, _ = in_the_field(devices, fail=["d1"], backwards=True)
    outcomes = [outcome for _, outcome in arrivals(link, clock, tasks(list(devices)))]
    assert [name_of(outcome) for outcome in outcomes] == ["d0", "d1", "d2"]
    assert outcomes[1] == Failure("d1", "broken", faulty=True)


def test_interrupt_ends_the_dispatch() -> None:
    devices = plain(4)
    link, clock, engine = in_the_field(devices)
    outcomes = link.dispatch(tasks(list(devices)), sent(), None)
    next(outcomes)
    link.interrupt()
    assert list(outcomes) == []
    assert engine.interrupted
    at = clock.now
    assert link.wait(1, 10.0)
    assert clock.now == at


def test_only_devices_that_are_online_can_take_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("nobody sleeps for real"))
    devices = plain(40, availability=DayNight(low=0.0, high=0.5, peak=2.0))
    link, clock, _ = in_the_field(devices, now=14 * HOUR)
    assert link.devices() == {}
    assert link.wait(5, DAY)
    assert 15 * HOUR < clock.now < 26 * HOUR
    online = link.devices()
    assert len(online) >= 5
    assert online.keys() == {name for name, device in devices.items() if device.online(clock.now)}
    at = clock.now
    assert link.wait(5, 0.0)
    assert clock.now == at


def test_waiting_in_vain_takes_as_long_as_it_was_given() -> None:
    link, clock, _ = in_the_field(plain(3, availability=DayNight(low=0.0, high=0.0)))
    assert not link.wait(1, 90.0)
    assert clock.now == 90.0
    # More devices than there are never come; nobody waits for them.
    assert not link.wait(4, DAY)
    assert clock.now == 90.0


def test_an_empty_battery_keeps_a_device_away_until_it_was_charged() -> None:
    battery = Battery(capacity=100.0, floor=0.3, idle=0.0, charger=0.1)
    devices = plain(1, availability=battery, watts=5e4)
    link, clock, _ = in_the_field(devices, now=8 * HOUR)
    assert list(link.devices()) == ["d0"]
    list(link.dispatch(tasks(["d0"]), sent(), None))
    assert link.cost().devices["d0"].joules > 70
    assert link.devices() == {}
    assert link.wait(1, DAY)
    # It is plugged in at ten in the evening and needs 30 J at 0.1 W.
    assert clock.now == pytest.approx((22 + 300 / 3600) * HOUR, abs=61)


def test_a_link_that_goes_on_with_the_memory_of_another_is_that_other() -> None:
    battery = Battery(capacity=100.0, floor=0.3, idle=1e-3, charger=0.1)
    devices = plain(2, availability=battery, watts=5e4) | {"mains": plain(3)["d2"]}
    link, clock, _ = in_the_field(devices, now=8 * HOUR)
    list(link.dispatch(tasks(["d0", "mains"]), sent(), None))
    again, other, _ = in_the_field(devices)
    memory, tensors = link.memory()
    again.resume(json.loads(json.dumps(memory, allow_nan=False)), tensors)
    assert other.now == clock.now > 8 * HOUR
    assert again.memory() == link.memory()
    # d0 has an empty battery now; a fresh link would have it online.
    assert list(again.devices()) == list(link.devices()) == ["d1", "mains"]
    for each in (link, again):
        assert each.wait(3, DAY)
        list(each.dispatch(tasks(list(devices), 2), sent(), None))
    assert other.now == clock.now
    assert again.cost() == link.cost()
    assert list(again.cost().rounds) == [1, 2]
    assert again.traffic() == link.traffic()


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="back by 1 s"):
        VirtualClock().advance(-1.0)


# Whole experiments.


def federation(**changes: Any) -> Federation:
    document = {
        "seed": 5,
        "data": {"proxy": 60},
        "rounds": {"count": 3},
        "population": {"preset": "mixed", "pause": 1800.0},
        "tiers": {"large": {"devices": 4, "width": 1.0}, "small": {"devices": 8, "width": 0.25}},
    }
    return make_federation(Simulation.parse(document | changes, "test"))


@pytest.fixture(scope="module")
def run() -> tuple[Federation, Result]:
    made = federation()
    return made, simulate(made)


@pytest.mark.slow
def test_a_run_repeats_to_the_second_and_the_bit(run: tuple[Federation, Result]) -> None:
    for again in (simulate(federation()), simulate(federation(engine="processes", workers=1))):
        assert again.rounds == run[1].rounds
        assert again.field == run[1].field
        assert all(torch.equal(again.state[name], run[1].state[name]) for name in again.state)
    assert simulate(federation(seed=6)).field != run[1].field


def test_rounds_are_timed_by_the_virtual_clock(run: tuple[Federation, Result]) -> None:
    outcome = run[1]
    assert outcome.field is not None
    assert all(closed.seconds >= 1800 for closed in outcome.rounds)
    assert sum(closed.seconds for closed in outcome.rounds) == pytest.approx(outcome.field.seconds)
    assert sum(closed.bytes_up for closed in outcome.rounds) == sum(s.up for s in outcome.field.devices.values())
    assert sum(closed.updates for closed in outcome.rounds) > 0


def test_without_a_population_nothing_is_virtual() -> None:
    made = federation(population={}, rounds={"count": 1})
    outcome = simulate(made)
    assert outcome.field is None
    assert made.field is None
    assert outcome.rounds[0].seconds < 60
    assert outcome.as_dict()["field"] is None


def test_the_profiles_are_those_of_the_population(run: tuple[Federation, Result]) -> None:
    made = run[0]
    assert made.field is not None
    full = int(SLACK * width_cost(made.model, 1.0, made.simulation.training).memory)
    for name, device in made.devices.items():
        assert device.profile == made.field[name].profile(len(device.examples), full)
    drawn = draw(POPULATIONS["mixed"], 12, made.simulation.seed)
    assert list(made.field.values()) == drawn


def test_a_deadline_in_multiples_of_the_fastest_class() -> None:
    made = federation(population={"preset": "compute-limited", "deadline": 2.0})
    rounds = made.virtual_rounds()
    twice = federation(population={"preset": "compute-limited", "deadline": 4.0}).virtual_rounds()
    assert rounds.deadline is not None
    assert twice.deadline == pytest.approx(2 * rounds.deadline)
    outcome = simulate(made)
    assert all(closed.seconds <= rounds.deadline * 1.000001 for closed in outcome.rounds)
    assert all(0 < closed.updates < 12 for closed in outcome.rounds)
    seconds = federation(rounds={"count": 1, "deadline": 0.25}).virtual_rounds()
    assert seconds.deadline == 0.25


def test_a_baseline_is_run_in_the_same_field(run: tuple[Federation, Result]) -> None:
    outcome = simulate(run[0].with_method("fedavg"))
    assert outcome.field is not None
    assert run[1].field is not None
    assert outcome.field.devices.keys() == run[1].field.devices.keys()
    # Everybody trains the full size, so whoever took part needed at least as much energy.
    total = [sum(spent.joules for spent in o.field.devices.values()) for o in (outcome, run[1]) if o.field]
    assert total[0] > total[1]


def test_a_field_in_which_nobody_ever_comes_ends_with_one_line() -> None:
    made = federation(population={"preset": "phones", "patience": 0.0}, tiers={"large": {"devices": 1, "width": 1.0}})
    with pytest.raises(RoundError, match="0 of 1 devices after waiting 0 s"):
        simulate(made)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"population": {"preset": "tablets"}}, "population.preset"),
        ({"population": {"deadline": 2.0}}, "needs population.preset"),
        ({"population": {"preset": "pi", "deadline": 2.0}, "rounds": {"deadline": 5.0}}, "at most one"),
        ({"population": {"preset": "pi", "pause": -1}}, "population.pause"),
        ({"population": {"preset": "pi", "classes": [OWN[0]]}}, "preset and classes: at most one"),
        ({"population": {"classes": [OWN[0], OWN[0]]}}, "a name of its own, not gateway, gateway"),
        ({"population": {"classes": [OWN[0] | {"down": 0}]}}, "classes.0.down: Input should be greater than 0"),
        ({"population": {"classes": [OWN[0] | {"lag": 1}]}}, "classes.0.lag: no such key; accepted: name, share"),
        ({"population": {"classes": [OWN[0] | {"availability": {"on": 1}}]}}, "Churn.off: is missing$"),
    ],
)
def test_a_wrong_population_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        federation(**changes)


def test_a_population_of_ones_own_is_that_of_the_file() -> None:
    made = federation(population={"classes": OWN, "deadline": 500.0}, rounds={"count": 2})
    outcome = simulate(made)
    assert outcome.field is not None
    assert {device.kind.name for device in made.field.values()} == {"gateway", "sensor"}  # type: ignore[union-attr]
    for device in made.field.values():  # type: ignore[union-attr]
        own = OWN[device.kind.name == "sensor"]
        assert (device.macs_per_second, device.down) == (own["macs_per_second"], own["down"])
        assert isinstance(device.kind.availability, Churn if own is OWN[1] else Always)
    document = outcome.as_dict()
    assert [row["tier"] for row in document["tiers"]] == ["gateway", "sensor"]
    # What is in the report, or in a checkpoint's label, is the whole of it.
    again = Simulation.parse(document["experiment"], "test")
    assert again == made.simulation == made.simulation.changed(method=made.simulation.method)
    assert made.simulation.changed(population__classes=OWN[:1]) != made.simulation


def closed(number: int, seconds: float, accuracy: float | None) -> RoundClosed:
    scores = None if accuracy is None else {"accuracy": accuracy, "loss": 1.0}
    return RoundClosed(number, 1, "", scores, {}, 0, 0, seconds)


def test_time_to_a_target_is_that_of_the_first_evaluated_round() -> None:
    rounds = [closed(1, 10.0, 0.2), closed(2, 5.0, None), closed(3, 7.0, 0.5), closed(4, 1.0, 0.4), closed(5, 2.0, 0.6)]
    assert time_to_target(rounds, 0.2) == 10.0
    assert time_to_target(rounds, 0.3) == time_to_target(rounds, 0.5) == 22.0
    assert time_to_target(rounds, 0.6) == 25.0
    assert time_to_target(rounds, 0.61) is None
    assert time_to_target([], 0.0) is None


def test_the_tables_have_columns_for_time_and_energy(run: tuple[Federation, Result]) -> None:
    for outcome, expected in ((run[1], 2), (replace(run[1], field=None), 0)):
        console = Console(file=StringIO(), width=300)
        tables.show(console, outcome)
        text = console.file.getvalue()
        assert text.count("field time (s)") == text.count("energy (J)") == expected


@pytest.mark.slow
def test_the_report_tells_time_and_energy(run: tuple[Federation, Result], tmp_path: Path) -> None:
    outcome = run[1]
    document = outcome.as_dict()
    assert outcome.field is not None
    assert document["field"]["seconds"] == outcome.field.seconds
    assert [row["round"] for row in document["field"]["rounds"]] == [1, 2, 3]
    total = sum(row["joules"] for row in document["field"]["rounds"])
    assert document["field"]["joules"] == pytest.approx(total)
    assert sum(row["joules"] for row in document["devices"]) == pytest.approx(total)
    for way in ("down", "up"):
        moved = [row[way] for row in document["field"]["rounds"]]
        assert moved == [closed[f"bytes_{way}"] for closed in document["rounds"]]
        assert sum(moved) == sum(spent[way] for spent in document["field"]["devices"].values()) > 0
    assert sum(row["field_seconds"] for row in document["devices"]) == pytest.approx(
        sum(spent["training"] + spent["transfer"] for spent in document["field"]["devices"].values())
    )
    assert [row["tier"] for row in document["tiers"]] == [kind.name for kind in POPULATIONS["mixed"].classes]
    assert sum(row["devices"] for row in document["tiers"]) == 12
    outcome.save(tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(outcome.plot().axes) == 1 + len(replace(outcome, field=None).plot().axes)
