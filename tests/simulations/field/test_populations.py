"""Populations: who is drawn, what they announce, and when they are online."""

from collections import Counter
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from statistics import median, stdev

import numpy as np
import pytest

from diastole.models.kinds import KINDS
from diastole.models.methods.registry import make_method
from diastole.models.networks.config import ModelConfig
from diastole.models.training import TrainConfig
from diastole.server.planner import Planner
from diastole.simulations.field import presets
from diastole.simulations.field.availability import DAY, HOUR, Always, Battery, Churn, DayNight, uniform
from diastole.simulations.field.populations import POPULATIONS, DeviceClass, FieldDevice, Mixture, draw
from diastole.simulations.simulation import Population as Section

PLAIN = DeviceClass("plain", 1.0, 1e9, 1.0, 1e6, 1e6, watts=1.0, radio_watts=1.0)


@pytest.mark.parametrize("name", POPULATIONS)
def test_a_device_depends_on_its_number_and_the_seed_alone(name: str) -> None:
    many = draw(POPULATIONS[name], 40, seed=3)
    assert draw(POPULATIONS[name], 7, seed=3) == many[:7]
    assert draw(POPULATIONS[name], 40, seed=3) == many
    others = draw(POPULATIONS[name], 40, seed=4)
    assert not {device.seed for device in many} & {device.seed for device in others}


@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize("count", [8, 20, 100, 1000])
def test_even_a_few_devices_have_the_classes_in_proportion(name: str, count: int) -> None:
    population = POPULATIONS[name]
    total = sum(kind.share for kind in population.classes)
    for seed in range(5):
        found = Counter(device.kind.name for device in draw(population, count, seed))
        for kind in population.classes:
            assert abs(found[kind.name] - count * kind.share / total) < 3


def test_speeds_and_links_are_log_normal_around_the_class() -> None:
    kind = replace(PLAIN, speed_spread=0.3, link_spread=0.7)
    devices = draw(Mixture("test", (kind,)), 3000, seed=1)
    for key, spread in (("macs_per_second", 0.3), ("down", 0.7), ("up", 0.7)):
        logs = [float(np.log(getattr(device, key) / getattr(kind, key))) for device in devices]
        assert median(logs) == pytest.approx(0, abs=0.05)
        assert stdev(logs) == pytest.approx(spread, rel=0.05)
    # One draw for both directions, none shared with the speed.
    assert all(device.down == device.up for device in devices)
    speeds, links = ([getattr(device, key) for device in devices] for key in ("macs_per_second", "down"))
    assert abs(np.corrcoef(np.log(speeds), np.log(links))[0, 1]) < 0.05


def test_mishaps_happen_as_often_as_the_class_says() -> None:
    device = FieldDevice(replace(PLAIN, dropout=0.1, straggler=0.2, slowdown=3.0), 5, 1e9, 1e6, 1e6)
    slow = [device.slowdown(f"r{k}-x") for k in range(4000)]
    assert set(slow) == {1.0, 3.0}
    assert slow.count(3.0) / 4000 == pytest.approx(0.2, abs=0.02)
    lost = [device.lost_at(f"r{k}-x") for k in range(4000)]
    when = [share for share in lost if share is not None]
    assert len(when) / 4000 == pytest.approx(0.1, abs=0.015)
    assert 0 < min(when) < 0.05
    assert 0.95 < max(when) < 1
    assert [device.lost_at(f"r{k}-x") for k in range(50)] == lost[:50]


MODELS = [
    ModelConfig("cnn", (1, 8, 8), 10, (16, 32)),
    ModelConfig("cnn", (9, 128), 6, (32, 64)),
    ModelConfig("resnet", (3, 32, 32), 10, (16, 32, 64), (1, 1, 1)),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("name", POPULATIONS)
def test_memory_maps_the_classes_onto_the_usual_widths(name: str, model: ModelConfig) -> None:
    training = TrainConfig()
    planner = Planner(make_method("width", model, [1.0, 0.5, 0.25], training).offers(), training)
    full = planner.sizes[-1].cost.memory
    for device in draw(POPULATIONS[name], 12, seed=0):
        size = planner.fit("x", device.profile(10, full))
        assert size is not None
        assert size.spec.options.width == {1.0: 1.0, 0.6: 0.5, 0.3: 0.25}[device.kind.memory]


def test_a_profile_announces_the_device() -> None:
    device = draw(POPULATIONS["phones"], 1, seed=0)[0]
    profile = device.profile(42, 1000)
    assert (profile.tier, profile.examples) == (device.kind.name, 42)
    assert profile.memory == device.kind.memory * 1000
    assert (profile.macs_per_second, profile.down, profile.up) == (device.macs_per_second, device.down, device.up)


@pytest.mark.parametrize(
    ("name", "differ"),
    [
        ("compute-limited", {"macs_per_second"}),
        ("memory-limited", {"memory"}),
        ("bandwidth-limited", {"down", "up"}),
    ],
)
def test_a_regime_differs_in_its_own_resource_only(name: str, differ: set[str]) -> None:
    first, *others = POPULATIONS[name].classes
    keys = {field.name for field in fields(DeviceClass)} - {"name", "share"}
    found = {key for key in keys for kind in others if getattr(kind, key) != getattr(first, key)}
    assert found == differ
    assert [kind.name for kind in POPULATIONS[name].classes] == [kind.name for kind in POPULATIONS["mixed"].classes]


def test_the_experiment_knows_every_preset() -> None:
    for name in POPULATIONS:
        assert Section(preset=name).mixture is POPULATIONS[name]
    with pytest.raises(ValueError, match="must be one of phones, pi, "):
        Section(preset="none")


def test_every_class_says_where_its_numbers_come_from() -> None:
    assert all(kind.source for population in POPULATIONS.values() for kind in population.classes)
    page = Path(__file__).resolve().parents[3] / "docs" / "simulations.md"
    assert presets.table() in page.read_text(), (
        "run python -m diastole.simulations.field.presets and paste what it prints"
    )


def test_always_is_always() -> None:
    assert all(Always().online(seed, 0.0, 1e6 * seed, 0.0) for seed in range(20))


def test_by_day_and_night_the_share_online_follows_the_local_hour() -> None:
    model = DayNight(low=0.1, high=0.4, peak=2.0)
    assert model.share(2.0) == pytest.approx(0.4)
    assert model.share(14.0) == pytest.approx(0.1)
    for zone in (0.0, -8.0, 5.5):
        for hour in range(0, 24, 3):
            online = [model.online(seed, zone, (50 + hour - zone) * HOUR, 0.0) for seed in range(4000)]
            assert sum(online) / 4000 == pytest.approx(model.share(50 + hour), abs=0.025)


def test_by_day_and_night_a_device_is_online_once_a_day_around_the_peak() -> None:
    model = DayNight(low=0.0, high=0.8, peak=2.0)
    for seed in range(30):
        states = [model.online(seed, 0.0, (14 + step / 10) * HOUR, 0.0) for step in range(240)]
        changes = sum(a != b for a, b in pairwise(states))
        assert changes in (0, 2)
        assert states[120] == any(states)


@pytest.mark.slow
def test_churn_is_an_on_off_process_with_the_given_means() -> None:
    model = Churn(on=3 * HOUR, off=HOUR)
    step, spells = 240.0, Counter[tuple[int, bool]]()
    lengths: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(120):
        last, length = model.online(seed, 0.0, 0.0, 0.0), 0.0
        # One day: at midnight the process starts anew.
        for k in range(1, int(DAY / step)):
            state = model.online(seed, 0.0, k * step, 0.0)
            spells[seed, state] += 1
            length += step
            if state != last:
                lengths[last].append(length)
                last, length = state, 0.0
    online = sum(count for (_, state), count in spells.items() if state) / sum(spells.values())
    assert online == pytest.approx(0.75, abs=0.03)
    # Spells cut by the ends of the day and those shorter than a step are missing: nearly, not exactly, the means.
    assert np.mean(lengths[False]) == pytest.approx(HOUR, rel=0.15)
    assert np.mean(lengths[True]) == pytest.approx(3 * HOUR, rel=0.25)


@pytest.mark.parametrize("model", [DayNight(0.1, 0.4), Churn(3 * HOUR, HOUR)])
def test_asking_in_another_order_changes_nothing(model: DayNight | Churn) -> None:
    times = [k * 977.0 for k in range(400)]
    forwards = [model.online(9, -3.0, now, 0.0) for now in times]
    backwards = [model.online(9, -3.0, now, 0.0) for now in reversed(times)]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == 2


def drained(model: Battery, joules: float, since: float, now: float, zone: float) -> float:
    """Return the level by small steps."""
    step = 5.0
    for k in range(round((now - since) / step)):
        hour = ((since + (k + 0.5) * step) / HOUR + zone) % 24
        plugged = hour >= model.plug or hour < model.unplug
        joules = min(max(joules + step * (model.charger if plugged else -model.idle), 0.0), model.capacity)
    return joules


@pytest.mark.parametrize("zone", [0.0, -7.0, 5.5])
def test_a_battery_drains_by_day_and_charges_by_night(zone: float) -> None:
    model = Battery(capacity=5000.0, floor=0.3, idle=0.1, charger=0.7)
    for k in range(12):
        since, span = uniform(k, "since") * 3 * DAY, 5.0 * int(uniform(k, "span") * 40_000)
        start = uniform(k, "start") * model.capacity
        expected = drained(model, start, since, since + span, zone)
        assert model.level(start, since, since + span, zone) == pytest.approx(expected, abs=5.0)
    # In two steps or in one, and no time at all.
    middle = model.level(4000.0, 0.0, 1.3 * DAY, zone)
    assert model.level(middle, 1.3 * DAY, 2 * DAY, zone) == pytest.approx(model.level(4000.0, 0.0, 2 * DAY, zone))
    assert model.level(1234.0, 5.0, 5.0, zone) == 1234.0
    # Exactly at the turns.
    for turn in (7, 22):
        at = (turn - zone) * HOUR
        assert model.level(1000.0, at, at + 10, zone) == pytest.approx(drained(model, 1000.0, at, at + 10, zone))


def test_a_battery_below_its_floor_takes_no_task() -> None:
    kind = replace(PLAIN, availability=Battery(capacity=1000.0, floor=0.3, idle=0.0, charger=1.0))
    device = FieldDevice(kind, 1, 1e9, 1e6, 1e6)
    assert 500 <= device.battery() <= 1000
    noon = 12 * HOUR
    assert device.online(noon, 301.0)
    assert not device.online(noon, 299.0)
    assert device.charged(0.0, 22 * HOUR, 31 * HOUR) == 1000.0


def test_mains_power_never_runs_out() -> None:
    device = FieldDevice(PLAIN, 1, 1e9, 1e6, 1e6)
    assert device.battery() == device.charged(device.battery(), 0.0, DAY) == float("inf")


def test_speeds_by_kind_spread_like_the_one_speed() -> None:
    kind = replace(PLAIN, speed_spread=0.5, speeds=dict.fromkeys(KINDS, 2e9))
    for device in draw(Mixture("m", (kind,)), 5, seed=3):
        assert device.speeds["matrix"] == pytest.approx(2 * device.macs_per_second)
        assert device.profile(10, 100).speeds == device.speeds


def test_speeds_of_some_kinds_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="memory"):
        replace(PLAIN, speeds={"dense": 1e9})
