"""When an owner lets a device work."""

from datetime import datetime
from pathlib import Path

import pytest

from diastole.client.budget import Budget, Hours, Watchman, metered, on_mains


def at(hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 3, 1, hour, minute)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("22:00-06:00", [(22, 0), (23, 59), (0, 0), (5, 59)], [(6, 0), (21, 59), (12, 0)]),
        ("9:30-17:00", [(9, 30), (16, 59)], [(9, 29), (17, 0), (0, 0)]),
        ("18:00-24:00", [(18, 0), (23, 59)], [(0, 0), (17, 59)]),
    ],
)
def test_hours_may_span_midnight(text: str, inside: list[tuple[int, int]], outside: list[tuple[int, int]]) -> None:
    hours = Hours.parse(text)
    assert [at(*time) in hours for time in inside + outside] == [True] * len(inside) + [False] * len(outside)
    assert Hours.parse(str(hours)) == hours


@pytest.mark.parametrize(
    "text", ["", "22-6", "22:00-22:00", "25:00-06:00", "10:60-11:00", "20:00-24:01", "1:00-2:00 x"]
)
def test_hours_that_are_none_are_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="expected a part of the day, such as 22:00-06:00"):
        Hours.parse(text)


def supply(folder: Path, name: str, **files: str) -> None:
    (folder / name).mkdir(exist_ok=True)
    for file, text in files.items():
        (folder / name / file).write_text(text + "\n")


def test_a_device_is_on_mains_if_a_supply_is_or_if_it_has_no_battery(tmp_path: Path) -> None:
    assert on_mains(tmp_path / "none")
    assert on_mains(tmp_path)
    supply(tmp_path, "mouse", type="Battery", scope="Device", status="Discharging")
    assert on_mains(tmp_path)
    supply(tmp_path, "BAT0", type="Battery", status="Discharging")
    assert not on_mains(tmp_path)
    supply(tmp_path, "BAT0", status="Charging")
    assert on_mains(tmp_path)
    supply(tmp_path, "AC", type="Mains", online="0")
    assert not on_mains(tmp_path)
    supply(tmp_path, "usb", type="USB", online="1")
    assert on_mains(tmp_path)


WIRED = "GENERAL.STATE:100 (connected)\nGENERAL.METERED:no (guessed)"
MODEM = "GENERAL.STATE:100 (connected)\nGENERAL.METERED:yes (guessed)"
AWAY = "GENERAL.STATE:30 (disconnected)\nGENERAL.METERED:yes"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", False),
        (WIRED, False),
        (MODEM, True),
        (f"{WIRED}\n\n{MODEM}\n", True),
        (f"{WIRED}\n\n{AWAY}\n", False),
        ("?\n", False),
    ],
)
def test_a_metered_link_counts_only_while_it_is_in_use(answer: str, expected: bool) -> None:
    assert metered(answer) is expected


def test_what_is_in_the_way_is_said_in_words(tmp_path: Path) -> None:
    hour, asked = [12], list[int]()

    def ask() -> str:
        asked.append(1)
        return MODEM

    supply(tmp_path, "BAT0", type="Battery", status="Discharging")
    pause = tmp_path / "pause"
    pause.touch()

    def obstacle(**budget: object) -> str:
        return Watchman(Budget(**budget), lambda: at(hour[0]), tmp_path, ask).obstacle()  # type: ignore[arg-type]

    everything = {"hours": Hours.parse("22:00-06:00"), "charging": True, "metered": True, "pause_file": pause}
    assert obstacle() == ""
    assert obstacle(**everything) == f"{pause} exists"
    pause.unlink()
    assert obstacle(**everything) == "outside 22:00-06:00"
    hour[0] = 23
    assert obstacle(**everything) == "on battery"
    supply(tmp_path, "BAT0", status="Full")
    watchman = Watchman(Budget(**everything), lambda: at(hour[0]), tmp_path, ask)  # type: ignore[arg-type]
    # NetworkManager is not asked at every look.
    assert [watchman.obstacle() for _ in range(3)] == ["the link is metered"] * 3
    assert len(asked) == 1


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_of_the_processor_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"expected a share of the time from 0\.01 to 1"):
        Budget(cpu=share)
