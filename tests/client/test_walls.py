"""How far a process is from its walls of memory."""

import resource
from pathlib import Path

import pytest
import torch

from diastole.client import groups, walls
from diastole.models.errors import BatchError

MIB = 1 << 20


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1000 MiB available, and a process in a control group below another."""
    monkeypatch.setattr(walls, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(groups, "PROCESS", tmp_path)
    monkeypatch.setattr(groups, "CGROUPS", tmp_path / "cgroups")
    monkeypatch.setattr(walls, "free_bytes", lambda: 5 * MIB)
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (resource.RLIM_INFINITY,) * 2)
    inner = tmp_path / "cgroups" / "slice" / "agent"
    inner.mkdir(parents=True)
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {1000 * 1024} kB\n")
    (tmp_path / "cgroup").write_text("0::/slice/agent\n")
    (tmp_path / "status").write_text(f"VmSize:\t{300 * 1024} kB\nVmData:\t{200 * 1024} kB\n")
    return tmp_path


def limit(folder: Path, most: str, used: int, cached: int = 0) -> None:
    (folder / "memory.max").write_text(most + "\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")


def test_the_nearest_wall_counts(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = files / "cgroups" / "slice"
    assert walls.room() == 1000 * MIB
    limit(group / "agent", "max", 5)
    assert walls.room() == 1000 * MIB
    limit(group, str(900 * MIB), 100 * MIB, cached=50 * MIB)
    assert walls.room() == 850 * MIB
    limit(group / "agent", str(800 * MIB), 100 * MIB)
    assert walls.room() == 700 * MIB
    limits = {resource.RLIMIT_DATA: 500 * MIB, resource.RLIMIT_AS: 700 * MIB}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind],) * 2)
    # What is free in the heap can be had again without asking the system.
    assert walls.room() == 305 * MIB
    limits[resource.RLIMIT_AS] = 400 * MIB
    assert walls.room() == 105 * MIB
    assert not walls.near(100 * MIB)
    assert walls.near(101 * MIB)
    (files / "meminfo").write_text(f"MemAvailable: {7 * 1024} kB\n")
    assert walls.room() == 7 * MIB
    limits[resource.RLIMIT_AS] = MIB
    assert walls.room() == 0


def test_the_heap_is_given_back_only_where_that_may_count(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(walls, "give_back", lambda: given.append(1))
    assert walls.room() == 1000 * MIB
    assert not given
    (files / "meminfo").write_text(f"MemAvailable: {39 * 1024} kB\n")
    assert walls.room() == 39 * MIB
    assert given


def test_where_no_wall_is_known_there_is_room(files: Path) -> None:
    (files / "meminfo").unlink()
    (files / "cgroup").write_text("12:memory:/old\n")
    (files / "status").write_bytes(b"\xff")
    assert walls.room() is None
    assert not walls.near(MIB)
    assert walls.Peak().grown() == 0


def test_a_peak_is_of_its_block_even_if_it_is_over() -> None:
    def take(mib: int) -> None:
        torch.ones(mib * MIB // 4)

    take(128)
    walls.give_back()
    peak = walls.Peak()
    assert peak.grown() < 16 * MIB
    take(64)
    assert 56 * MIB < peak.grown() < 90 * MIB


def test_a_want_of_memory_is_known_behind_any_error() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(1 << 60)
    assert walls.out_of_memory(failed.value) == f"another {4 << 60} bytes"
    wrapped = BatchError("one example")
    wrapped.__cause__ = failed.value
    assert walls.out_of_memory(wrapped)
    assert walls.out_of_memory(MemoryError()) == "more"
    assert not walls.out_of_memory(RuntimeError("another"))
    assert not walls.out_of_memory(None)
