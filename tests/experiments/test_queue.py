"""Several runs on one coordinator, one after another and side by side, with agents in threads on real sockets."""

import json
import queue
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from diastole.client import agent
from diastole.client.connection import Connection
from diastole.client.terms import Progress
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.entry import Entry
from diastole.experiments.experiment import Experiment
from diastole.experiments.home import Home
from diastole.experiments.result import Result
from diastole.experiments.run import Run, make_run
from diastole.experiments.serving import Serving
from diastole.models.training import Examples
from diastole.proto.profile import Profile
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

ONE: dict[str, Any] = {
    "seed": 3,
    "data": {"proxy": 40},
    "rounds": {"count": 1, "patience": 60},
    "tiers": {"small": {"devices": 2, "width": 0.25}},
}
OTHER = ONE | {"training": {"learning_rate": 0.02}, "rounds": {"count": 2, "patience": 60}}
FEDERATION = make_federation(Simulation.parse(ONE, "test"))


def make(document: Mapping[str, Any]) -> Run:
    return make_run(Experiment.parse(document, "test"))


@pytest.fixture(scope="module")
def alone() -> list[Result]:
    """What each of the two runs comes to without the other."""
    return [simulate(make_federation(Simulation.parse(document, "test"))) for document in (ONE, OTHER)]


@contextmanager
def joined(port: int, told: list[tuple[str, int]] | None = None) -> Iterator[None]:
    """The simulation's devices as agents, which must have ended well with the block."""

    def join(name: str) -> None:
        item = FEDERATION.devices[name]
        said = Profile(item.profile.tier, len(item.examples), memory=item.profile.memory)

        def watch(progress: Progress) -> None:
            if progress.outcome == "accepted" and told is not None:
                told.append((name, progress.round))

        agent.run(Connection(f"127.0.0.1:{port}", name, said, patience=60.0), item.examples, watch)

    with ThreadPoolExecutor(4) as pool:
        ends = [pool.submit(join, name) for name in FEDERATION.devices]
        yield
        for end in ends:
            end.result(60)


def check(serving: Serving, alone: list[Result]) -> None:
    """Check that each run has come to the bits of the same run alone."""
    for entry, expected in zip(serving.entries, alone, strict=True):
        assert entry.error is None
        assert entry.result is not None
        assert all(torch.equal(tensor, expected.state[name]) for name, tensor in entry.result.state.items())
        assert [each.scores for each in entry.result.rounds] == [each.scores for each in expected.rounds]
        assert entry.result.rounds[-1].bytes_down > 0
        report = json.loads((entry.berth.path / "report.json").read_text())
        assert [row["updates"] for row in report["devices"]] == 2 * [len(expected.rounds)]


@pytest.mark.parametrize("side_by_side", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_each_run_has_the_bits_that_it_has_alone(tmp_path: Path, alone: list[Result], side_by_side: int) -> None:
    runs, told = [make(ONE), make(OTHER)], list[tuple[str, int]]()
    with Serving(runs, "127.0.0.1:0", tmp_path, side_by_side=side_by_side, figures=()) as serving:
        with joined(serving.port, told):
            serving.wait(120)
        check(serving, alone)
    # An agent heard of the end only when both were over.
    assert sorted(told) == sorted((name, number) for name in FEDERATION.devices for number in (1, 1, 2))


@pytest.mark.slow
def test_a_queue_goes_on_where_it_was(tmp_path: Path, alone: list[Result]) -> None:
    """The first process ends when the first run is over; the second skips that and plays the other."""
    runs, left = [make(ONE), make(OTHER)], queue.SimpleQueue[bool]()

    def suspend(entry: Entry) -> None:
        threading.Thread(target=lambda: left.put(before.suspend(60))).start()

    before = Serving(runs, "127.0.0.1:0", tmp_path, figures=(), ended=suspend)
    with joined(before.port):
        assert left.get(timeout=60)
        with Serving(runs, f"127.0.0.1:{before.port}", tmp_path, figures=()) as after:
            after.wait(60)
    assert [entry.berth.run_id for entry in after.entries] == [entry.berth.run_id for entry in before.entries]
    assert [entry.berth.over for entry in after.entries] == [True, False]
    result = after.entries[1].result
    assert result is not None
    assert all(torch.equal(tensor, alone[1].state[name]) for name, tensor in result.state.items())
    # It is over as a whole, and the same command begins anew.
    with Serving(runs, "127.0.0.1:0", tmp_path, figures=()) as anew:
        assert not {entry.berth.run_id for entry in anew.entries} & {entry.berth.run_id for entry in after.entries}


@pytest.mark.slow
def test_a_queue_of_others_is_refused_unless_it_is_dropped(tmp_path: Path) -> None:
    with Serving([make(ONE), make(OTHER)], "127.0.0.1:0", tmp_path, figures=()) as first:
        pass
    home = Home(tmp_path)
    assert [each.over for each in home.store.queue(home.folder.place)] == [False, False]
    home.close()
    with Serving([make(OTHER), make(ONE)], "127.0.0.1:0", tmp_path, figures=()) as again:
        assert [entry.berth.run_id for entry in again.entries][::-1] == [e.berth.run_id for e in first.entries]


def test_a_device_serves_the_runs_that_its_examples_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of two runs side by side, one takes inputs of another shape; its own device does that alone."""
    draws, labels = torch.Generator().manual_seed(0), torch.arange(40) % 4
    data = [Examples(torch.randn(40, *shape, generator=draws), labels) for shape in ((1, 8, 8), (3, 12, 12))]
    document = {
        "rounds": {"count": 1, "patience": 60},
        "data": {"proxy": 0},
        "method": "width",
        "tiers": {"small": {"devices": 1, "width": 0.5}},
    }
    runs = [
        make_run(Experiment.parse(document, "test"), Dataset(f"set {number}", one, one, 4))
        for number, one in enumerate(data)
    ]
    done: list[str] = []

    def join(number: int) -> None:
        def watch(progress: Progress) -> None:
            if progress.outcome == "accepted":
                done.append(f"device-{number}")

        connection = Connection(f"127.0.0.1:{serving.port}", f"device-{number}", Profile("small", 40), patience=60.0)
        agent.run(connection, data[number], watch)

    with (
        Serving(runs, "127.0.0.1:0", tmp_path, side_by_side=2, figures=()) as serving,
        ThreadPoolExecutor(2) as pool,
    ):
        for end in [pool.submit(join, number) for number in range(2)]:
            end.result(60)
        serving.wait(60)
    assert sorted(done) == ["device-0", "device-1"]
    for entry, name in zip(serving.entries, ("device-0", "device-1"), strict=True):
        assert entry.result is not None
        assert list(entry.result.accounts) == [name]
    assert "is left to others: examples have the shape" in caplog.text


def test_an_operator_sends_an_experiment_and_stops_one(tmp_path: Path, run: Any) -> None:
    (tmp_path / "other.toml").write_text("[data]\nproxy = 40\n[tiers.small]\ndevices = 1\nwidth = 0.25\n")
    with Serving(make(ONE), "127.0.0.1:0", tmp_path / "state", admin="127.0.0.1:0", keep=True) as serving:
        where = ("--address", f"127.0.0.1:{serving.admin_port}", "--token-file", serving.admin_token)
        assert run("admin", "runs", "submit", tmp_path / "other.toml", "--set", "rounds.count=1", *where)[0] == 0
        code, out, _ = run("admin", "runs", "list", "--json", *where)
        (waits, queued) = json.loads(out)
        assert (code, waits["state"], queued["state"]) == (0, "STATE_WAITING", "STATE_QUEUED")
        assert run("admin", "checkpoints", "pull", queued["run_id"], *where)[0] == 4
        assert run("admin", "runs", "stop", queued["run_id"], "--yes", *where)[0] == 0
        assert json.loads(run("admin", "runs", "list", "--json", *where)[1])[1]["state"] == "STATE_STOPPED"
        code, _, error = run("admin", "runs", "submit", tmp_path / "other.toml", "--set", "tiers.small.width=7", *where)
        assert code == 4
        assert "the experiment: tiers.small.width" in error
        own = run(
            "admin",
            "runs",
            "submit",
            tmp_path / "other.toml",
            "--set",
            'model.factory="os:getcwd"',
            "--set",
            'model.name="custom"',
            *where,
        )
        assert own[0] == 4
        assert "os:getcwd" in own[2]
        assert len(serving.entries) == 2


def test_what_an_operator_has_sent_goes_on_after_a_restart(tmp_path: Path, alone: list[Result]) -> None:
    with Serving(make(ONE), "127.0.0.1:0", tmp_path, figures=(), keep=True) as before:
        sent = before.submit(json.dumps(OTHER)).run_id
        assert before.suspend(60)
    with Serving(make(ONE), "127.0.0.1:0", tmp_path, figures=()) as after:
        assert [entry.berth.run_id for entry in after.entries][1] == sent
        with joined(after.port):
            after.wait(120)
        check(after, alone)
