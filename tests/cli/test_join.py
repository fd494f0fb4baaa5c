"""The options of an agent that is left on a device."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from diastole.client.statefolder import StateFolder

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    np.savez(tmp_path / "mine.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.arange(4))
    return tmp_path / "mine.npz"


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [("--hours", "22", "hours '22'"), ("--cpu", "1.5", "cpu 1.5"), ("--cpu", "0", "cpu 0; expected")],
)
def test_a_budget_that_is_none_is_refused(run: Run, shard: Path, option: str, value: str, expected: str) -> None:
    code, _, err = run("join", "127.0.0.1:1", "--data", shard, option, value)
    assert code == 2
    assert expected in err


def test_a_second_agent_under_one_name_is_refused(run: Run, shard: Path, tmp_path: Path) -> None:
    with closing(StateFolder(tmp_path / "state")):
        code, _, err = run("join", "127.0.0.1:1", "--data", shard, "--state", tmp_path / "state", "--patience", "0")
    assert code == 2
    assert err == (
        f"error: {tmp_path / 'state'}: another agent keeps its state here; give this one a --name or a --state of its "
        "own\n"
    )


def test_a_signal_is_read_in_windows(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "kitchen.csv"
    path.write_text("ax,activity\n" + "".join(f"{k},walk\n" for k in range(9)))
    words = ("--set", "data.label=activity", "--set", 'data.classes=["sit", "walk"]', "--window", "4")
    join = ("join", "127.0.0.1:1", "--data", path, *words, "--state", tmp_path / "state")
    code, out, _ = run(*join, "--explain")
    assert code == 0
    assert "this device's name: kitchen" in out
    assert "how many examples it trains on: 3" in out
    path.write_text("ax,activity\n" + "".join(f"{k},walk\n" for k in range(99)))
    code, out, _ = run(*join, "--explain", "--test-share", "0.5")
    assert code == 0
    # Of 48 windows that begin two rows apart, ten in turn for each side, and one between.
    assert "It keeps 20 examples for a test of its own and trains on the other 24." in out


def test_class_counts_are_told_only_if_the_owner_says_so(run: Run, shard: Path, tmp_path: Path) -> None:
    join = ("join", "127.0.0.1:1", "--data", shard, "--state", tmp_path / "state", "--explain")
    _, out, _ = run(*join)
    assert "how many examples it has of each class" not in out
    assert "never leave the device: examples and labels, how many there are of each class (--share-classes)" in out
    _, out, _ = run(*join, "--share-classes")
    assert "how many examples it has of each class: 1, 1, 1, 1" in out
    assert "never leave the device: examples and labels and gradients" in out
    np.savez(shard, x=np.zeros((4, 8, 8), np.uint8), y=np.arange(4.0))
    code, _, err = run(*join, "--share-classes")
    assert (code, err) == (
        2,
        "error: class counts of targets that are no labels; a label for each example is accepted\n",
    )
