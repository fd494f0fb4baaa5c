"""Real devices over real gRPC: who was there is who is reported, and a coordinator that is killed goes on."""

import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import diastole
from diastole.client import data
from diastole.client.errors import ModelFileError, RefusedError, RunFailedError
from diastole.client.model_file import ModelFile
from diastole.experiments.checkpoint import Checkpoint, label, refuse_other
from diastole.experiments.errors import ExperimentError, NothingLearnedError
from diastole.experiments.experiment import Experiment
from diastole.experiments.home import CHECKPOINT
from diastole.experiments.result import Result
from diastole.experiments.run import Run, make_run
from diastole.experiments.serving import Serving
from diastole.models.training import Examples
from diastole.server.errors import FolderError, RoundError
from diastole.server.events import DeviceJoined, DeviceLeft, Event, RoundClosed, UpdateAccepted
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

DOCUMENT = {
    "seed": 3,
    "data": {"proxy": 40},
    "rounds": {"count": 3, "patience": 60},
    "tiers": {"large": {"devices": 0, "width": 1.0}, "small": {"devices": 1, "width": 0.25}},
}
DIASTOLE = [sys.executable, "-m", "diastole.cli.main"]


def make(**changes: object) -> Run:
    return make_run(Experiment.parse(DOCUMENT | changes, "test"))


def shard(folder: Path, name: str = "alice") -> Path:
    """Write the examples of the one device that a simulation of the experiment has."""
    folder.mkdir(parents=True, exist_ok=True)
    (device,) = make_federation(Simulation.parse(DOCUMENT, "test")).devices.values()
    data.save(folder / f"{name}.npz", device.examples)
    return folder / f"{name}.npz"


@contextmanager
def joining(port: int, path: Path, tier: str, name: str = "") -> Iterator[None]:
    """A device in a thread, which must have ended well with the block."""
    with ThreadPoolExecutor(1) as pool:
        device = pool.submit(diastole.join, f"127.0.0.1:{port}", path, name, tier=tier, plan="reference")
        yield
        device.result(60)


@pytest.mark.slow
def test_the_report_lists_who_was_there_and_nobody_else(tmp_path: Path) -> None:
    events: list[Event] = []
    path = shard(tmp_path / "data")
    with (
        Serving(make(), "127.0.0.1:0", tmp_path / "state", observers=(events.append,)) as run,
        joining(run.port, path, "small", "alice"),
    ):
        result = run.wait(240)
    report = json.loads((run.folder / "report.json").read_text())
    assert report["run"] == run.run_id == run.folder.name
    assert [(row["device"], row["tier"], row["updates"]) for row in report["devices"]] == [("alice", "small", 3)]
    assert report["devices"][0]["examples"] == len(data.load(path))
    assert [(row["tier"], row["devices"]) for row in report["tiers"]] == [("large", 0), ("small", 1)]
    assert report["finished"]
    assert "partition" not in report["experiment"]
    joined = [event for event in events if isinstance(event, DeviceJoined)]
    assert [(event.device, event.tier) for event in joined] == [("alice", "small")]
    assert isinstance(result, Result)
    assert result.model(tier="small")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(ModelFileError, match="tier 'large' has no model; there are 'small'"):
        result.model(tier="large")
    assert not (run.folder / CHECKPOINT).exists()
    assert (tmp_path / "state" / "latest").samefile(run.folder)


def test_a_tier_that_nobody_configured_or_that_is_not_open_to_a_device_is_refused(tmp_path: Path) -> None:
    tiers = {"large": {"devices": 1, "width": 1.0, "names": ["server-*"]}, "small": {"devices": 1, "width": 0.25}}
    path = shard(tmp_path / "data")
    with Serving(make(tiers=tiers), "127.0.0.1:0", tmp_path / "state") as run:
        for tier, message in (
            ("anything", "there is no tier 'anything'"),
            ("large", "device 'phone' may not be in tier 'large'; it may be in: small"),
        ):
            with pytest.raises(RefusedError, match=message):
                diastole.join(f"127.0.0.1:{run.port}", path, "phone", tier=tier)


@pytest.mark.slow
def test_a_coordinator_that_is_killed_goes_on_to_the_same_bits(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    rounds = {"rounds": {"count": 12, "patience": 60}}
    experiment, path, state = tmp_path / "run.toml", shard(tmp_path / "data", "device-00"), tmp_path / "state"
    experiment.write_text(
        "seed = 3\n[data]\nproxy = 40\n[rounds]\ncount = 12\n[tiers]\nlarge = {devices = 0, width = 1.0}\n"
        "small = {devices = 1, width = 0.25}\n"
    )
    command = ["serve", str(experiment), "--state", str(state), "--admin", "127.0.0.1:0", "--track", "csv", "--listen"]
    first = subprocess.Popen([*DIASTOLE, *command, "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    found = re.search(r"devices call 127\.0\.0\.1:(\d+)", first.stdout.readline())
    assert found
    with joining(int(found[1]), path, "small"):
        for line in first.stdout:
            if re.search(r"round +2/12", line):
                break
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        first.stdout.close()
        code, out, err = run(*command, f"127.0.0.1:{found[1]}")
        assert code == 0, err
    assert re.search(r"going on behind round \d", out)
    assert "device-00 joined, tier small" in out
    expected = simulate(make_federation(Simulation.parse(DOCUMENT | rounds, "test")))
    served = ModelFile.read(state / "latest" / "model.safetensors")
    assert all(torch.equal(served.state[name], tensor) for name, tensor in expected.state.items())
    report = json.loads((state / "latest" / "report.json").read_text())
    assert [row["accuracy"] for row in report["rounds"]] == [closed.accuracy for closed in expected.rounds]
    assert not (state / "latest" / CHECKPOINT).exists()
    curve = [line.split(",")[0] for line in (state / "latest" / "rounds.csv").read_text().splitlines()]
    assert curve == ["round", *map(str, range(1, 13))]


@pytest.mark.parametrize("shares", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_devices_say_what_a_model_is_worth_to_them_if_their_owners_let_them(tmp_path: Path, shares: bool) -> None:
    heard, path, folder = list[Event](), shard(tmp_path / "shards"), tmp_path / "device"
    with (
        Serving(make(), "127.0.0.1:0", tmp_path / "state", observers=[heard.append]) as serving,
        ThreadPoolExecutor() as pool,
    ):
        address, how = f"127.0.0.1:{serving.port}", {"tier": "small", "plan": "reference", "state": folder}
        wish = {"test_share": 0.25, "share_scores": shares, "share_classes": shares, "personal": "head"}
        device = pool.submit(diastole.join, address, path, "alice", **how, **wish)  # type: ignore[arg-type]
        result = serving.wait(60)
        device.result(60)
    own = len(data.load(path))
    profile = result.accounts["alice"].profile
    assert profile is not None
    assert sum(profile.class_counts) == (profile.examples if shares else 0)
    accepted = [event for event in heard if isinstance(event, UpdateAccepted)]
    assert {event.examples for event in accepted} == {own - round(own / 4)}
    if not shares:
        assert result.personal == {}
    else:
        (mine,) = result.personal.values()
        assert (list(result.personal), mine.examples) == (["alice"], round(own / 4))
        assert all(0 <= scores["accuracy"] <= 1 for scores in (mine.before, mine.after))
        told = json.loads((serving.folder / "report.json").read_text())["personal"]
        assert told["before"]["median"] == mine.before["accuracy"]
    last = load_file(folder / "model.safetensors")
    own_model = load_file(folder / "personal.safetensors")
    moved = {name for name in last if not torch.equal(last[name], own_model[name])}
    assert moved == {name for name in last if ":classifier." in name}


@pytest.mark.slow
def test_a_run_that_is_given_more_rounds_has_a_folder_of_its_own(tmp_path: Path) -> None:
    path, state = shard(tmp_path / "data"), tmp_path / "state"
    with Serving(make(), "127.0.0.1:0", state) as first, joining(first.port, path, "small"):
        finished = len(first.wait(240).rounds)
    before = {name: (first.folder / name).read_bytes() for name in ("report.json", "model.safetensors")}
    longer = make(rounds={"count": 500, "patience": 60})
    stops: list[Serving] = []

    def stop(event: Event) -> None:
        if isinstance(event, RoundClosed) and event.round == finished + 1:
            stops[0].stop()

    with Serving(longer, "127.0.0.1:0", state, observers=(stop,)) as second, joining(second.port, path, "small"):
        stops.append(second)
        assert second.closed == finished
        assert not second.wait(240).finished
    assert second.run_id != first.run_id
    assert {name: (first.folder / name).read_bytes() for name in before} == before
    assert (state / "latest").samefile(second.folder)
    # It can go on, and is the same run then.
    with Serving(longer, "127.0.0.1:0", state) as third:
        assert (third.run_id, third.closed) == (second.run_id, finished + 1)
        third.stop(now=True)
        third.wait(60)


def test_a_state_folder_has_one_coordinator(tmp_path: Path) -> None:
    with Serving(make(), "127.0.0.1:0", tmp_path) as first:
        kept = logging.getLogger("diastole").handlers.copy()
        with pytest.raises(FolderError, match="another coordinator keeps its state here; give this one a folder"):
            Serving(make(), "127.0.0.1:0", tmp_path)
        # Nobody keeps lines of the log for one that has not begun.
        assert logging.getLogger("diastole").handlers == kept
        first.stop(now=True)
        with pytest.raises(NothingLearnedError, match="stopped before its first round was over"):
            first.wait(60)
    with Serving(make(), "127.0.0.1:0", tmp_path) as again:
        assert again.run_id == first.run_id
    with Serving(make(), "127.0.0.1:0", tmp_path, fresh=True) as fresh:
        assert fresh.run_id != first.run_id


def test_devices_that_stay_away_are_an_error_of_the_one_who_waits(tmp_path: Path) -> None:
    with Serving(make(rounds={"count": 1, "patience": 0.2}), "127.0.0.1:0", tmp_path) as run:
        with pytest.raises(RoundError, match="0 of 1 devices"):
            run.wait(60)
        assert run.result is None


def test_a_run_whose_rounds_were_all_abandoned_has_failed_and_its_agents_know(tmp_path: Path) -> None:
    path, state = shard(tmp_path / "data"), tmp_path / "state"
    # What comes back is no number.
    settings = {"rounds": {"count": 2, "patience": 60}, "training": {"learning_rate": 1e9}}
    with Serving(make(**settings), "127.0.0.1:0", state) as run, ThreadPoolExecutor(1) as pool:
        device = pool.submit(diastole.join, f"127.0.0.1:{run.port}", path, "alice", tier="small")
        with pytest.raises(NothingLearnedError, match=r"no round counted of 2, the last one because .*the quorum is 1"):
            run.wait(120)
        with pytest.raises(RunFailedError, match="the run failed: nothing was learned: no round counted of 2"):
            device.result(60)
    assert not list(state.rglob("model.safetensors"))
    # The next one begins anew.
    with Serving(make(**settings), "127.0.0.1:0", state) as again:
        assert (again.run_id != run.run_id, again.closed) == (True, 0)


def test_an_agent_that_is_told_to_stop_leaves(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    events = queue.SimpleQueue[Event]()
    rounds = {"rounds": {"count": 10_000, "patience": 60}}
    path = shard(tmp_path / "data")

    def tell(event: Event) -> None:
        events.put(event)
        if isinstance(event, RoundClosed) and event.round == 1:
            # To this process, whose main thread is the agent.
            os.kill(os.getpid(), signal.SIGTERM)

    with Serving(make(**rounds), "127.0.0.1:0", tmp_path / "state", observers=(tell,)) as serving:
        code, out, _ = run("join", f"127.0.0.1:{serving.port}", "--data", path, "--name", "alice")
        assert code == 130
        assert "joining" in out
        while not isinstance(left := events.get(timeout=60), DeviceLeft):
            continue
    assert (left.device, left.reason) == ("alice", "stopped on the device")


def test_serve_says_what_it_does_not_use(tmp_path: Path) -> None:
    path = tmp_path / "both.toml"
    path.write_text("engine = 'batched'\nworkers = 2\n[population]\npreset = 'phones'\n[partition]\nkind = 'iid'\n")
    found = Experiment.load(path)
    assert found.unused == ("engine", "workers", "partition", "population")
    assert Experiment.parse({}, "test").unused == ()
    with pytest.raises(ExperimentError, match="ingine: no such key; accepted: name"):
        Experiment.parse({"ingine": "loop"}, "test")


def test_a_run_on_other_data_is_refused_and_so_is_one_of_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "madenet.py").write_text("# first\n")
    settings = Simulation.parse(DOCUMENT | {"rounds": {"count": 1}}, "test")
    made, path = make_federation(settings), tmp_path / "run.checkpoint"
    digest = made.run.dataset.digest
    simulate(made, (), Checkpoint(path, settings, digest))
    train = made.run.dataset.train
    relabelled = replace(made.run.dataset, train=Examples(train.x, (train.y + 1) % 10))
    assert relabelled.digest != digest
    with pytest.raises(ExperimentError, match=r"on other data; the data set has changed; start afresh \(--fresh\)"):
        Checkpoint(path, settings, relabelled.digest).check()
    named = settings.changed(model__factory="madenet:make", model__name="custom")
    before = label(digest, named)
    refuse_other(label(digest, named), before, "it")
    (tmp_path / "madenet.py").write_text("# second\n")
    with pytest.raises(ExperimentError, match="of other code, which has changed; start afresh"):
        refuse_other(label(digest, named), before, "it")
