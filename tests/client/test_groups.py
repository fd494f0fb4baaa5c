"""What the control groups leave to a process."""

import os
from pathlib import Path

import pytest

from diastole.client import environment, groups
from diastole.client.budget import Budget


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A process with eight cores, in a control group below another."""
    monkeypatch.setattr(groups, "PROCESS", tmp_path)
    monkeypatch.setattr(groups, "CGROUPS", tmp_path / "cgroups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    inner = tmp_path / "cgroups" / "slice" / "agent"
    inner.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/slice/agent\n")
    return inner


def test_whole_cores_of_the_smallest_quota_count(group: Path) -> None:
    assert groups.cores() == 8
    (group / "cpu.max").write_text("max 100000\n")
    assert groups.cores() == 8
    (group.parent / "cpu.max").write_text("350000 100000\n")
    assert groups.cores() == 3
    (group / "cpu.max").write_text("20000 50000\n")
    assert groups.quota() == pytest.approx(0.4)
    assert groups.cores() == 1
    (group / "cpu.max").write_text("90000000 100000\n")
    (group.parent / "cpu.max").write_text("nonsense")
    assert groups.cores() == 8


def test_a_quota_settles_the_threads_before_torch_does(group: Path) -> None:
    unlimited = dict[str, str]()
    environment.prepare(unlimited)
    assert "OMP_NUM_THREADS" not in unlimited
    (group / "cpu.max").write_text("200000 100000\n")
    limited, mine = dict[str, str](), {"OMP_NUM_THREADS": "5"}
    environment.prepare(limited)
    environment.prepare(mine)
    assert (limited["OMP_NUM_THREADS"], mine["OMP_NUM_THREADS"]) == ("2", "5")


def test_an_owner_allows_fewer_threads_and_never_more_than_there_are(group: Path) -> None:
    (group / "cpu.max").write_text("400000 100000\n")
    assert [Budget(threads=threads).most_threads for threads in (None, 1, 4, 9)] == [4, 1, 4, 4]
    assert [Budget(threads=3).within(threads) for threads in (0, 1, 3, 9)] == [3, 1, 3, 3]
    with pytest.raises(ValueError, match="threads 0; expected at least 1"):
        Budget(threads=0)
