"""Samplers by name, against references that draw one device at a time."""

import json
import math
from collections import Counter

import pytest
import torch

from diastole.models.moment import Moment
from diastole.models.seeds import generator
from diastole.models.task import Report
from diastole.server.history import History, Past
from diastole.server.oort import Oort, utilities
from diastole.server.sampler import SAMPLERS, Candidate, FairShare, Sampler, SamplerError, TierBalanced, Uniform
from diastole.server.settings import RoundConfig

NAMES = [f"d{k:02d}" for k in range(12)]
SEED = 5


def draw(sampler: Sampler, number: int, about: dict[str, Candidate]) -> list[str]:
    return list(sampler.sample(sorted(about), Moment(number, 100, seed=99), about.__getitem__))


def strangers(**more: str) -> dict[str, Candidate]:
    return {name: Candidate(name, more.get(name, "")) for name in NAMES}


def test_samplers_are_known_by_name() -> None:
    made = {name: SAMPLERS[name].make(SEED, 3) for name in ("uniform", "fair-share", "tier-balanced", "oort")}
    assert [type(sampler) for sampler in made.values()] == [Uniform, FairShare, TierBalanced, Oort]
    with pytest.raises(SamplerError, match="unknown sampler 'luck'; known: uniform, fair-share, tier-balanced, oort"):
        _ = SAMPLERS["luck"]
    with pytest.raises(ValueError, match="must be one of uniform, fair-share, tier-balanced, oort, not 'luck'"):
        RoundConfig(sampler="luck")


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("cohort", [None, 12, 13])
def test_every_sampler_takes_everyone_if_there_are_no_more(name: str, cohort: int | None) -> None:
    assert draw(SAMPLERS[name].make(SEED, cohort), 1, strangers()) == NAMES
    assert draw(SAMPLERS[name].make(SEED, cohort), 1, {}) == []


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_returns_a_cohort_in_order_that_seed_and_round_decide(name: str) -> None:
    rounds = [draw(SAMPLERS[name].make(SEED, 5), number, strangers()) for number in range(1, 9)]
    assert all(len(set(drawn)) == 5 and drawn == sorted(drawn) for drawn in rounds)
    torch.manual_seed(1)
    assert rounds == [draw(SAMPLERS[name].make(SEED, 5), number, strangers()) for number in range(1, 9)]
    assert len({tuple(drawn) for drawn in rounds}) > 4
    assert rounds != [draw(SAMPLERS[name].make(SEED + 1, 5), number, strangers()) for number in range(1, 9)]


def test_a_fair_share_takes_those_that_were_asked_least_often() -> None:
    history, asked = History(), Counter(dict.fromkeys(NAMES, 0))
    for number in range(1, 30):
        about = {name: Candidate(name, past=history.of(name)) for name in NAMES}
        drawn = draw(FairShare(SEED, 5), number, about)
        # One device after another, the first of the round's own order among those that were asked least often.
        order, left = [NAMES[k] for k in torch.randperm(12, generator=generator(SEED, number, "cohort"))], set(NAMES)
        for _ in range(5):
            least = min(asked[name] for name in left)
            left.remove(next(name for name in order if name in left and asked[name] == least))
        assert drawn == sorted(set(NAMES) - left)
        asked.update(drawn)
        history.note(number, drawn, {})
        assert max(asked.values()) - min(asked.values()) <= 1
        assert {name: history.of(name).asked for name in NAMES} == asked


def test_balanced_tiers_have_as_many_devices_each_as_there_are() -> None:
    tiers = ["large"] + ["medium"] * 4 + ["small"] * 7
    about = strangers(**dict(zip(NAMES, tiers, strict=True)))
    counts, seen = Counter[tuple[int, ...]](), Counter[str]()
    for number in range(1, 200):
        drawn = draw(TierBalanced(SEED, 6), number, about)
        there = Counter(about[name].tier for name in drawn)
        counts[there["large"], there["medium"], there["small"]] += 1
        seen.update(drawn)
    # The one large device always; of the other five places, the odd one goes to either tier.
    assert set(counts) == {(1, 2, 3), (1, 3, 2)}
    assert min(counts.values()) > 70
    # 199 rounds, 2.5 of 4 and of 7: 124 and 71 expected, with standard deviations below 7.
    assert all(100 < seen[name] < 150 for name in NAMES[1:5])
    assert all(50 < seen[name] < 95 for name in NAMES[5:])


def field(number: int) -> dict[str, Candidate]:
    """Return devices with pasts and speeds, a third of which nobody has asked yet."""
    draws = torch.rand(12, 4, generator=generator(number, "field"), dtype=torch.float64).tolist()
    return {
        name: Candidate(
            name,
            seconds=0.0 if k % 5 == 4 else 10 * a,
            past=Past(k % 3, 1 + int(b * number), int(100 * c), 3 * d) if k % 3 else Past(),
        )
        for k, (name, (a, b, c, d)) in enumerate(zip(NAMES, draws, strict=True))
    }


def oort_by_hand(about: dict[str, Candidate], number: int, cohort: int) -> set[str]:
    known, new = ([c for c in about.values() if bool(c.past.asked) is asked] for asked in (True, False))
    seconds = sorted(c.seconds for c in about.values() if c.seconds > 0)
    half = len(seconds) // 2
    duration = seconds[half] if len(seconds) % 2 else (seconds[half - 1] + seconds[half]) / 2
    losses = sorted(c.past.examples * c.past.loss for c in known)
    # As many as 95 of 100 are at most the cut.
    cut = next(value for k, value in enumerate(losses, 1) if 100 * k >= 95 * len(losses))
    worth = {}
    for c in known:
        util = min(c.past.examples * c.past.loss, cut) / cut + (0.1 * math.log(number) / c.past.last) ** 0.5
        worth[c.name] = util * (duration / c.seconds) ** 2 if c.seconds > duration else util
    exploring = 0.9
    for _ in range(number - 1):
        exploring *= 0.98
    explored = int(max(exploring, 0.2) * cohort)
    exploited = min(cohort - explored, len(known))
    explored = min(cohort - exploited, len(new))
    exploited = cohort - explored
    floor = 0.95 * sorted(worth.values())[-exploited]
    found: set[str] = set()
    for weights, count, purpose in (
        ({name: value for name, value in worth.items() if value >= floor}, exploited, "exploit"),
        ({c.name: duration / c.seconds if c.seconds else 1.0 for c in new}, explored, "explore"),
    ):
        draws = torch.rand(len(weights), generator=generator(SEED, number, purpose), dtype=torch.float64).tolist()
        keys = {name: u ** (1 / w) for (name, w), u in zip(weights.items(), draws, strict=True)}
        for _ in range(count):
            best = max(keys, key=lambda name: keys[name])
            del keys[best]
            found.add(best)
    return found


@pytest.mark.parametrize("number", [2, 7, 40, 300])
@pytest.mark.parametrize("cohort", [2, 5, 11])
def test_oort_draws_what_its_formulas_say(number: int, cohort: int) -> None:
    about = field(number)
    assert set(draw(Oort(SEED, cohort), number, about)) == oort_by_hand(about, number, cohort)


def test_oort_prefers_loss_speed_and_those_not_asked_for_long() -> None:
    plain = Candidate("plain", seconds=10, past=Past(1, 50, 10, 1.0))
    lossy = Candidate("lossy", seconds=10, past=Past(1, 50, 10, 2.0))
    slow = Candidate("slow", seconds=20, past=Past(1, 50, 10, 1.0))
    stale = Candidate("stale", seconds=10, past=Past(1, 1, 10, 1.0))
    worth = utilities([plain, lossy, slow, stale], 60, 10.0)
    assert worth[1] > worth[0] > worth[2]
    assert worth[2] == pytest.approx(worth[0] / 4, rel=1e-12)
    assert worth[3] > worth[0]


def test_one_loss_beyond_all_others_does_not_draw_more_than_the_cut() -> None:
    usual = [Candidate(f"d{k}", past=Past(1, 9, 10, 1.0 + k / 40)) for k in range(39)]
    liar = Candidate("liar", past=Past(1, 9, 10, 1e9))
    worth = utilities([*usual, liar], 10, 1.0)
    # The cut is at the 38th of 40.
    assert worth[-1] == pytest.approx(worth[37], rel=1e-12)
    assert worth[0] > worth[-1] / 3


def test_a_history_survives_a_file_and_takes_its_last_round_back() -> None:
    history = History()
    history.note(1, ["b", "a"], {"a": Report(8, 2.5, 1.0)})
    history.note(4, ["a", "c"], {"c": Report(3, 0.1, 1.0)})
    again = History()
    again.resume(json.loads(json.dumps(history.memory())))
    for each in (history, again):
        assert [each.of(name) for name in "abcd"] == [Past(2, 4, 8, 2.5), Past(1, 1), Past(1, 4, 3, 0.1), Past()]
        each.undo()
        assert [each.of(name) for name in "abcd"] == [Past(1, 1, 8, 2.5), Past(1, 1), Past(), Past()]
        each.undo()
        assert each.of("a") == Past(1, 1, 8, 2.5)
