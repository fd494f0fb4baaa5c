"""The folder that outlives an agent: whole files, bounded, for one agent at a time."""

import os
import signal
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from diastole.client.errors import FolderError
from diastole.client.statefolder import StateFolder, default_folder


def age(folder: Path, *names: str) -> None:
    """Let the first be the oldest."""
    for k, name in enumerate(names):
        os.utime(folder / name, (k, k))


def test_what_is_written_is_there_for_the_next_agent_and_for_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "one"
    with closing(StateFolder(path)) as folder:
        assert folder.read("step") is None
        assert folder.write("step", b"a")
        assert folder.write("step", b"bc")
    with closing(StateFolder(path)) as folder:
        assert folder.read("step") == b"bc"
        folder.remove("step")
        folder.remove("step")
        assert folder.read("step") is None
        assert folder.write("update.json", b"{}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((path / "update.json").stat().st_mode) == 0o600


def test_a_second_agent_is_refused_in_words_until_the_first_is_gone(tmp_path: Path) -> None:
    take = f"folder = StateFolder(Path({str(tmp_path)!r}))"
    code = f"from diastole.client.statefolder import *\n{take}; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(FolderError, match="another agent keeps its state here; give this one a --name or"):
            StateFolder(tmp_path)
        other.send_signal(signal.SIGKILL)
    StateFolder(tmp_path).close()


def test_the_oldest_go_first_when_it_is_full_and_what_can_never_fit_is_not_kept(tmp_path: Path) -> None:
    with closing(StateFolder(tmp_path, most=10)) as folder:
        for name in ("object-1", "object-2", "step"):
            assert folder.write(name, b"123")
        age(tmp_path, "object-2", "step", "object-1")
        assert folder.write("update", b"12345")
        assert [folder.read(name) for name in ("object-1", "object-2", "step")] == [b"123", None, None]
        # What it replaces takes no room.
        assert folder.write("update", b"1234567")
        assert folder.read("object-1") == b"123"
        assert not folder.write("update", b"12345678901")
        assert folder.read("update") is None


def test_what_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    with closing(StateFolder(tmp_path)) as folder:
        assert folder.write("step", b"old")
        (tmp_path / "step.part").mkdir()
        assert not folder.write("step", b"new")
        assert folder.read("step") is None


def test_remains_of_a_crash_are_removed_and_what_is_not_an_agents_is_left_alone(tmp_path: Path) -> None:
    kept = ("object-1.part", "object-1", "notes.txt", "notes.part")
    for name in (*kept, "step.part", "update.safetensors.part"):
        (tmp_path / name).write_bytes(b"x")
    with closing(StateFolder(tmp_path, most=0)) as folder:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted((*kept, "lock"))
        assert not folder.write("step", b"x")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "notes.part", "notes.txt"]
        with pytest.raises(ValueError, match="is not a name of an agent's file"):
            folder.write("../step", b"x")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FolderError, match=r"file/one: .*; --state takes a folder that can be written"):
        StateFolder(tmp_path / "file" / "one")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_folder("one") == tmp_path / "diastole" / "one"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_folder("one") == Path.home() / ".local" / "state" / "diastole" / "one"
