"""What the operator decides by devices' names, as the planner honours and explains it."""

from typing import Any

import pytest
from scripted import TRAINING

from diastole.experiments.errors import ExperimentError
from diastole.experiments.run import make_run
from diastole.models.errors import SpecError
from diastole.models.methods.registry import make_method
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.proto.profile import Profile
from diastole.server.errors import TierError
from diastole.server.overrides import Override, Overrides
from diastole.server.planner import Limits, Planner
from diastole.server.sampler import Uniform
from diastole.server.tiers import Tiers
from diastole.simulations.simulation import Simulation

MODEL = ModelConfig(name="cnn", input_shape=(1, 8, 8), classes=10, widths=(16, 16))
SIZES = make_method("width", MODEL, [1.0, 0.5, 0.25], TRAINING).offers()
SMALL, MIDDLE, LARGE = SIZES


def planner(limits: dict[str, Limits] | None = None, **table: Override) -> Planner:
    return Planner(SIZES, TRAINING, limits=limits or {}, overrides=Overrides(table))


def given(plan: Planner, profile: Profile, *names: str) -> dict[str, str]:
    made = plan.plan(Moment(), dict.fromkeys(names, profile), Uniform(1))
    return {each.device: each.size.spec.label for each in made}


def reasons(plan: Planner, profile: Profile, name: str = "pi-1") -> list[str]:
    return [plan.why_not(name, profile, size) for size in SIZES]


ANY, MIDDLING = Profile("test", 10), Profile("test", 10, memory=MIDDLE.cost.memory)


@pytest.mark.parametrize(
    ("size", "expected", "in_less"),
    [
        ("", LARGE, MIDDLE),
        ("largest", LARGE, MIDDLE),
        ("smallest", SMALL, SMALL),
        (MIDDLE.spec.label, MIDDLE, MIDDLE),
        (SMALL.spec.label, SMALL, SMALL),
        (LARGE.spec.label, LARGE, None),
    ],
)
def test_a_device_gets_the_size_that_the_operator_wants_if_it_fits(size: str, expected: Any, in_less: Any) -> None:
    plan = planner(**{"pi-*": Override(size=size)})
    for profile, found in ((ANY, expected), (MIDDLING, in_less)):
        others = {"other": (LARGE if profile is ANY else MIDDLE).spec.label}
        assert given(plan, profile, "pi-1", "other") == others | ({"pi-1": found.spec.label} if found else {})
        fits = plan.fits("pi-1", profile)
        assert [not why for why in reasons(plan, profile)] == [each in fits for each in SIZES]
        assert plan.able("pi-1", profile) == bool(found)


def test_the_reason_says_what_the_operator_wants() -> None:
    plan = planner(**{"pi-*": Override(size=MIDDLE.spec.label)})
    wanted = f"the operator gives it {MIDDLE.spec.label!r} by an override"
    assert reasons(plan, ANY) == [wanted, "", wanted]
    assert (
        reasons(planner(**{"pi-1": Override(size="smallest")}), ANY)[1:]
        == ["the operator gives it 'smallest' by an override"] * 2
    )
    too_small = Profile("test", 10, memory=SMALL.cost.memory)
    assert "MB of memory" in reasons(plan, too_small)[1]


def test_an_excluded_device_takes_no_part() -> None:
    plan = planner(**{"pi-*": Override(exclude=True), "pi-2": Override()})
    assert list(given(plan, ANY, "pi-1", "pi-2", "other")) == ["other", "pi-2"]
    assert reasons(plan, ANY) == ["the operator excludes it by an override"] * 3


def test_a_tier_decides_which_limits_hold() -> None:
    limits = {"poor": Limits(memory=SMALL.cost.memory), "rich": Limits()}
    plan = planner(limits, **{"pi-*": Override(tier="poor"), "big-*": Override(tier="rich")})
    found = given(plan, Profile("poor", 10), "pi-1", "big-1", "other")
    assert found == {"pi-1": SMALL.spec.label, "big-1": LARGE.spec.label, "other": SMALL.spec.label}
    assert given(plan, Profile("rich", 10), "pi-1", "other") == {"pi-1": SMALL.spec.label, "other": LARGE.spec.label}
    assert reasons(plan, Profile("rich", 10))[2] == "it takes more than the operator lets a device of tier poor spend"


def test_a_name_holds_before_a_pattern_and_the_first_pattern_before_the_next() -> None:
    table = {"pi-*": Override(size="smallest"), "*": Override(exclude=True), "pi-7": Override(size="largest")}
    overrides = Overrides(table)
    assert [overrides.of(name) for name in ("pi-7", "pi-8", "x")] == [table["pi-7"], table["pi-*"], table["*"]]


def test_a_device_is_in_the_operators_tier_whatever_it_asks_for() -> None:
    tiers = Tiers({"large": (), "small": ("pi-*",)}, Overrides({"pi-9": Override(tier="large")}))
    assert tiers.place("pi-9", "small") == tiers.place("pi-9", "") == "large"
    with pytest.raises(TierError):
        tiers.place("pi-8", "large")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"tier": "huge"}, "overrides.pi-*.tier: no tier 'huge'; accepted: 'large', 'medium', 'small'"),
        ({"sise": "x"}, "sise"),
        ({"exclude": "often"}, "exclude"),
    ],
)
def test_a_wrong_override_is_one_line_when_the_file_is_read(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        Simulation.parse({"overrides": {"pi-*": override}}, "x.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_size_that_is_not_on_offer_is_one_line_before_the_run() -> None:
    with pytest.raises(SpecError) as caught:
        make_run(Simulation.parse({"overrides": {"pi-*": {"size": "width 2"}}}, "x.toml"))
    accepted = "'largest', 'smallest', 'width 0.25', 'width 0.5', 'width 1'"
    assert str(caught.value) == f"overrides.pi-*.size: no size 'width 2'; accepted: {accepted}"
    make_run(Simulation.parse({"overrides": {"pi-*": {"size": "width 0.5"}}}, "x.toml"))


def test_patterns_are_bounded_and_names_are_not() -> None:
    assert Simulation.parse({"overrides": {f"pi-{k}": {} for k in range(500)}}, "x.toml")
    with pytest.raises(ExperimentError, match="101 patterns; at most 100"):
        Simulation.parse({"overrides": {f"pi-{k}-*": {} for k in range(101)}}, "x.toml")
