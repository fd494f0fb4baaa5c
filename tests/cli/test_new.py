"""A project that `diastole new` has written works at once; `config check` finds what is wrong with one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]

WRONG = """
methd = "width"
seed = -1
learning_rate = 0.1
[rounds]
cuont = 3
[trainin]
epochs = 2
[training]
deadline = 3.0
[tiers]
small = {devices = 2, widht = 0.25}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    before, paths = set(sys.modules), list(sys.path)
    yield tmp_path
    sys.path[:] = paths
    for name in [name for name in sys.modules if name.startswith("my_sensors") and name not in before]:
        del sys.modules[name]


def test_a_new_project_is_checked_and_simulated_as_its_readme_says(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run("new", "my-sensors")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "try it: cd my-sensors && diastole simulate experiment.toml"
    assert "MODULE" not in "".join(path.read_text() for path in (here / "my-sensors").rglob("*.*"))
    monkeypatch.chdir(here / "my-sensors")
    code, out, err = run("config", "check", "experiment.toml", "--set", "rounds.cohort=3", "--json")
    assert (code, err) == (0, "")
    planned = json.loads(out)["run"]
    assert (planned["cohort"], planned["devices"]) == (3, {"large": 2, "medium": 3, "small": 5})
    assert planned["sizes"]["small"]["memory"] < planned["sizes"]["large"]["memory"]
    code, out, err = run("simulate", "experiment.toml", "--set", "rounds.count=1", "--json", "--figures", "svg")
    assert code == 0, err
    assert json.loads(out)["rounds"][-1]["accuracy"] > 0.26
    assert (here / "my-sensors" / "report" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_new_project_learns_in_a_process_of_its_own(run: Run, here: Path) -> None:
    run("new", "my-sensors")
    code, out, err = run("config", "check", "my-sensors/experiment.toml")
    assert (code, err) == (0, "")
    assert "experiment.toml: nothing is wrong" in out
    assert "20 rounds of 10 devices" in out
    # As the installed command: the folder is not on the path of imports.
    command = "import sys; sys.path = [p for p in sys.path if p]; from diastole.cli.main import main; main()"
    simulate = [sys.executable, "-c", command, "simulate", "experiment.toml", "--json", "--set", "engine=processes"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        simulate, cwd=here / "my-sensors", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rounds"][-1]["accuracy"] > 0.8


def test_a_project_is_not_written_over_another(run: Run, here: Path) -> None:
    (here / "there").mkdir()
    for name, text in (("there", "is there already"), ("../up", "a name begins with a letter"), ("1st", "'1st'")):
        code, out, err = run("new", name)
        assert (code, out) == (2, "")
        assert text in err
    assert [path.name for path in here.iterdir()] == ["there"]


def test_each_wrong_key_is_told_with_the_nearest_right_one(run: Run, here: Path) -> None:
    (here / "wrong.toml").write_text(WRONG)
    code, out, err = run("config", "check", "wrong.toml")
    assert (code, err) == (2, "error: wrong.toml: 8 faults\n")
    found = dict(line.split(": ", 1) for line in out.splitlines())
    for key, meant in (
        ("methd", "method"),
        ("rounds.cuont", "rounds.count"),
        ("trainin", "training"),
        ("tiers.small.widht", "tiers.small.width"),
        ("learning_rate", "training.learning_rate"),
        ("training.deadline", "rounds.deadline"),
    ):
        assert found[key].endswith(f"; did you mean {meant}?"), found[key]
    assert found["seed"].startswith("Input should be greater")
    assert found["tiers.small.width"] == "is missing"
    code, out, _ = run("admin", "config", "check", "wrong.toml", "--json")
    assert (code, len(json.loads(out)["faults"])) == (2, 8)
    (here / "none.toml").write_text('[data]\nname = "npz"\npath = "none.npz"\n')
    code, out, err = run("config", "check", "none.toml")
    assert (code, "none.npz" in out, err) == (2, True, "error: none.toml: 1 fault\n")
    assert run("config", "check", "nowhere.toml")[0] == 2
