"""Which tiers a device may be in, against the rule written out tier by tier."""

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diastole.server.errors import TierError
from diastole.server.tiers import Tiers

NAMES = ["pi-1", "pi-2", "jetson-1", "PI-1", "x", "[x]"]
PATTERNS = ["*", "pi-*", "*-1", "pi-?", "pi-1", "[xy]", "nobody", "jetson-*"]
TIERS = ["large", "middle", "small", "tiny"]
tables = st.dictionaries(st.sampled_from(TIERS), st.lists(st.sampled_from(PATTERNS), max_size=2), max_size=4)


def by_hand(table: dict[str, list[str]], device: str) -> list[str]:
    """From the largest tier whose patterns name the device on: those that name it, and those that name nobody."""
    found, reached = [], not any(fnmatchcase(device, p) for patterns in table.values() for p in patterns)
    for tier, patterns in table.items():
        named = any(fnmatchcase(device, pattern) for pattern in patterns)
        reached = reached or named
        if reached and (named or not patterns):
            found.append(tier)
    return found


@given(tables, st.sampled_from(NAMES))
def test_a_device_may_be_in_the_tiers_that_name_it_and_in_smaller_open_ones(
    table: dict[str, list[str]], device: str
) -> None:
    assert Tiers(table).open_to(device) == by_hand(table, device)


@given(tables, st.sampled_from(NAMES), st.sampled_from([*TIERS, "", "none such"]))
def test_a_device_is_where_it_asks_to_be_or_nowhere(table: dict[str, list[str]], device: str, asked: str) -> None:
    allowed = by_hand(table, device)
    if asked in allowed:
        assert Tiers(table).place(device, asked) == asked
    elif not asked and allowed:
        assert Tiers(table).place(device, asked) == allowed[-1]
    else:
        with pytest.raises(TierError) as caught:
            Tiers(table).place(device, asked)
        message = str(caught.value)
        assert "\n" not in message
        assert message.endswith(": " + (", ".join(allowed) or "none"))
        assert ("there is no tier" in message) == (bool(asked) and asked not in table)


@given(tables, st.sampled_from(NAMES), st.sampled_from(TIERS))
def test_naming_a_device_in_one_tier_never_opens_a_larger_one_to_it(
    table: dict[str, list[str]], device: str, tier: str
) -> None:
    if tier in table and not any(fnmatchcase(device, p) for patterns in table.values() for p in patterns):
        named = table | {tier: [*table[tier], device.replace("[", "[[]")]}
        order = list(table)
        assert all(order.index(found) >= order.index(tier) for found in Tiers(named).open_to(device))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("huge", "there is no tier 'huge'; device 'pi-1' may be in: small"),
        ("large", "device 'pi-1' may not be in tier 'large'; it may be in: small"),
    ],
)
def test_a_refusal_says_what_would_be_accepted(asked: str, message: str) -> None:
    with pytest.raises(TierError) as caught:
        Tiers({"large": ["big-*"], "small": []}).place("pi-1", asked)
    assert str(caught.value) == message
    with pytest.raises(TierError, match="device 'x' may not be in tier 'any'; it may be in: none"):
        Tiers({"large": ["big-*"]}).place("x", "")
