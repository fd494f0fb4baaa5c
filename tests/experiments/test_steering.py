"""Operators pause runs, start them, and take rounds back, with agents in threads on real sockets."""

import json
import queue
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from printed import check_printed
from waiting import until

from diastole.client import agent
from diastole.client.connection import Connection
from diastole.client.model_file import ModelFile
from diastole.experiments.entry import Entry
from diastole.experiments.experiment import Experiment
from diastole.experiments.result import Result
from diastole.experiments.run import make_run
from diastole.experiments.serving import Serving
from diastole.proto.profile import Profile
from diastole.server.events import Event, RoundClosed, RoundStarted, RunPaused, RunRolledBack
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

Command = Callable[..., tuple[int, str, str]]
DOCUMENT: dict[str, Any] = {
    "seed": 3,
    "data": {"proxy": 40},
    "codecs": {"up": "int8", "down": "delta:int8"},
    "rounds": {"count": 4, "patience": 60},
    "tiers": {"small": {"devices": 2, "width": 0.25}},
}
LONG = DOCUMENT | {"rounds": {"count": 12, "patience": 60}}
LONG_TEXT = """
seed = 3
data = {proxy = 40}
codecs = {up = "int8", down = "delta:int8"}
rounds = {count = 12, patience = 60}
tiers = {small = {devices = 2, width = 0.25}}
"""
FEDERATION = make_federation(Simulation.parse(DOCUMENT, "test"))
CODECS = ("int8", "delta")


@pytest.fixture(scope="module")
def alone() -> Result:
    """What the run comes to that nobody touches."""
    return simulate(FEDERATION)


class Told:
    """Observes a run: pauses it behind a round, and lets the test wait for an event."""

    def __init__(self, pause_behind: int = 0) -> None:
        self.serving = queue.SimpleQueue[Serving]()
        self.events = queue.SimpleQueue[Event]()
        self._behind = pause_behind

    def __call__(self, event: Event) -> None:
        if isinstance(event, RoundClosed) and event.round == self._behind:
            self._behind = 0
            self.serving.get().entries[0].pause()
        self.events.put(event)

    def until(self, kind: type[Event]) -> Any:
        while not isinstance(event := self.events.get(timeout=60), kind):
            pass
        return event


def serving(
    state: Path, told: Sequence[Told] = (), port: int = 0, document: dict[str, Any] = DOCUMENT, **more: Any
) -> Serving:
    made = make_run(Experiment.parse(document, "test"))
    found = Serving(
        made, f"127.0.0.1:{port}", state, admin="127.0.0.1:0", observers=told, figures=(), lease=60.0, **more
    )
    for each in told:
        each.serving.put(found)
    return found


@contextmanager
def joined(port: int, stop: Callable[[], object]) -> Iterator[None]:
    """The simulation's devices as agents, which must have ended well with the block; `stop` ends the coordinator."""

    def join(name: str) -> None:
        item = FEDERATION.devices[name]
        said = Profile(item.profile.tier, len(item.examples), memory=item.profile.memory, codecs=CODECS)
        agent.run(Connection(f"127.0.0.1:{port}", name, said, patience=60.0), item.examples, lambda progress: None)

    with ThreadPoolExecutor(4) as pool:
        ends = [pool.submit(join, name) for name in FEDERATION.devices]
        try:
            yield
        except BaseException:
            # Nobody would tell the agents that all is over.
            stop()
            raise
        for end in ends:
            end.result(60)


@pytest.fixture
def admin(run: Command) -> Callable[..., Any]:
    """Call a coordinator with a command, and return what it prints."""

    def call(at: Any, *words: object, code: int = 0) -> Any:
        where = ("--address", f"127.0.0.1:{at.admin_port}", "--token-file", at.admin_token, "--json")
        found, out, err = run("admin", *words, *where)
        assert found == code, err
        if code:
            return err
        check_printed(words, json.loads(out))
        return json.loads(out)

    return call


def same(found: Result | None, expected: Result) -> None:
    assert found is not None
    assert all(torch.equal(tensor, expected.state[name]) for name, tensor in found.state.items())
    assert [each.scores for each in found.rounds] == [each.scores for each in expected.rounds]


def test_a_run_is_for_the_devices_that_an_operator_has_labelled(tmp_path: Path, admin: Callable[..., Any]) -> None:
    told, (one, other) = Told(pause_behind=1), FEDERATION.devices
    document = DOCUMENT | {"rounds": {"count": 2, "patience": 60, "labels": {"site": "north"}}}
    with serving(tmp_path, [told], document=document) as coordinator:
        # Devices have labels before they join.
        admin(coordinator, "devices", "label", one, "site=north")
        with joined(coordinator.port, coordinator.stop):
            assert set(told.until(RoundStarted).specs) == {one}
            told.until(RunPaused)
            why = "it is not labelled site=north, which rounds.labels asks for"
            assert {each.get("why") for each in admin(coordinator, "devices", "explain", other)} == {why}
            assert all(each["fits"] for each in admin(coordinator, "devices", "explain", one))
            admin(coordinator, "devices", "label", other, "site=north")
            admin(coordinator, "runs", "resume")
            assert set(told.until(RoundStarted).specs) == {one, other}


@pytest.mark.slow
def test_a_paused_run_rests_also_in_the_next_process(tmp_path: Path, alone: Result, admin: Callable[..., Any]) -> None:
    told, again = Told(pause_behind=2), Told()
    first = serving(tmp_path, [told])
    with joined(first.port, first.stop):
        assert told.until(RunPaused) == RunPaused(2)
        assert admin(first, "runs", "show")["state"] == "STATE_PAUSED"
        assert "has begun" in admin(first, "runs", "start", code=4)
        assert first.suspend(60)
        with serving(tmp_path, [again], first.port) as second:
            assert again.until(RunPaused) == RunPaused(2)
            assert admin(second, "runs", "list")[0]["state"] == "STATE_PAUSED"
            admin(second, "runs", "resume")
            assert "is not paused" in admin(second, "runs", "resume", code=4)
            calls = [(line["call"], line["outcome"] == "done") for line in admin(second, "audit")]
            second.wait(60)
    same(second.result, alone)
    steered = [each for each in reversed(calls) if each[0] in ("Start", "Resume")]
    assert steered == [("Start", False), ("Resume", True), ("Resume", False)]


def test_a_run_goes_back_and_comes_to_the_same_bits(tmp_path: Path, alone: Result, admin: Callable[..., Any]) -> None:
    told, over = Told(pause_behind=3), queue.SimpleQueue[Entry]()
    with (
        serving(tmp_path, [told], kept=3, keep=True, ended=over.put) as coordinator,
        joined(coordinator.port, coordinator.stop),
    ):
        told.until(RunPaused)
        assert [each["round"] for each in admin(coordinator, "checkpoints", "list")] == [1, 2, 3]
        back = ("checkpoints", "rollback", "--yes", "--round")
        assert "rounds that have one: 1, 2, 3" in admin(coordinator, *back, 0, code=4)
        assert "3 rounds are closed" in admin(coordinator, *back, 3, code=4)
        pulled = tmp_path / "pulled.safetensors"
        about = admin(coordinator, "checkpoints", "pull", "--round", 1, "--out", pulled)
        assert (about["round"], about["bytes"]) == (1, pulled.stat().st_size)
        before = pulled.read_bytes()
        assert "is there already" in admin(coordinator, "checkpoints", "pull", "--out", pulled, code=2)
        assert pulled.read_bytes() == before
        assert admin(coordinator, *back, 1)["round"] == 1
        assert told.until(RunRolledBack) == RunRolledBack(1, 2)
        told.until(RunPaused)
        rounds = admin(coordinator, "rounds", "list")
        assert [(each["number"], each["rolled_back"]) for each in rounds] == [(1, False), (2, True), (3, True)]
        assert [each["round"] for each in admin(coordinator, "checkpoints", "list")] == [1]
        admin(coordinator, "runs", "resume")
        over.get(timeout=60)
        rounds, last = admin(coordinator, "rounds", "list"), admin(coordinator, "rounds", "show")
        undone = admin(coordinator, "rounds", "show", 2)
        coordinator.stop()
    same(coordinator.result, alone)
    assert [each["number"] for each in rounds if not each["rolled_back"]] == [1, 2, 3, 4]
    report = json.loads((coordinator.folder / "report.json").read_text())
    (taken,) = report["rolled_back"]
    assert (taken["round"], [each["round"] for each in taken["rounds"]]) == (1, [2, 3])
    assert last["round"]["number"] == 4
    assert [(each["device"], each["outcome"]) for each in last["devices"]] == [
        (name, "OUTCOME_ACCEPTED") for name in sorted(FEDERATION.devices)
    ]
    assert last["round"]["scores"] == report["rounds"][3]["scores"]
    assert sum(each["bytes_up"] for each in last["devices"]) == last["round"]["bytes_up"] > 0
    assert (undone["round"]["number"], undone["round"]["rolled_back"]) == (2, False)
    file = ModelFile.read(pulled)
    assert file.round == 1
    assert set(file.tiers) == {"small"}


def test_a_held_run_begins_when_it_is_started(tmp_path: Path, admin: Callable[..., Any]) -> None:
    path, over = tmp_path / "experiment.toml", queue.SimpleQueue[Entry]()
    path.write_text("[data]\nproxy = 40\n[rounds]\ncount = 1\n[tiers.small]\ndevices = 2\nwidth = 0.25\n")
    with serving(tmp_path / "state", ended=over.put) as coordinator, joined(coordinator.port, coordinator.stop):
        held = admin(coordinator, "runs", "submit", path, "--held")
        assert held["state"] == "STATE_HELD"
        over.get(timeout=60)
        assert [each["state"] for each in admin(coordinator, "runs", "list")] == ["STATE_FINISHED", "STATE_HELD"]
        admin(coordinator, "runs", "start", held["run_id"])
        coordinator.wait(60)
    assert [len(result.rounds) for result in coordinator.results if result] == [4, 1]


class Process:
    """A coordinator in a process of its own; `go` starts it, or starts it again."""

    def __init__(self, folder: Path) -> None:
        self.admin_token = folder / "state" / "admin.token"
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            self.port, self.admin_port = one.getsockname()[1], other.getsockname()[1]
        (folder / "experiment.toml").write_text(LONG_TEXT)

    def go(self) -> None:
        command = [sys.executable, "-m", "diastole.cli.main", "serve", str(self._folder / "experiment.toml")]
        command += ["--listen", f"127.0.0.1:{self.port}", "--admin", f"127.0.0.1:{self.admin_port}"]
        command += ["--state", str(self._folder / "state"), "--figures", "svg"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        next(line for line in self.process.stdout if "devices call" in line)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.slow
def test_a_coordinator_that_is_killed_while_paused_and_after_a_rollback_keeps_both(
    tmp_path: Path, admin: Callable[..., Any]
) -> None:
    expected, coordinator = simulate(make_federation(Simulation.parse(LONG, "test"))), Process(tmp_path)

    def show() -> Any:
        return admin(coordinator, "runs", "show")

    coordinator.go()
    with joined(coordinator.port, coordinator.kill):
        until(lambda: show()["round"] >= 3, coordinator.process, 60)
        admin(coordinator, "runs", "pause")
        until(lambda: show()["state"] == "STATE_PAUSED", coordinator.process, 60)
        closed = show()["round"]
        for number in (closed, closed, closed - 2):
            if number < closed:
                admin(coordinator, "checkpoints", "rollback", "--round", number, "--yes")
            coordinator.kill()
            coordinator.go()
            until(lambda: show()["state"] == "STATE_PAUSED", coordinator.process, 60)
            assert show()["round"] == number
        until(lambda: show()["devices_online"] == 2, coordinator.process, 60)
        admin(coordinator, "runs", "resume")
        out, _ = coordinator.process.communicate(timeout=120)
    assert coordinator.process.returncode == 0, out
    latest = tmp_path / "state" / "latest"
    found = ModelFile.read(latest / "model.safetensors")
    assert all(torch.equal(tensor, expected.state[name]) for name, tensor in found.state.items())
    assert [len(each["rounds"]) for each in json.loads((latest / "report.json").read_text())["rolled_back"]] == [2]
