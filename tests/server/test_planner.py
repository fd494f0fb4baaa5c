import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from diastole.models.cost import Cost
from diastole.models.levers import LEVERS, NO_LEVERS, Levers
from diastole.models.method import Size
from diastole.models.methods.widths.width import spec_of
from diastole.models.moment import Moment
from diastole.models.training import TrainConfig
from diastole.models.ways import Way
from diastole.models.work import training_work
from diastole.proto.coding import Coding
from diastole.proto.profile import Profile
from diastole.server.planner import Limits, Planner
from diastole.server.sampler import Uniform


def size(width: float, macs: int, memory: int, count: int) -> Size:
    return Size(spec_of(width), Cost(count // 4, macs // 3, macs, memory, count, 2 * count, tensors=0))


SMALL, MIDDLE, LARGE = SIZES = [size(0.25, 100, 1000, 40), size(0.5, 400, 4000, 160), size(1.0, 1600, 16000, 640)]
TRAINING = TrainConfig(epochs=2)
# Ten examples of LARGE take 32 seconds, of MIDDLE 8, of SMALL 2: memory and arithmetic grow alike, calls are free.
SPEED = training_work(LARGE.cost, TRAINING, 10) / 32


EVERYONE = Uniform(seed=1)


def planner(deadline: float | None = None, **more: bool) -> Planner:
    return Planner(SIZES, TRAINING, deadline, **more)


def crowd(count: int) -> dict[str, Profile]:
    return {f"d{k:02}": Profile("t", 10) for k in range(count)}


def drawn(plan: Planner, number: int, devices: dict[str, Profile], cohort: int | None = None) -> list[str]:
    return [assignment.device for assignment in plan.plan(Moment(number), devices, Uniform(1, cohort))]


# Budgets


def test_of_a_device_that_says_what_is_free_all_that_training_takes_counts() -> None:
    large = Size(LARGE.spec, replace(LARGE.cost, passing=500))
    plan = Planner([SMALL, MIDDLE, large], TRAINING)
    held = Planner([SMALL, MIDDLE, large], TRAINING, coding=Coding.of("top-k:0.1", "delta"))
    budget, enough, more = (Profile("t", 10, memory) for memory in (16000, 16500, 16500 + 2 * large.cost.bytes_up))
    assert plan.fits("d", budget)[-1] == large
    assert plan.fits("d", replace(budget, memory_free=True))[-1] == MIDDLE
    assert plan.fits("d", replace(enough, memory_free=True))[-1] == large
    assert "it takes 0.0165 MB of memory" in plan.why_not("d", replace(budget, memory_free=True), large)
    # The version that it received last, and what its last update left out.
    assert held.fits("d", replace(enough, memory_free=True))[-1] == MIDDLE
    assert held.fits("d", replace(more, memory_free=True))[-1] == large


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(), LARGE),
        (Limits(training_macs=400), MIDDLE),
        (Limits(training_macs=399), SMALL),
        (Limits(memory=15999), MIDDLE),
        # A payload is what goes up, which here is twice what comes down.
        (Limits(payload=320), MIDDLE),
        (Limits(payload=319), SMALL),
        (Limits(training_macs=1600, memory=4000, payload=80), SMALL),
        (Limits(payload=79), None),
    ],
)
def test_a_tier_is_spared_what_is_above_its_limits(limits: Limits, expected: Size | None) -> None:
    plan = Planner(SIZES, TRAINING, limits={"weak": limits})
    assert plan.fit("d", Profile("weak", 10)) is expected
    assert plan.fit("d", Profile("strong", 10)) is LARGE
    given = plan.plan(Moment(), {"a": Profile("strong", 10), "b": Profile("weak", 10)}, EVERYONE)
    assert {a.device: a.size for a in given} == {"a": LARGE} | ({"b": expected} if expected else {})


def test_the_methods_own_rule_chooses_among_what_fits() -> None:
    asked: list[tuple[Mapping[str, Sequence[Size]], Moment]] = []

    def smallest(fits: Mapping[str, Sequence[Size]], moment: Moment) -> dict[str, Size]:
        asked.append((fits, moment))
        return {device: sizes[0] for device, sizes in fits.items()}

    plan = Planner(SIZES, TRAINING, assign=smallest)
    moment = Moment(3, 9, 5)
    devices = {"a": Profile("t", 10), "b": Profile("t", 10, memory=4000), "c": Profile("t", 10, 10)}
    given = plan.plan(moment, devices, EVERYONE)
    assert [(a.device, a.size) for a in given] == [("a", SMALL), ("b", SMALL)]
    assert asked == [({"a": SIZES, "b": [SMALL, MIDDLE]}, moment)]


def test_only_exported_sizes_stand_for_a_device() -> None:
    plan = Planner([SMALL, replace(MIDDLE, exported=False), LARGE], TRAINING)
    assert plan.fit("d", Profile("t", 10, memory=4000)) is SMALL


@pytest.mark.parametrize(
    ("memory", "expected"),
    [(None, LARGE), (16000, LARGE), (15999, MIDDLE), (4000, MIDDLE), (3999, SMALL), (1000, SMALL), (999, None)],
)
def test_memory_decides_the_size(memory: int | None, expected: Size | None) -> None:
    assert planner().fit("d", Profile("t", 10, memory=memory)) is expected


@pytest.mark.parametrize(
    ("profile", "deadline", "expected"),
    [
        (Profile("t", 10, macs_per_second=SPEED), 32.1, LARGE),
        (Profile("t", 10, macs_per_second=SPEED), 31.9, MIDDLE),
        (Profile("t", 10, macs_per_second=SPEED), 8.1, MIDDLE),
        (Profile("t", 10, macs_per_second=SPEED), 7.9, SMALL),
        (Profile("t", 10, macs_per_second=SPEED), 1.9, None),
        (Profile("t", 10, macs_per_second=SPEED), None, LARGE),
        (Profile("t", 20, macs_per_second=SPEED), 32.1, MIDDLE),
        # Down 640, 160 or 40 bytes; up twice that.
        (Profile("t", 10, down=10.0), 64.0, LARGE),
        (Profile("t", 10, down=10.0), 63.9, MIDDLE),
        (Profile("t", 10, up=10.0), 128.0, LARGE),
        (Profile("t", 10, up=10.0), 31.9, SMALL),
        (Profile("t", 10, macs_per_second=SPEED, down=10.0, up=20.0), 160.1, LARGE),
        (Profile("t", 10, macs_per_second=SPEED, down=10.0, up=20.0), 159.9, MIDDLE),
        # What is not known takes no time.
        (Profile("t", 10), 0.001, LARGE),
        # The tighter of the two budgets.
        (Profile("t", 10, memory=4000, macs_per_second=SPEED), 2.1, SMALL),
        (Profile("t", 10, memory=1000, macs_per_second=SPEED), 32.1, SMALL),
    ],
)
def test_the_deadline_decides_the_size(profile: Profile, deadline: float | None, expected: Size | None) -> None:
    assert planner(deadline=deadline).fit("d", profile) is expected


def test_training_seconds_are_work_over_speed() -> None:
    plan = planner()
    assert plan.training_seconds("d", Profile("t", 10, macs_per_second=SPEED), LARGE) == pytest.approx(32.0)
    assert plan.training_seconds("d", Profile("t", 10), LARGE) is None


def test_budgets_can_be_ignored() -> None:
    plan = planner(deadline=0.1, ignore_budgets=True)
    weak = Profile("t", 10, memory=1, macs_per_second=1.0, down=1.0, up=1.0)
    assert [item.size for item in plan.plan(Moment(1), {"a": weak, "b": Profile("t", 10)}, EVERYONE)] == [LARGE, LARGE]


def test_a_device_that_nothing_fits_is_left_out_and_leaves_its_place_to_others() -> None:
    devices = crowd(4) | {"d01": Profile("t", 10, memory=999)}
    assert drawn(planner(), 1, devices) == ["d00", "d02", "d03"]
    for number in range(20):
        assert len(drawn(planner(), number, devices, 3)) == 3
        assert "d01" not in drawn(planner(), number, devices, 2)
    assert planner().plan(Moment(1), {"d": Profile("t", 10, memory=1)}, EVERYONE) == []


# The past


def test_past_rounds_correct_the_prediction_of_that_device_alone() -> None:
    plan, profile = planner(deadline=40.0), Profile("t", 10, macs_per_second=SPEED)
    assert plan.fit("slow", profile) is LARGE
    plan.observe("slow", profile, LARGE, 64.0)
    assert plan.training_seconds("slow", profile, LARGE) == pytest.approx(48.0)
    assert plan.training_seconds("slow", profile, MIDDLE) == pytest.approx(12.0)
    assert plan.fit("slow", profile) is MIDDLE
    assert plan.training_seconds("other", profile, LARGE) == pytest.approx(32.0)
    assert plan.fit("other", profile) is LARGE


@pytest.mark.parametrize("factor", [0.1, 1.0, 7.0])
def test_the_correction_tends_to_what_is_observed_whatever_the_size(factor: float) -> None:
    plan, profile = planner(), Profile("t", 10, macs_per_second=SPEED)
    sizes = itertools.cycle([(LARGE, 32.0), (SMALL, 2.0), (MIDDLE, 8.0)])
    errors = []
    for (size, seconds), _ in zip(sizes, range(120), strict=False):
        plan.observe("d", profile, size, seconds * factor)
        errors.append(abs(plan.training_seconds("d", profile, LARGE) - 32.0 * factor))
    assert errors[:3] == sorted(errors[:3], reverse=True)
    assert errors[-1] < 1e-3 * 32.0 * factor


def test_a_size_that_is_told_wrongly_gets_a_correction_of_its_own_which_is_kept() -> None:
    plan, profile = planner(), Profile("t", 10, macs_per_second=SPEED)
    true = {1.0: (LARGE, 32.0), 0.5: (MIDDLE, 8.0 * 1.4), 0.25: (SMALL, 2.0 * 0.7)}
    for _ in range(60):
        for size, seconds in true.values():
            plan.observe("d", profile, size, seconds)
    again = planner()
    again.resume(plan.memory())
    for size, seconds in true.values():
        # Each observation moves the others a little.
        assert plan.training_seconds("d", profile, size) == pytest.approx(seconds, rel=0.01)
        assert again.training_seconds("d", profile, size) == plan.training_seconds("d", profile, size)


def test_one_observation_counts_half() -> None:
    plan, profile = planner(), Profile("t", 10, macs_per_second=SPEED)
    seconds = 32.0
    for observed in (10.0, 100.0, 20.0):
        plan.observe("d", profile, LARGE, observed)
        seconds = (seconds + observed) / 2
        assert plan.training_seconds("d", profile, LARGE) == pytest.approx(seconds)


def test_what_cannot_be_predicted_is_not_corrected() -> None:
    plan = planner()
    plan.observe("d", Profile("t", 10), LARGE, 99.0)
    assert plan.training_seconds("d", Profile("t", 10, macs_per_second=SPEED), LARGE) == pytest.approx(32.0)


def test_what_a_transfer_takes_is_not_held_against_the_processor() -> None:
    plan = planner(deadline=40.0)
    # Of the 80 seconds that are assumed, LARGE's 640 and 1280 bytes take 48: the rest is as predicted.
    plan.missed("far", Profile("t", 10, macs_per_second=SPEED, down=40.0, up=40.0), LARGE, 40.0)
    # Here transfers take longer than all of them.
    plan.missed("farther", Profile("t", 10, macs_per_second=SPEED, down=1.0, up=1.0), LARGE, 40.0)
    plan.missed("slow", Profile("t", 10, macs_per_second=SPEED), LARGE, 40.0)
    near = Profile("t", 10, macs_per_second=SPEED)
    assert plan.training_seconds("far", near, LARGE) == pytest.approx(32.0)
    assert plan.training_seconds("farther", near, LARGE) == pytest.approx(32.0)
    assert plan.training_seconds("slow", near, LARGE) == pytest.approx((32 + 80) / 2)


def test_a_device_that_was_slow_once_gets_another_chance() -> None:
    plan, devices = planner(deadline=2.1), {"d": Profile("t", 10, macs_per_second=SPEED)}
    assert drawn(plan, 1, devices) == ["d"]
    plan.observe("d", devices["d"], SMALL, 4.0)
    taken = []
    for number in range(2, 40):
        taken.append(drawn(plan, number, devices))
        if taken[-1]:
            break
        assert plan.training_seconds("d", devices["d"], SMALL) > 2.0
    # A correction of 1.5 is below 1.05 when nine tenths have been taken ten times over.
    assert 20 < len(taken) < 25
    assert taken[-1] == ["d"]


def test_a_payloads_header_takes_its_time_too() -> None:
    large = replace(LARGE, cost=replace(LARGE.cost, header=160))
    plan = Planner([SMALL, large], TRAINING, deadline=100.0)
    assert plan.fit("d", Profile("t", 10, down=8.0)) is large
    assert plan.fit("d", Profile("t", 10, down=7.9)) is SMALL
    assert plan.fit("d", Profile("t", 10, up=14.3)) is SMALL


# The draw


def test_without_a_cohort_everyone_takes_part_in_name_order() -> None:
    devices = crowd(6)
    for cohort in (None, 6, 7):
        assert drawn(planner(), 1, dict(reversed(devices.items())), cohort) == sorted(devices)


def test_a_cohort_is_distinct_devices_in_name_order() -> None:
    devices = dict(reversed(crowd(9).items()))
    for number in range(30):
        names = drawn(planner(), number, devices, 4)
        assert names == sorted(set(names))
        assert len(names) == 4


def test_a_codec_decides_what_a_transfer_takes() -> None:
    profile = Profile("t", 10, down=10.0, up=20.0)
    cost = replace(LARGE.cost, bytes_down=640, bytes_up=400, header=160, spared=40, shapes=((4, 25),))
    size = replace(LARGE, cost=cost)
    # 800 bytes down, of which 280 are not trained, and the other 520 up.
    assert planner().transfer_seconds(profile, size) == 80.0 + 26.0
    coding = Coding.of("int8", "fp16")
    coded = Planner(SIZES, TRAINING, coding=coding)
    down, up = coding.down.payload_bytes([(4, 25)], 520), coding.up.payload_bytes([(4, 25)], 520)
    assert 200 < down < 300
    assert 100 < up < down + 150
    assert coded.transfer_seconds(profile, size) == (280 + down) / 10 + up / 20


# What devices decline


def test_a_device_that_declines_a_size_gets_smaller_ones_until_it_announces_more_memory() -> None:
    plan, me = planner(), Profile("t", 10, memory=20000)
    assert plan.fit("d", me) is LARGE
    plan.declined("d", me, LARGE)
    assert [plan.fit("d", me), plan.fit("other", me)] == [MIDDLE, LARGE]
    plan.declined("d", me, MIDDLE)
    assert plan.fit("d", replace(me, memory=19999)) is SMALL
    assert plan.fit("d", replace(me, memory=None)) is SMALL
    assert plan.fit("d", replace(me, memory=20001)) is LARGE
    # Another coordinator that goes on, from a file, knows it too.
    resumed = planner()
    resumed.resume(json.loads(json.dumps(plan.memory())))
    assert resumed.fit("d", replace(me, memory=19999)) is SMALL
    assert resumed.memory() == plan.memory()
    # A device that says nothing of its memory is believed about what it declined.
    unknown = replace(me, memory=None)
    plan.declined("d", unknown, SMALL)
    assert plan.fit("d", unknown) is plan.fit("d", me) is None


def test_a_device_that_tells_its_speeds_is_judged_by_the_kinds_of_work() -> None:
    slow, quick = (
        Size(spec_of(width), replace(SIZES[0].cost, work={kind: 1e9})) for width, kind in ((0.5, "a"), (1.0, "b"))
    )
    plan = Planner([slow, quick], TrainConfig(batch_size=32), deadline=2.0)
    told = Profile("", 32, macs_per_second=1.0, speeds={"a": 1e8, "b": 1e9})
    assert plan.training_seconds("d", told, slow) == pytest.approx(10)
    assert plan.fits("d", told) == [quick]
    plan.observe("d", told, quick, 3.0)
    assert plan.training_seconds("d", told, quick) == pytest.approx(2)


# Levers


AGAIN, PARTS = Levers(recompute=True), Levers(micro_batch=4)


def aided(size: Size) -> list[Way]:
    """Recomputation takes a third more arithmetic and half the memory, parts a quarter of it and more calls yet."""
    memory, macs = size.cost.memory, size.cost.training_macs
    again = replace(size.cost, memory=memory // 2, training_macs=macs * 4 // 3, moved=memory * 4 // 3 - memory // 2)
    parts = replace(size.cost, memory=memory // 4, training_macs=macs * 2, moved=memory * 2 - memory // 4)
    return [Way(NO_LEVERS, size.cost), Way(AGAIN, again), Way(PARTS, parts)]


@pytest.mark.parametrize(
    ("memory", "levers", "expected"),
    [
        (16000, LEVERS, (LARGE, NO_LEVERS)),
        (15999, LEVERS, (LARGE, AGAIN)),
        (7999, LEVERS, (LARGE, PARTS)),
        (7999, ("recompute",), (MIDDLE, NO_LEVERS)),
        (3999, LEVERS, (MIDDLE, AGAIN)),
        (3999, ("micro-batch",), (MIDDLE, PARTS)),
        (3999, (), (SMALL, NO_LEVERS)),
        (999, LEVERS, (SMALL, AGAIN)),
    ],
)
def test_a_device_gets_a_larger_size_by_levers_that_it_offers(
    memory: int, levers: tuple[str, ...], expected: tuple[Size, Levers]
) -> None:
    plan = Planner(SIZES, TRAINING, ways=aided)
    (found,) = plan.plan(Moment(1), {"d": Profile("t", 10, memory, levers=levers)}, EVERYONE)
    assert (found.size, found.levers) == expected


def test_ways_are_not_measured_where_sizes_fit_plainly() -> None:
    asked = list[Size]()
    plan = Planner(SIZES, TRAINING, ways=lambda size: asked.append(size) or aided(size))  # type: ignore[func-returns-value]
    plan.plan(Moment(1), {"a": Profile("t", 10, 16000, levers=LEVERS), "b": Profile("t", 10, 5000)}, EVERYONE)
    assert not asked
    plan.plan(Moment(1), {"a": Profile("t", 10, 5000, levers=LEVERS)}, EVERYONE)
    assert set(asked) == {LARGE}


def test_a_device_gets_the_way_that_takes_the_least_time_by_its_own_speeds() -> None:
    def way(memory: int, levers: Levers, **work: float) -> Way:
        return Way(levers, replace(LARGE.cost, memory=memory, work=work))

    twice, parts = way(8000, AGAIN, dense=4e9, calls=10.0), way(8000, Levers(micro_batch=4), dense=3e9, calls=40.0)
    half = way(7000, Levers(half_state=True), dense=3e9, calls=10.0)
    sizes = [Size(LARGE.spec, replace(LARGE.cost, work={"dense": 3e9, "calls": 10.0}))]
    for dense, calls, best in ((1e10, 100.0, twice), (1e9, 1e4, parts)):
        plan = Planner(sizes, TRAINING, ways=lambda size: (twice, parts, half))
        speeds = {"dense": dense, "calls": calls}
        profile = Profile("t", 10, 8000, macs_per_second=SPEED, speeds=speeds, levers=LEVERS)
        assert plan.levers("d", profile, sizes[0]) == best.levers
        assert plan.levers("d", replace(profile, speeds={}), sizes[0]) == twice.levers


def test_the_time_that_a_lever_takes_counts() -> None:
    def given(deadline: float) -> tuple[Size, Levers]:
        plan = Planner(SIZES, TRAINING, deadline, ways=aided)
        profile = Profile("t", 10, 8000, SPEED, levers=LEVERS)
        (found,) = plan.plan(Moment(1), {"d": profile}, EVERYONE)
        return found.size, found.levers

    assert given(43) == (LARGE, AGAIN)
    # Plainly LARGE would take 32 seconds.
    assert given(33) == (MIDDLE, NO_LEVERS)


def test_a_tier_limit_counts_what_the_way_takes() -> None:
    def given(**limits: int) -> tuple[Size, Levers]:
        plan = Planner(SIZES, TRAINING, limits={"t": Limits(**limits)}, ways=aided)
        (found,) = plan.plan(Moment(1), {"d": Profile("t", 10, levers=LEVERS)}, EVERYONE)
        return found.size, found.levers

    assert given(memory=8000) == (LARGE, AGAIN)
    assert given(memory=8000, training_macs=1600) == (MIDDLE, NO_LEVERS)


def test_the_planner_learns_from_a_way_as_from_plain_training() -> None:
    profile = Profile("t", 10, macs_per_second=SPEED, levers=LEVERS)
    plain, way = (Planner(SIZES, TRAINING, ways=aided) for _ in range(2))
    plain.observe("d", profile, LARGE, 2 * (plain.training_seconds("d", profile, LARGE) or 0))
    way.observe("d", profile, LARGE, 2 * (way.training_seconds("d", profile, LARGE, AGAIN) or 0), AGAIN)
    assert plain.memory() == way.memory()
    assert plain.memory()["d"] == 1.5


def test_a_device_that_declines_a_way_may_be_given_one_of_less_memory() -> None:
    profile, plan = Profile("t", 10, 8000, levers=LEVERS), Planner(SIZES, TRAINING, ways=aided)
    plan.declined("d", profile, LARGE, AGAIN)
    (found,) = plan.plan(Moment(1), {"d": profile}, EVERYONE)
    assert (found.size, found.levers) == (LARGE, PARTS)


@pytest.mark.parametrize("speed", [1e-300, 1.0, 1e300])
def test_whatever_seconds_a_device_reports_its_correction_stays_a_number_that_can_be_kept(speed: float) -> None:
    plan, profile = planner(), Profile("t", 10, macs_per_second=speed)
    for seconds in (1e308, 0.0, 1e308, 1e308, 0.0, 0.0):
        plan.observe("one", profile, LARGE, seconds)
        assert 0 < plan.memory().get("one", 1.0) <= 1e6
