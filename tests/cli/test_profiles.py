"""Coordinators by name, what commands print, and what a shell completes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from printed import check_printed, documented

from diastole.cli.admin.app import app
from diastole.cli.admin.schema import schemas

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "diastole" / "coordinators.toml"


def test_a_command_calls_the_coordinator_that_is_named(run: Run, home: Path, tmp_path: Path) -> None:
    assert run("admin", "profiles", "list")[:2] == (0, f"no coordinator is named in {home}\n")
    assert run("admin", "profiles", "add", "lab", "127.0.0.1:1")[:2] == (0, "lab is 127.0.0.1:1, the default\n")
    code, out, _ = run("admin", "profiles", "add", "field", "[::1]:2", "--token-file", tmp_path / 'tok"en', "--json")
    assert code == 0
    check_printed(("profiles", "add"), json.loads(out))
    rows = json.loads(run("admin", "profiles", "list", "--json")[1])
    check_printed(("profiles", "list"), rows)
    assert [(row["name"], row["default"], row["token_file"]) for row in rows] == [
        ("field", False, str(tmp_path / 'tok"en')),
        ("lab", True, ""),
    ]
    for words, called in (((), "127.0.0.1:1"), (("--address", "127.0.0.1:3"), "127.0.0.1:3")):
        code, _, err = run("admin", "runs", "list", *words)
        assert (code, f"no coordinator's admin service at {called} " in err) == (3, True)
    code, _, err = run("admin", "runs", "list", "--at", "field")
    assert (code, err) == (
        4,
        f'error: {tmp_path}/tok"en: no such file; the coordinator says where its admin token is\n',
    )
    assert run("admin", "runs", "list", "--at", "lab", "--address", "127.0.0.1:3")[0] == 2
    assert run("admin", "profiles", "remove", "lab")[0] == 0
    assert "there are: field" in run("admin", "runs", "list", "--at", "lab")[2]


@pytest.mark.parametrize(
    "text", ["default = 3", "x = [", "[coordinators.a]\nadres = 'x:1'", "[coordinators.a]\naddress = 'x'"]
)
def test_a_file_that_cannot_be_read_is_one_line(run: Run, home: Path, text: str) -> None:
    home.parent.mkdir()
    home.write_text(text)
    code, _, err = run("admin", "runs", "list", "--at", "a")
    assert (code, err.count("\n"), err.startswith("error: ")) == (2, 1, True)


def test_the_documented_schemas_are_those_of_the_messages(run: Run) -> None:
    assert documented() == schemas(app), "run make docs"
    one = json.loads(run("admin", "schema", "runs", "list")[1])
    assert list(one["$defs"]) == ["Run"]
    assert one["$defs"]["Run"]["properties"]["round"]["description"] == "Rounds closed so far, and rounds planned."
    assert run("admin", "schema", "runs")[0] == 2


def test_a_shell_completes_operators_commands(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("admin", "profiles", "add", "lab", "127.0.0.1:1")
    monkeypatch.setenv("_DIASTOLE_COMPLETE", "complete_bash")
    for words, found in (
        ("diastole admin r", ["runs", "rounds"]),
        ("diastole admin runs st", ["start", "stop"]),
        ("diastole admin runs list --at l", ["lab"]),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        assert run()[1].split() == found
