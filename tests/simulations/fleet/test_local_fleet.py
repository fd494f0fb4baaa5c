"""A fleet of real processes: it starts, changes, suffers and ends, and nothing of it is left."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from diastole.simulations.fleet import local
from diastole.simulations.fleet.chaos import KINDS, Act, disturb, drawn
from diastole.simulations.fleet.fleet import Fleet, Plan, Tier
from diastole.simulations.fleet.local import Local
from diastole.simulations.fleet.member import FleetError, Member, Size

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="agents are found in /proc")
Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[3]
# Nobody listens on port 1: agents wait for a coordinator.
NOBODY = "127.0.0.1:1"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    # Agents that come so far as to read it wait: nobody writes into a FIFO.
    for tier in ("large", "small"):
        (tmp_path / "shards" / tier).mkdir(parents=True)
        for number in range(3):
            os.mkfifo(tmp_path / "shards" / tier / f"device-{number}.npz")
    return tmp_path / "shards"


@pytest.fixture
def fleet(tmp_path: Path, data: Path) -> Iterator[Fleet]:
    tiers = {"large": Tier(1, Size(1.0, 1 << 30)), "small": Tier(2, Size(0.5, 700 << 20, "160kB"))}
    made = Fleet.begin(tmp_path / "fleet", Plan(NOBODY, str(data), tiers, local=True))
    yield made
    made.down()


def processes(fleet: Fleet) -> dict[str, int]:
    return {name: pid for pid, name in fleet.back._found()}  # type: ignore[attr-defined]


def test_agents_run_within_their_limits_and_nothing_of_them_is_left(fleet: Fleet) -> None:
    assert fleet.start(str) == ["large-1", "small-1", "small-2"]
    assert fleet.start(str) == []
    found = processes(fleet)
    for name, size in {"large-1": 1 << 30, "small-1": 700 << 20}.items():
        (line,) = (line for line in Path(f"/proc/{found[name]}/limits").read_text().splitlines() if "data size" in line)
        assert line.split()[3:5] == [str(size)] * 2
        assert len(os.sched_getaffinity(found[name])) == 1
    words = Path(f"/proc/{found['small-2']}/cmdline").read_text().split("\0")
    assert words[words.index("--memory") + 1] == "160kB"
    assert words[words.index("--cpu") + 1] == "0.5"
    assert Path(words[words.index("--data") + 1]).name == "device-1.npz"

    fleet.scale({"small": 1})
    assert set(fleet.back.states()) == {"large-1", "small-1"}
    assert not (fleet.agents / "small-2").exists()
    assert Fleet.open(fleet.folder).plan == fleet.plan

    assert fleet.down() == ["large-1", "small-1"]
    assert fleet.back.states() == {}
    assert list(fleet.folder.iterdir()) == []


def test_another_shell_ends_a_fleet_whose_plan_has_fewer_agents_than_run(fleet: Fleet) -> None:
    fleet.start(str)
    document = json.loads((fleet.folder / "fleet.json").read_text())
    document["tiers"]["small"]["count"] = 0
    (fleet.folder / "fleet.json").write_text(json.dumps(document))
    assert Fleet.open(fleet.folder).down() == ["large-1", "small-1", "small-2"]
    assert fleet.back.states() == {}


def test_chaos_does_what_its_seed_draws_and_mends_it(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.start(str)
    before, seen = processes(fleet), list[tuple[str, dict[str, str]]]()
    acts = [Act("pause", ("large-1",)), Act("kill", ("small-1",)), Act("throttle", ("small-2",))]
    told = list[Act]()

    def wait(seconds: float) -> None:
        if seconds:
            seen.append((told[-1].kind, dict(fleet.back.states())))

    states, passed, look = list[str](), [0.0], time.sleep

    def sleep(seconds: float) -> None:
        if seconds > local.LOOK_SECONDS:
            states.append(fleet.back.states()["small-2"])
            passed[0] += seconds
        else:
            look(seconds)

    monkeypatch.setattr(local, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: passed[0]))
    disturb(fleet, iter(acts), 0.3, 0, told.append, wait)
    assert told == acts
    assert seen[0] == ("pause", {"large-1": "paused", "small-1": "running", "small-2": "running"})
    assert seen[1] == ("kill", {"large-1": "running", "small-2": "running"})
    # Throttled, an agent runs and stands by turns.
    assert states == ["running", "paused"] * 2
    assert set(fleet.back.states().values()) == {"running"}
    after = processes(fleet)
    assert {name for name in after if after[name] != before[name]} == {"small-1"}


def test_chaos_brings_no_agent_back_to_a_fleet_that_was_taken_down(fleet: Fleet) -> None:
    fleet.start(str)
    disturb(fleet, iter([Act("kill", ("small-1",))] * 2), 1, 0, lambda act: None, lambda seconds: fleet.down())
    assert fleet.back.states() == {}


def test_the_same_seed_draws_the_same_acts() -> None:
    names = ["b", "a", "c"]
    first = list(drawn(names, KINDS, 50, 2, 7))
    assert first == list(drawn(sorted(names), KINDS, 50, 2, 7))
    assert first != list(drawn(names, KINDS, 50, 2, 8))
    assert {act.kind for act in first} == set(KINDS)
    assert {name for act in first for name in act.names} == set(names)
    assert all(len(set(act.names)) == 2 for act in first)


def test_control_groups_get_the_limits_and_the_agent(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With folders for control groups: the machine of the tests has none that could be written to."""
    group = tmp_path / "group"
    group.mkdir()
    with pytest.raises(FleetError, match="no cpu and memory"):
        Local("f", tmp_path, NOBODY, group=str(group))
    (group / "cgroup.subtree_control").write_text("cpu memory\n")
    back = Local("f", tmp_path / "agents", NOBODY, group=str(group))
    member = Member("small-1", "small", Size(0.5, 700 << 20), data / "small/device-0.npz")
    back.start(member)
    own = group / "diastole-f/small-1"
    try:
        texts = {name: (own / name).read_text() for name in ("memory.max", "cpu.max", "cgroup.procs")}
        assert texts == {"memory.max": str(700 << 20), "cpu.max": "50000 100000", "cgroup.procs": "0"}
        quotas = list[str]()
        monkeypatch.setattr(local.time, "sleep", lambda seconds: quotas.append((own / "cpu.max").read_text()))
        back.throttle([member], 0.25, 0)
        assert [*quotas, (own / "cpu.max").read_text()] == ["12500 100000", "50000 100000"]
    finally:
        back.remove(["small-1"])
    assert back.states() == {}


def test_the_command_says_in_a_line_what_is_wrong(run: Run, tmp_path: Path, data: Path) -> None:
    folder = "--folder", tmp_path / "fleet"
    start = "fleet", "up", NOBODY, "--data", data, "--local", *folder
    assert "no fleet is there" in run("fleet", "list", *folder)[2]
    code, _, err = run(*start, "--tier", "small=4")
    assert (code, "4 agents of tier 'small', but 3 archives" in err) == (2, True)
    for wrong in ("small", "small=1,cpu=2", "small=1,cpus=0", "small=1,memory=much"):
        assert run(*start, "--tier", wrong)[0] == 2
    assert not (tmp_path / "fleet").exists()
    try:
        assert run(*start, "--tier", "small=1", "--join=--threads=1")[:2][0] == 0
        assert "is there already" in run(*start, "--tier", "small=1")[2]
        assert "no tier 'tiny'" in run("fleet", "scale", "tiny=1", *folder)[2]
        ((name, state),) = (
            (row["name"], row["state"]) for row in json.loads(run("fleet", "list", *folder, "--json")[1])
        )
        assert (name, state) == ("small-1", "running")
        code, _, err = run("fleet", "down", *folder)
        assert (code, "--yes does it without asking" in err) == (2, True)
    finally:
        ended = run("fleet", "down", *folder, "--yes", "--json")[1]
    assert json.loads(ended) == {"ended": ["small-1"]}


@pytest.mark.slow
def test_the_commands_of_the_page_from_the_first_to_the_last(tmp_path: Path) -> None:
    page = (ROOT / "docs/containers.md").read_text().partition("## Without an engine")[2]
    script = page.partition("```sh\n")[2].partition("```")[0]
    ports = 17810, 17811, 17812
    for number, port in zip((7700, 7701, 7702), ports, strict=True):
        script = script.replace(f"127.0.0.1:{number}", f"127.0.0.1:{port}")
    own = f"--listen 127.0.0.1:{ports[0]} --admin 127.0.0.1:{ports[1]}"
    script = script.replace(" --enroll", f" {own} --enroll").replace(
        "health;", f"health --address 127.0.0.1:{ports[1]};"
    )
    script = script.replace("simulations/examples", str(ROOT / "simulations/examples"))
    begin = f'diastole() {{ "{sys.executable}" -m diastole.cli.main "$@"; }}\n'
    command = ["bash", "-euxc", begin + script]
    try:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    finally:
        if (tmp_path / "fleet/fleet.json").exists():
            Fleet.open(tmp_path / "fleet").down()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 agents started" in done.stdout
    assert "every device, each at its own size" in done.stdout
    assert list((tmp_path / "fleet").iterdir()) == []
